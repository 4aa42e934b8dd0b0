"""Servers that ask for users, and a user with the documented roles alone for what distributary itself does."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pymongo import MongoClient

from distributary.embedded import EmbeddedMongo, Member
from distributary.errors import EnvironmentFault
from distributary.operate.roles import places_of, privileges
from distributary.testing.server import missing

#: Set where workers and verbs connect as a user with the documented roles and no more; fixtures stay the admin.
VARIABLE = "DISTRIBUTARY_TEST_LEAST_PRIVILEGE"

LEAST = bool(os.environ.get(VARIABLE))

ADMIN = "admin"
PASSWORD = "secret-of-the-test"

_CREDENTIALS = re.compile(r"(?<=//)[^/@]+@")

_Client = MongoClient[dict[str, Any]]


class SecuredMember(Member):
    """A mongod that is looked at by the admin."""

    def client(self) -> _Client:
        """Connect to this server alone."""
        uri = f"mongodb://{ADMIN}:{PASSWORD}@{self.address}/?directConnection=true"
        return MongoClient(uri, serverSelectionTimeoutMS=500)


class SecuredMongo(EmbeddedMongo):
    """A replica set that asks for users, in a folder in which there is an admin."""

    _member = SecuredMember

    @property
    def uri(self) -> str:
        """The admin's connection string."""
        return super().uri.replace("//", f"//{ADMIN}:{PASSWORD}@")


@contextmanager
def secured_or_skip(**options: Any) -> Iterator[EmbeddedMongo]:
    """Run a private MongoDB that asks for users; where none can be had, the test is skipped or fails in CI."""
    with ExitStack() as stack:
        try:
            yield stack.enter_context(_secured(**options))
        except EnvironmentFault as fault:
            missing(str(fault))


@contextmanager
def _secured(arguments: Sequence[str] = (), **options: Any) -> Iterator[EmbeddedMongo]:
    with TemporaryDirectory(prefix="distributary-") as name:
        folder = Path(name)
        _make_admin(folder, arguments, options.get("members", 1))
        key = folder / "key"
        key.write_text("a2V5IG9mIHRoZSB0ZXN0", encoding="utf-8")
        key.chmod(0o600)
        with SecuredMongo(folder, arguments=[*arguments, "--keyFile", str(key)], **options) as server:
            yield server


def _make_admin(folder: Path, arguments: Sequence[str], members: int) -> None:
    """Fill a folder with the data of servers that know nobody but the admin, who may do anything."""
    everything = {"resource": {"anyResource": True}, "actions": ["anyAction"]}
    with EmbeddedMongo(folder, arguments=arguments, members=members) as server, _Client(server.uri) as client:
        all_of_them = {"w": members}
        client.admin.command(
            "createRole", "everything", privileges=[everything], roles=[], writeConcern=all_of_them
        )
        client.admin.command(
            "createUser", ADMIN, pwd=PASSWORD, roles=["root", "everything"], writeConcern=all_of_them
        )


def worker_uri(admin: _Client, uri: str, names: Mapping[str, str]) -> str:
    """Give the connection string with which distributary works on databases of a server.

    With least privilege, it is that of a user who may do what the documentation says on `names`, which are those of
    `places_of`, else the given one.
    """
    if not LEAST:
        return uri
    name = names["state"]
    granted = privileges(places_of(**names))
    admin.admin.command("createRole", name, privileges=granted, roles=[])
    admin.admin.command("createUser", name, pwd=PASSWORD, roles=[name])
    return _CREDENTIALS.sub(f"{name}:{PASSWORD}@", uri)


def forget_worker(admin: _Client, names: Mapping[str, str]) -> None:
    """Remove the user of these databases, if there is one, and what killed workers of this user left open."""
    if LEAST:
        name = names["state"]
        admin.admin.command("killAllSessions", [{"user": name, "db": "admin"}])
        admin.admin.command("dropUser", name)
        admin.admin.command("dropRole", name)
