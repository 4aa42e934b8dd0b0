"""Users and certificates: what a worker connects with, what it is refused for, and what it may do."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
from pymongo import MongoClient
from pymongo.errors import ConfigurationError as DriverConfigurationError
from pymongo.errors import PyMongoError

from distributary.assemble import connect
from distributary.cli.failures import of_driver
from distributary.errors import ConfigurationError, EnvironmentFault
from distributary.operate.roles import places_of, privileges, roles
from distributary.operate.surplus import surplus
from tests.conftest import Databases
from tests.harness import CUSTOMERS, Harness
from tests.least import PASSWORD
from tests.servers import Secured, secured

#: An audit of changes, which wants the change stream with the documents behind them.
AUDIT = """
    from distributary import DerivedCollection, trigger

    seen = DerivedCollection("seen")

    @trigger("orders", operations=["insert", "update"])
    def changed(change):
        yield seen.record(change.position, {"total": change.document["total"]})
"""


#: What MongoDB calls whom the worker's certificate is for.
SUBJECT = "CN=worker,OU=claims,O=example"


class Certificates(NamedTuple):
    """The files of a test: two authorities, and who is known to the first one but for the stranger."""

    folder: Path

    def query(self, client: str = "worker", authority: str = "ours") -> str:
        """Give the options to connect with, each behind an `&`."""
        key = f"&tlsCertificateKeyFile={self.folder / client}.pem" if client else ""
        return f"&tls=true&tlsCAFile={self.folder / authority}.pem{key}"


def worker_of(authority: trustme.CA) -> trustme.LeafCert:
    """Let an authority issue the worker's certificate."""
    return authority.issue_cert(
        "worker@example.com",
        organization_name="example",
        organization_unit_name="claims",
        common_name="worker",
    )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Give new certificates; that of the server is for 127.0.0.1, and for no other name of this machine."""
    folder = tmp_path_factory.mktemp("certificates")
    ours, others = trustme.CA(), trustme.CA()
    for name, authority in {"ours": ours, "others": others}.items():
        authority.cert_pem.write_to_path(folder / f"{name}.pem")
    issued = {
        "server": ours.issue_cert("127.0.0.1", organization_name="servers"),
        "worker": worker_of(ours),
        "stranger": worker_of(others),
    }
    for name, certificate in issued.items():
        certificate.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")
    return Certificates(folder)


@pytest.fixture(scope="module")
def server(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Give a replica set that asks for users, and takes nobody without TLS and a certificate."""
    folder = certificates.folder
    files = ("--tlsCertificateKeyFile", f"{folder}/server.pem", "--tlsCAFile", f"{folder}/ours.pem")
    options = ("--tlsMode", "requireTLS", *files)
    with secured(tmp_path_factory.mktemp("secured"), *options, query=certificates.query()) as running:
        yield running


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker with records of their own, shared ones, rollups and a trigger."""
    return Harness(databases, tmp_path / "modules", {"orders": CUSTOMERS, "audit": AUDIT})


def use(harness: Harness, server: Secured, user: str = "", options: str = "") -> None:
    """Let the worker connect to the server with TLS, by default without a user, and without waiting for long."""
    uri = f"mongodb://{user}{server.address}/?replicaSet=rs0&serverSelectionTimeoutMS=3000{server.query}{options}"
    harness.settings = {"source.uri": uri}


def create_roles(harness: Harness, server: Secured) -> list[str]:
    """Create what `check --roles` tells, with its own commands, and give the names of the roles."""
    told = json.loads(harness.said("check", "--roles", "--json"))
    commands = [each["command"] for each in told["roles"]]
    for command in commands:
        server.admin.admin.command(command)
    return [command["createRole"] for command in commands]


def create_user(server: Secured, name: str, granted: Sequence[Any], database: str = "admin") -> None:
    """Create a user with a password, or in `$external` one with a certificate."""
    known: dict[str, Any] = {} if database == "$external" else {"pwd": PASSWORD}
    own = [{"role": each, "db": "admin"} if isinstance(each, str) else each for each in granted]
    server.admin[database].command("createUser", name, roles=own, **known)


def findings(harness: Harness, subject: str) -> list[dict[str, Any]]:
    """Give what `check` finds of some subjects; it ends with 0."""
    found: list[dict[str, Any]] = json.loads(harness.said("check", "--json"))["findings"]
    return [each for each in found if subject in each["subject"]]


# --- users --------------------------------------------------------------------------------------------------


def test_the_printed_roles_are_enough_for_everything(harness: Harness, server: Secured) -> None:
    """A worker, its jobs, a rebuild, a replay and the verbs that look need no more, and `check` has nothing to say."""
    use(harness, server)
    user = harness.databases.state.name
    create_user(server, user, create_roles(harness, server))
    use(harness, server, f"{user}:{PASSWORD}@")
    assert {each["level"] for each in findings(harness, "privileges")} == {"ok"}
    raw = server.admin[harness.databases.raw.name]
    raw.orders.insert_many([{"_id": n, "customer": n % 3, "total": n, "code": f"c{n}"} for n in range(9)])
    harness.catch_up()
    raw.orders.update_one({"_id": 1}, {"$set": {"total": 100, "code": "moved"}})
    raw.orders.delete_one({"_id": 2})
    harness.catch_up()
    server.admin[harness.databases.derived.name].orders_by_code.delete_one({"_id": "c3"})
    harness.said("verify", code=1)
    assert "repaired" in harness.said("verify", "--repair")
    harness.said("backfill")
    harness.said("rebuild", "orders")
    harness.said("replay", "--from", "oldest", "--transform", "orders")
    assert harness.said("verify").startswith("equal: ")
    harness.said("status")
    assert server.admin[harness.databases.derived.name].seen.count_documents({}) == 1


def test_a_user_is_known_by_a_certificate(harness: Harness, server: Secured) -> None:
    """MONGODB-X509: the user in `$external` has the certificate's subject as name, and there is no password."""
    use(harness, server, options="&authMechanism=MONGODB-X509")
    said = harness.said("run", code=3)
    assert SUBJECT in said
    assert "in the database $external" in said
    create_user(server, SUBJECT, create_roles(harness, server), "$external")
    server.admin[harness.databases.raw.name].orders.insert_one({"_id": 1, "customer": 1, "code": "x"})
    harness.catch_up()
    assert server.admin[harness.databases.derived.name].orders_by_code.count_documents({}) == 1


def test_two_connection_strings_have_two_roles(harness: Harness, server: Secured) -> None:
    """The source's user cannot write there, and the other one reads nothing of it; together they do all."""
    names = {each: f"{harness.databases.state.name}_{each}" for each in ("reader", "writer")}
    use(harness, server, f"{names['reader']}:{PASSWORD}@")
    source = harness.settings["source.uri"]
    harness.settings = {"source.uri": source, "derived.uri": source.replace("reader:", "writer:")}
    for user, role in zip(names.values(), create_roles(harness, server), strict=True):
        create_user(server, user, [role])
    server.admin[harness.databases.raw.name].orders.insert_one({"_id": 1, "customer": 1, "code": "x"})
    harness.catch_up()
    assert {each["level"] for each in findings(harness, "privileges")} == {"ok"}
    assert server.admin[harness.databases.derived.name].orders_by_code.count_documents({}) == 1


def test_the_script_grants_what_the_commands_grant(harness: Harness) -> None:
    """For people there is a script for mongosh, for programs the commands; both say the same."""
    script = harness.said("check", "--roles", "--fix")
    (role,) = roles(harness.config, fix=True)
    assert [
        json.loads(each) for each in re.findall(r"^ +(\{.*\}),$", script, re.MULTILINE)
    ] == role.privileges
    assert f'name = "{role.name}"' in script
    assert "collMod" in script
    assert "collMod" not in harness.said("check", "--roles")


# --- too much -----------------------------------------------------------------------------------------------

ANYTHING = [{"resource": {"anyResource": True}, "actions": ["anyAction"]}]


def surpluses(harness: Harness, server: Secured, granted: Sequence[Any]) -> list[str]:
    """Give what a user with these roles may do too much, each as a line."""
    user, names = f"{harness.databases.state.name}_much", harness.databases.names
    create_user(server, user, [{**each, "db": names.get(each["db"], each["db"])} for each in granted])
    with MongoClient[dict[str, Any]](server.uri(user)) as client:
        return [f"{each.role}: {each}" for each in surplus(client, places_of(**names))]


@pytest.mark.parametrize(
    ("role", "words"),
    [
        pytest.param({"role": "readWrite", "db": "source"}, ("insert",), id="write into the source"),
        pytest.param({"role": "root", "db": "admin"}, ("on the cluster", "on every database"), id="root"),
        pytest.param({"role": "read", "db": "elsewhere"}, ("find", "database elsewhere"), id="another database"),
        pytest.param({"role": "userAdmin", "db": "derived"}, ("grantRole",), id="users"),
        pytest.param({"role": "readWriteAnyDatabase", "db": "admin"}, ("on every database",), id="all databases"),
        pytest.param({"role": "clusterMonitor", "db": "admin"}, ("on the cluster",), id="monitoring"),
    ],
)  # fmt: skip
def test_a_role_that_allows_too_much_is_named(
    harness: Harness, server: Secured, role: dict[str, str], words: tuple[str, ...]
) -> None:
    """With the actions and where; beside it, roles that allow what is needed are not named."""
    fine = {"role": "read", "db": "source"}
    (told,) = surpluses(harness, server, [fine, role])
    assert told.startswith(f"{role['role']}@")
    assert all(word in told for word in words), told


def test_built_in_roles_on_the_databases_will_do(harness: Harness, server: Secured) -> None:
    """`read` on the source and `readWrite` on what the worker owns allow a little more, of no consequence."""
    fine = [{"role": "read", "db": "source"}, *({"role": "readWrite", "db": n} for n in ("derived", "state"))]
    assert surpluses(harness, server, fine) == []


def test_too_much_is_a_warning_with_a_cure(harness: Harness, server: Secured) -> None:
    """The check does not fail for it; a role by the name of which nothing is known is told by what it allows."""
    name = f"{harness.databases.state.name}_anything"
    server.admin.admin.command("createRole", name, privileges=ANYTHING, roles=[])
    create_user(server, name, [name])
    use(harness, server, f"{name}:{PASSWORD}@")
    found = findings(harness, "source privileges")
    (warning,) = [each for each in found if each["level"] == "warning"]
    assert warning["message"] == f"role {name}@admin allows more than is needed: anyAction on everything."
    assert "check --roles" in warning["cure"]


def test_what_check_fix_needs_is_not_too_much(harness: Harness, server: Secured) -> None:
    """The roles of `check --roles --fix` are documented, too."""
    name = f"{harness.databases.state.name}_fix"
    granted = privileges(places_of(**harness.databases.names), fix=True)
    server.admin.admin.command("createRole", name, privileges=granted, roles=[])
    assert surpluses(harness, server, [{"role": name, "db": "admin"}]) == []


# --- refused ------------------------------------------------------------------------------------------------


def refusal(harness: Harness) -> str:
    """Give what an operator is told of a connection that cannot be made, which ends a verb with exit code 3."""
    with pytest.raises(PyMongoError) as told, connect(harness.config) as databases:
        databases.raw.list_collection_names()
    known = of_driver(told.value)
    assert isinstance(known, EnvironmentFault)
    assert known.cure
    return str(known)


@pytest.mark.parametrize(
    ("client", "authority", "words"),
    [
        pytest.param("worker", "others", ("CERTIFICATE_VERIFY_FAILED", "tlsCAFile"), id="wrong authority"),
        pytest.param("", "ours", ("closed", "tlsCertificateKeyFile"), id="no certificate"),
        pytest.param("stranger", "ours", ("closed", "tlsCertificateKeyFile"), id="certificate of a stranger"),
    ],
)
def test_certificates_that_do_not_fit(
    harness: Harness, server: Secured, certificates: Certificates,
    client: str, authority: str, words: tuple[str, ...],
) -> None:  # fmt: skip
    """What TLS said is told, with the option to look at."""
    query = certificates.query(client, authority)
    uri = f"mongodb://{server.address}/?replicaSet=rs0&serverSelectionTimeoutMS=3000{query}"
    harness.settings = {"source.uri": uri}
    told = refusal(harness)
    assert all(word in told for word in words), told


def test_a_server_by_another_name(harness: Harness, server: Secured) -> None:
    """Exit 3: a certificate for 127.0.0.1 is none for localhost, though it is the same machine."""
    use(harness, server)
    harness.settings = {"source.uri": harness.settings["source.uri"].replace("127.0.0.1", "localhost")}
    said = harness.said("run", code=3)
    assert "not valid for 'localhost'" in said
    assert "Name the server in source.uri and derived.uri as its certificate does" in said


def test_a_connection_without_tls(harness: Harness, server: Secured) -> None:
    """A server that wants TLS closes the connection, and the cure says why that may be."""
    uri = f"mongodb://{server.address}/?replicaSet=rs0&serverSelectionTimeoutMS=3000"
    harness.settings = {"source.uri": uri}
    assert "tls=true" in refusal(harness)


def test_tls_to_a_server_without_it(harness: Harness, certificates: Certificates) -> None:
    """The cure says that the server may have none."""
    uri = f"{harness.databases.uri}&serverSelectionTimeoutMS=3000{certificates.query()}"
    harness.settings = {"source.uri": uri}
    assert "take tls out" in refusal(harness)


def test_the_wrong_password(harness: Harness, server: Secured) -> None:
    """Nobody sees the password."""
    use(harness, server, f"admin:not-{PASSWORD}@")
    said = refusal(harness)
    assert "refused the user or the password" in said
    assert PASSWORD not in said


# --- the cloud's ways to authenticate -----------------------------------------------------------------------


def test_a_package_that_is_missing(
    harness: Harness, server: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONGODB-AWS reaches the driver, which leaves it to another package, and what to install is told."""
    monkeypatch.setitem(sys.modules, "pymongo_auth_aws", None)
    use(harness, server, options="&authMechanism=MONGODB-AWS")
    with pytest.raises(DriverConfigurationError) as told, connect(harness.config) as databases:
        databases.raw.list_collection_names()
    refused = of_driver(told.value)
    assert isinstance(refused, ConfigurationError)
    (fault,) = refused.faults
    assert "MONGODB-AWS" in fault.problem
    assert "pip install 'pymongo[aws]'" in fault.cure


def test_a_process_without_a_role_in_the_cloud(
    harness: Harness, server: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pymongo[aws] is installed and finds nothing to authenticate with, the cure says what it looks for."""
    pytest.importorskip("pymongo_auth_aws", reason="pymongo[aws] is not installed")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    use(harness, server, options="&authMechanism=MONGODB-AWS")
    assert "AWS_ACCESS_KEY_ID" in refusal(harness)


def test_a_token_is_sent_to_the_server(
    harness: Harness, server: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONGODB-OIDC reaches the driver, which reads the token from its file; a server that has no OIDC says so."""
    token = tmp_path / "token"
    monkeypatch.setenv("OIDC_TOKEN_FILE", str(token))
    use(harness, server, options="&authMechanism=MONGODB-OIDC&authMechanismProperties=ENVIRONMENT:test")
    missing = harness.said("run", code=3)
    assert f"{token}: No such file or directory." in missing
    token.write_text("a.b.c")
    refused = harness.said("run", code=3)
    assert "MONGODB-OIDC which is not enabled" in refused
    assert "Correct authMechanism" in refused
