"""`check`: every finding with its cure, all at once, and nothing written."""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any, NamedTuple

import pytest
from bson import Timestamp

from distributary.assemble import connect
from distributary.cli.failures import of_driver
from distributary.operate.check import Preflight, exit_code
from distributary.operate.privileges import NEEDS, Role
from tests.conftest import Databases
from tests.harness import Harness
from tests.least import PASSWORD
from tests.servers import Secured, mongod, secured

MODULE = """
    import time
    from distributary import DerivedCollection, transform

    parts = DerivedCollection("parts")

    @transform("orders")
    def tried(order):
        {body}
        yield parts.record(order["_id"], {{"is": order.get("is")}})
"""


#: One trigger looks at what was before a change, the other one at what came after it.
TRIGGERS = """
    from distributary import Publish, trigger

    @trigger("orders", operations=["delete"])
    def earlier(change):
        yield Publish("orders", change.before)

    @trigger("orders", operations=["update"])
    def later(change):
        yield Publish("orders", change.document)
"""


class Checked(NamedTuple):
    """What `check --json` said."""

    code: int
    findings: list[dict[str, Any]]

    def of(self, level: str) -> list[str]:
        """Give the messages of a level, each with its subject."""
        return [f"{each['subject']}: {each['message']}" for each in self.findings if each["level"] == level]

    def assert_fault(self, code: int, *words: str) -> None:
        """Fail unless the exit code is this one and a fault with a cure has these words."""
        faults = [each for each in self.findings if each["level"] == "fault"]
        assert self.code == code
        assert any(all(word in each["message"] for word in words) for each in faults), faults
        assert all(each["cure"] for each in faults)


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker with the orders module and one order."""
    databases.raw.orders.insert_one({"_id": 1, "skus": ["a"], "code": "x"})
    return Harness(databases, tmp_path / "modules")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Give a replica set that asks for users."""
    with secured(tmp_path_factory.mktemp("secured")) as running:
        yield running


def check(harness: Harness, *options: str) -> Checked:
    """Run `check --json`."""
    with harness.process("check", "--json", *options, stdout=PIPE) as process:
        out, _ = process.communicate(timeout=90)
    answer = json.loads(out)
    assert answer["schema"] == 1
    assert answer["fine"] is (process.returncode == 0)
    return Checked(process.returncode, answer["findings"])


def looked(harness: Harness) -> Checked:
    """Look in this process at what `check` looks at on the deployment."""
    with connect(harness.config) as databases:
        findings = list(
            Preflight(
                raw=databases.raw,
                derived=databases.derived,
                state=databases.state,
                worker=harness.config.worker.name,
                registry=harness.registry,
                max_records=harness.config.worker.max_records,
                explain=of_driver,
                sleep=time.sleep,
            ).run()
        )
    return Checked(exit_code(findings), [each.answer() for each in findings])


def test_all_is_well_and_nothing_is_written(harness: Harness) -> None:
    """Exit 0, the transforms are listed with places and fingerprints, and no database has anything new."""
    checked = check(harness)
    assert (checked.code, checked.of("fault")) == (0, [])
    fingerprint = harness.registry.transforms["orders"].fingerprint
    assert any("orders.py:" in each and fingerprint in each for each in checked.of("ok"))
    assert any("1 sampled document," in each for each in checked.of("ok"))
    assert harness.databases.raw.list_collection_names() == ["orders"]
    assert harness.databases.derived.list_collection_names() == []
    assert harness.databases.state.list_collection_names() == []


def test_people_get_a_line_for_each_finding(harness: Harness) -> None:
    """Level first, the cure below what is wrong, a verdict at the end."""
    harness.databases.raw.drop_collection("orders")
    with harness.process("check", stdout=PIPE) as process:
        out, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    lines = out.splitlines()
    assert lines[0].startswith("ok       configuration:")
    missing = next(number for number, line in enumerate(lines) if "does not exist yet" in line)
    assert lines[missing].startswith("warning ")
    assert "cure:" in lines[missing + 1]
    assert lines[-1].startswith("Ready to run")


def test_a_young_history_is_a_warning(harness: Harness) -> None:
    """The hours that the history reaches back are told; a server started just now has few."""
    assert any("source history: reaches back" in each for each in check(harness).of("warning"))


def test_a_lost_position_is_a_warning(harness: Harness) -> None:
    """One that is in the history is fine; of one that is not, it is told what a worker would do."""
    harness.catch_up()
    assert any(each.startswith("position: ") for each in check(harness).of("ok"))
    ago = {"$set": {"position.time": Timestamp(1, 1)}}
    harness.databases.state.checkpoints.update_one({"_id": "default"}, ago)
    (told,) = [each for each in check(harness).of("warning") if each.startswith("position: ")]
    assert "is lost: the history reaches back to" in told


def test_the_triggers_position_is_looked_at_by_itself(harness: Harness) -> None:
    """It may be lost while the worker's is not; of what triggers did not see, nothing is derived again."""
    harness.write({"watching": TRIGGERS})
    harness.catch_up()
    assert any(each.startswith("triggers' position: ") for each in check(harness).of("ok"))
    ago = {"$set": {"triggers.position.time": Timestamp(1, 1)}}
    harness.databases.state.checkpoints.update_one({"_id": "default"}, ago)
    checked = check(harness)
    (lost,) = [each for each in checked.findings if each["subject"] == "triggers' position"]
    assert "is lost: the history reaches back to" in lost["message"]
    assert "`status` names what they did not see" in lost["cure"]
    assert any(each.startswith("position: ") for each in checked.of("ok"))


def test_a_checkpoint_of_another_source_is_a_fault(harness: Harness) -> None:
    """Its position means nothing here, whatever its time, and no worker would start with it."""
    harness.catch_up()
    other = {"$set": {"source.set_name": "elsewhere"}}
    harness.databases.state.checkpoints.update_one({"_id": "default"}, other)
    checked = check(harness)
    checked.assert_fault(2, "'default' reads elsewhere/")
    assert not any("is in the history" in each for each in checked.of("ok"))


def test_images_are_switched_on_for_all_who_want_them(harness: Harness, mongo: str) -> None:
    """Triggers that want what was before are named, and those that want what came after, too."""
    harness.write({"watching": TRIGGERS})
    harness.settings = {"source.uri": mongo}
    assert any("'earlier', 'later'" in each for each in check(harness, "--fix").of("ok"))


def test_a_collection_to_come_is_told_how_to_get_images_later(harness: Harness) -> None:
    """Nothing is created for it: with and without `--fix` the cure is to run it once the collection is there."""
    harness.write({"watching": TRIGGERS})
    harness.databases.raw.drop_collection("orders")
    for options in ([], ["--fix"]):
        (told,) = [each for each in check(harness, *options).findings if each["subject"] == "images"]
        assert "does not exist yet" in told["message"]
        assert "`distributary check --fix` once it is there" in told["cure"]


def test_unsuitable_sources_are_faults(harness: Harness) -> None:
    """Every one is named with its reason, not only the first."""
    raw = harness.databases.raw
    raw.create_collection("seen", viewOn="orders", pipeline=[])
    raw.create_collection("ticks", timeseries={"timeField": "at"})
    raw.create_collection("names", collation={"locale": "en", "strength": 2})
    body = MODULE.format(body="pass")
    modules = {
        name: body.replace('"orders"', f'"{name}"').replace("tried", name).replace('"parts"', f'"{name}_out"')
        for name in ("seen", "ticks", "names")
    }
    harness.write(modules)
    checked = check(harness)
    checked.assert_fault(3, "'seen'", "view")
    checked.assert_fault(3, "'ticks'", "timeseries")
    checked.assert_fault(3, "'names'", "collation")


def test_unsuitable_derived_collections_are_faults(harness: Harness) -> None:
    """A view or a capped collection cannot hold records."""
    derived = harness.databases.derived
    derived.create_collection("order_lines", viewOn="other", pipeline=[])
    derived.create_collection("orders_by_code", capped=True, size=4096)
    checked = check(harness)
    checked.assert_fault(3, "'order_lines'", "view")
    checked.assert_fault(3, "'orders_by_code'", "capped")


def test_a_source_under_another_host_name_is_a_loop(harness: Harness) -> None:
    """Whatever the connection strings look like, a worker must not write into what it reads."""
    harness.settings = {
        "derived.uri": harness.databases.uri.replace("127.0.0.1", "localhost"),
        "derived.database": harness.databases.raw.name,
    }
    check(harness).assert_fault(2, "derived.database", "loop")


def test_broken_modules_do_not_hide_the_environment(harness: Harness) -> None:
    """Exit 2 with every module's fault, and the server is looked at all the same."""
    harness.write({"one": "import nothing_of_this_name", "two": "1 / 0"})
    checked = check(harness)
    checked.assert_fault(2, "one.py:1", "nothing_of_this_name")
    checked.assert_fault(2, "two.py:1", "ZeroDivisionError")
    assert any("MongoDB" in each for each in checked.of("ok"))


def test_every_fault_of_the_configuration_is_told(harness: Harness) -> None:
    """Exit 2 before anything is connected to."""
    harness.settings = {"worker.batch_changes": "many", "worker.no_such_key": "1"}
    checked = check(harness)
    checked.assert_fault(2, "worker.batch_changes")
    checked.assert_fault(2, "NO_SUCH_KEY")


def test_an_unreachable_server_is_told_in_time(harness: Harness) -> None:
    """Exit 3 after one server selection time, though source and derived database are both unreachable."""
    harness.settings = {"source.uri": "mongodb://127.0.0.1:9/?replicaSet=rs0&serverSelectionTimeoutMS=10000"}
    began = time.monotonic()
    check(harness).assert_fault(3, "cannot be reached")
    assert time.monotonic() - began < 2 * 10


def test_a_standalone_server_is_refused(harness: Harness, tmp_path: Path) -> None:
    """It has neither change streams nor transactions."""
    with mongod(tmp_path / "standalone") as address:
        harness.settings = {"source.uri": f"mongodb://{address}/"}
        check(harness).assert_fault(3, "standalone")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param("raise KeyError('total')", ("fails", "KeyError"), id="fails for all"),
        pytest.param("order['is'] = time.time_ns()", ("something else the second time",), id="clock"),
        pytest.param(
            "order['is'] = int(time.time())", ("something else the second time",), id="coarse clock"
        ),
        pytest.param("order.setdefault('lines', [])", ("changes the document",), id="changes its document"),
    ],
)
def test_transforms_are_tried_on_documents(harness: Harness, body: str, words: tuple[str, ...]) -> None:
    """Exit 2 naming the transform with file and line."""
    harness.write({"tried": MODULE.format(body=body)})
    check(harness).assert_fault(2, "tried (", "tried.py:8)", *words)


def test_a_few_bad_documents_are_a_warning(harness: Harness) -> None:
    """They would be parked, and the rest derived."""
    harness.databases.raw.orders.insert_one({"_id": 2, "is": 1})
    harness.write({"tried": MODULE.format(body="order['is']")})
    checked = check(harness)
    assert checked.code == 0
    assert any("1 of 2 sampled documents" in each for each in checked.of("warning"))


def test_documents_that_cannot_be_encoded_again_are_no_trouble(harness: Harness) -> None:
    """A sample may hold dates outside Python's range and keys with dots and dollars."""
    harness.write({"tried": MODULE.format(body="pass")})
    harness.databases.raw.orders.insert_one({"_id": {"a.b": 1}, "is": float("nan"), "x": {"$y": 1}})
    assert check(harness).code == 0


# --- users ------------------------------------------------------------------------------------------------------


def privileges_of(harness: Harness, *, optional: bool, without: str = "") -> list[dict[str, Any]]:
    """Give what the table of needs asks for, for this worker's databases."""
    databases = harness.databases
    resources = {
        Role.SOURCE: {"db": databases.raw.name, "collection": ""},
        Role.DERIVED: {"db": databases.derived.name, "collection": ""},
        Role.STATE: {"db": databases.state.name, "collection": ""},
        Role.OPLOG: {"db": "local", "collection": "oplog.rs"},
        Role.CLUSTER: {"cluster": True},
    }
    return [
        {"resource": resources[need.role], "actions": actions}
        for need in NEEDS
        if optional or not need.optional
        if (actions := [each for each in need.actions if each != without])
    ]


def use(harness: Harness, server: Secured, uri: str) -> None:
    """Point the worker at a user's connection, to a server with one order."""
    harness.settings = {"source.uri": uri}
    server.admin[harness.databases.raw.name].orders.replace_one(
        {"_id": 1}, {"_id": 1, "code": "x"}, upsert=True
    )


def test_the_table_of_needs_is_all_that_a_worker_needs(harness: Harness, server: Secured) -> None:
    """A user with the needs and no more passes the check without a word about privileges, and the worker runs."""
    use(harness, server, server.user("exact", privileges_of(harness, optional=True)))
    checked = check(harness)
    assert checked.code == 0
    assert not [each for each in checked.of("warning") if "lacks" in each]
    harness.catch_up()
    assert server.admin[harness.databases.derived.name].orders_by_code.count_documents({}) == 1


def test_optional_privileges_are_warnings(harness: Harness, server: Secured) -> None:
    """Without them the worker runs all the same."""
    use(harness, server, server.user("least", privileges_of(harness, optional=False)))
    checked = check(harness)
    assert checked.code == 0
    warnings = "\n".join(checked.of("warning"))
    assert "replSetGetConfig on the cluster" in warnings
    assert "find on local.oplog.rs" in warnings
    harness.catch_up()
    assert server.admin[harness.databases.derived.name].orders_by_code.count_documents({}) == 1


@pytest.mark.parametrize(
    "action", sorted({each for need in NEEDS if not need.optional for each in need.actions})
)
def test_each_missing_privilege_is_named(harness: Harness, server: Secured, action: str) -> None:
    """Exit 3 with the action and the place."""
    use(harness, server, server.user(f"no_{action}", privileges_of(harness, optional=True, without=action)))
    looked(harness).assert_fault(3, action, "lacks")


def on_each(names: Iterable[str], privileges: list[dict[str, Any]], database: str) -> list[dict[str, Any]]:
    """Grant what is granted on a database on these collections of it, but for what is never granted on one."""
    whole = [each for each in privileges if each["resource"].get("db") == database]
    rest = [each for each in privileges if each not in whole]
    listing = [each for each in whole if each["actions"] == ["listCollections"]]
    narrow = [
        {"resource": {"db": database, "collection": name}, "actions": each["actions"]}
        for name in names
        for each in whole
        if each not in listing
    ]
    return rest + listing + narrow


def test_privileges_on_each_derived_collection_will_do(harness: Harness, server: Secured) -> None:
    """To write, nobody has to grant more than what is written; that a rebuild needs more is told."""
    derived = harness.databases.derived.name
    privileges = on_each(harness.registry.collections, privileges_of(harness, optional=False), derived)
    use(harness, server, server.user("each", privileges))
    checked = check(harness)
    assert checked.code == 0
    assert any(f"on database {derived}, to rebuild" in each for each in checked.of("warning"))
    harness.catch_up()
    assert server.admin[derived].orders_by_code.count_documents({}) == 1


def test_privileges_on_each_state_collection_will_not_do(harness: Harness, server: Secured) -> None:
    """Which collections there will be is not known before, so that a worker that may not make them cannot start."""
    state = harness.databases.state.name
    kept = ("checkpoints", "jobs", "leases", "dead_letters", "pending", "outbox")
    use(harness, server, server.user("kept", on_each(kept, privileges_of(harness, optional=False), state)))
    check(harness).assert_fault(
        3, "lacks", "insert, update, remove, createCollection", f"on database {state}"
    )


def test_a_connection_without_a_user_is_refused(harness: Harness, server: Secured) -> None:
    """A server that asks for a user is not mistaken for one that allows everything."""
    harness.settings = {"source.uri": f"mongodb://{server.address}/?replicaSet=rs0"}
    check(harness).assert_fault(3, "requires authentication")


def test_a_wrong_password_is_told_and_not_shown(harness: Harness, server: Secured) -> None:
    """Exit 3, and nothing that was printed has the password."""
    harness.settings = {"source.uri": server.uri("admin", f"not-{PASSWORD}")}
    checked = check(harness)
    checked.assert_fault(3, "user or the password")
    assert PASSWORD not in json.dumps(checked.findings)
