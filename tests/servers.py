"""Servers that are not what a worker wants: one that asks for users, and one that is no replica set."""

import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from distributary.embedded import Keeper, find_mongod
from distributary.testing.server import missing
from tests.conftest import Client, eventually
from tests.least import ADMIN, PASSWORD

Privilege = Mapping[str, Any]


def free_port() -> int:
    """Give a port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def mongod(folder: Path, *options: str, query: str = "") -> Iterator[str]:
    """Run one mongod with these options in an empty folder; gives `host:port` once it answers who asks with `query`."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    place = ["--dbpath", str(folder), "--bind_ip", "127.0.0.1", "--port", str(port), "--nounixsocket"]
    keeper = Keeper(folder)
    try:
        keeper.start(
            [str(find_mongod()), *place, "--wiredTigerCacheSizeGB", "0.25", *options], folder / "mongod.log"
        )
        address = f"127.0.0.1:{port}"
        eventually(lambda: _answers(address, query))
        yield address
    finally:
        keeper.leave()


@dataclass(frozen=True)
class Secured:
    """A replica set that asks for users."""

    address: str
    admin: Client
    query: str = ""

    def uri(self, user: str, password: str = PASSWORD) -> str:
        """Give the connection string of a user."""
        query = f"replicaSet=rs0&serverSelectionTimeoutMS=5000{self.query}"
        return f"mongodb://{user}:{password}@{self.address}/?{query}"

    def user(self, name: str, privileges: Sequence[Privilege]) -> str:
        """Create a user who may do exactly this, and give the user's connection string."""
        self.admin.admin.command("createRole", name, privileges=list(privileges), roles=[])
        self.admin.admin.command("createUser", name, pwd=PASSWORD, roles=[name])
        return self.uri(name)


@contextmanager
def secured(folder: Path, *options: str, query: str = "") -> Iterator[Secured]:
    """Run a replica set that asks for users; `query` are the options with which to connect, each behind an `&`."""
    folder.mkdir(exist_ok=True)
    key = folder / "key"
    key.write_text("a2V5IG9mIHRoZSB0ZXN0", encoding="utf-8")
    key.chmod(0o600)
    command = ("--replSet", "rs0", "--keyFile", str(key), *options)
    with mongod(folder / "data", *command, query=query) as address:
        _initiate(address, query)
        uri = f"mongodb://{ADMIN}:{PASSWORD}@{address}/?replicaSet=rs0{query}"
        with MongoClient[dict[str, Any]](uri) as admin:
            yield Secured(address, admin, query)


def _initiate(address: str, query: str) -> None:
    """Make a replica set and its first user, which the server lets anyone on its own machine do."""
    with MongoClient[dict[str, Any]](f"mongodb://{address}/?directConnection=true{query}") as client:
        members = [{"_id": 0, "host": address}]
        client.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
        eventually(lambda: client.admin.command("hello")["isWritablePrimary"])
        eventually(_worked(lambda: client.admin.command("createUser", ADMIN, pwd=PASSWORD, roles=["root"])))


def _worked(attempt: Callable[[], Any]) -> Callable[[], bool]:
    def worked() -> bool:
        try:
            attempt()
        except PyMongoError:
            return False
        return True

    return worked


def _answers(address: str, query: str) -> bool:
    uri = f"mongodb://{address}/?directConnection=true&serverSelectionTimeoutMS=500{query}"
    with MongoClient[dict[str, Any]](uri) as client:
        return _worked(lambda: client.admin.command("ping"))()


def prometheus_tool(name: str) -> str:
    """Give a program of Prometheus from the PATH or from `make prometheus`; without it, skip or fail in CI."""
    fetched = Path(sys.prefix) / "prometheus/usr/bin"
    binary = shutil.which(name) or shutil.which(name, path=fetched)
    if binary is None:
        missing(
            f"there is no {name}; run `make prometheus`, or install Debian's package prometheus", "Prometheus"
        )
    return binary
