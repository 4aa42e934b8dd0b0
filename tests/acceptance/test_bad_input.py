"""Bad input of every kind: a clear outcome and never a crash, on the command line where a user reads it there."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from bson import Binary, Decimal128, encode
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument

from distributary.operate.dead_letters import listing
from distributary.operate.privileges import NEEDS, Role
from distributary.store.letters import StoredLetter
from tests.conftest import Databases
from tests.harness import Harness
from tests.least import PASSWORD
from tests.servers import Secured, mongod, secured

#: Seconds of server selection that the tests ask for, and what a process takes besides; less than the driver's own 30.
SELECTION, PROCESS = 2, 25

MODULE = """
    from bson import Regex
    from distributary import DerivedCollection, transform

    parts = DerivedCollection("parts")

    @transform("orders")
    def tried(order):
        if order.get("bad"):
            {bad}
        yield parts.record(order["_id"], {{"is": order.get("is")}})
"""


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float

    def assert_told(self, code: int, *words: str, faults: int = 1) -> None:
        """Fail unless it ended with this code, and each fault took one line and has a cure."""
        told = [line for line in self.err.splitlines() if line.startswith("error:")]
        cures = [line for line in self.err.splitlines() if line.startswith("  cure:")]
        assert self.code == code, self.err
        assert (len(told), len(cures)) == (faults, faults), self.err
        assert all(word in self.err for word in words), self.err
        assert "Traceback" not in self.err


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker with a module that does nothing bad."""
    return Harness(databases, tmp_path / "modules", {"tried": MODULE.format(bad="pass")})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Give a replica set that asks for users."""
    with secured(tmp_path_factory.mktemp("secured")) as running:
        yield running


def distributary(harness: Harness, *arguments: str) -> Outcome:
    """Run the command line to its end."""
    began = time.monotonic()
    with harness.process(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=90)
    return Outcome(process.returncode, out, err, time.monotonic() - began)


def caught_up(harness: Harness) -> None:
    """Run the worker as a process until it has caught up."""
    outcome = distributary(harness, "run", "--until-caught-up")
    assert outcome.code == 0, outcome.err


def letters(harness: Harness) -> dict[Any, StoredLetter]:
    """Give the dead letters by source key."""
    found = listing(harness.databases.state, None, None, 0).letters
    return {repr(each.letter.key): each for each in found}


# --- the environment ----------------------------------------------------------------------------------------


def test_an_unreachable_server(harness: Harness) -> None:
    """Exit 3 within the server selection time."""
    harness.settings = {
        "source.uri": f"mongodb://127.0.0.1:9/?replicaSet=rs0&serverSelectionTimeoutMS={SELECTION * 1000}"
    }
    outcome = distributary(harness, "run")
    outcome.assert_told(3, "cannot be reached", "127.0.0.1:9")
    assert outcome.seconds < SELECTION + PROCESS


def test_a_server_that_is_no_replica_set(harness: Harness, tmp_path: Path) -> None:
    """Exit 3 and how to make it one."""
    with mongod(tmp_path / "standalone") as address:
        harness.settings = {"source.uri": f"mongodb://{address}/"}
        distributary(harness, "run").assert_told(3, "standalone", "rs.initiate()")


def test_wrong_credentials(harness: Harness, server: Secured) -> None:
    """Exit 3, without the password."""
    harness.settings = {"source.uri": server.uri("admin", f"not-{PASSWORD}")}
    outcome = distributary(harness, "run")
    outcome.assert_told(3, "user or the password")
    assert PASSWORD not in outcome.err
    assert outcome.seconds < SELECTION + PROCESS


def test_no_credentials(harness: Harness, server: Secured) -> None:
    """Exit 3 when the server asks for a user and nobody was named."""
    harness.settings = {"source.uri": f"mongodb://{server.address}/?replicaSet=rs0"}
    distributary(harness, "run").assert_told(3, "privilege is missing", "authentication")


@pytest.mark.parametrize("role", [Role.SOURCE, Role.DERIVED, Role.STATE])
def test_a_missing_privilege(harness: Harness, server: Secured, role: Role) -> None:
    """Exit 3 and the name of the verb that lists what is needed, whichever database it is on."""
    names = {
        Role.SOURCE: harness.databases.raw.name,
        Role.DERIVED: harness.databases.derived.name,
        Role.STATE: harness.databases.state.name,
    }
    granted = [
        {"resource": {"db": names[need.role], "collection": ""}, "actions": list(need.actions)}
        for need in NEEDS
        if need.role in names and need.role is not role
    ]
    server.admin[harness.databases.raw.name].orders.insert_one({"_id": 1})
    harness.settings = {"source.uri": server.user(f"not_{role}", granted)}
    outcome = distributary(harness, "run")
    outcome.assert_told(3, "privilege is missing", "distributary check")
    assert outcome.seconds < SELECTION + PROCESS


# --- the configuration --------------------------------------------------------------------------------------


def test_every_fault_of_the_configuration_is_told_with_key_and_cure(harness: Harness, tmp_path: Path) -> None:
    """Exit 2 with all of them at once."""
    path = tmp_path / "bad.toml"
    path.write_text('[worker]\nbatch_chnages = 5\nlinger_milliseconds = "soon"\n[log]\nformat = "xml"\n')
    outcome = distributary(harness, "run", "-c", str(path))
    outcome.assert_told(2, "batch_changes", "worker.linger_milliseconds", "log.format", faults=3)


def test_a_missing_folder_and_a_broken_one_are_told_together(harness: Harness, tmp_path: Path) -> None:
    """Exit 2 with the key of the one, and file and line of the other."""
    harness.write({"broken": "x = 1\ny = x / 0\n"})
    harness.settings = {"worker.transformers": f'["{tmp_path}/missing", "{harness.folder}"]'}
    distributary(harness, "run").assert_told(2, "worker.transformers", "missing", "broken.py:2", faults=2)


def test_no_transforms(harness: Harness) -> None:
    """Exit 2 when the modules hold no transform, and when there is no module."""
    harness.write({"empty": "x = 1"})
    distributary(harness, "run").assert_told(2, "worker.transformers", "no transform")
    harness.write({})
    distributary(harness, "run").assert_told(2, "worker.transformers", "no transform module")


# --- transforms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        pytest.param("raise KeyError('total')", ["KeyError", "total"], id="raises"),
        pytest.param("import sys; sys.exit(1)", ["SystemExit"], id="wants to leave"),
        pytest.param("yield {'a': 1}", ["dict", "not a record"], id="yields something else"),
        pytest.param("yield parts.record(None, {})", ["parts", "no key"], id="no key"),
        pytest.param("yield parts.record([1], {})", ["parts", "no list"], id="a list as key"),
        pytest.param(
            "yield parts.record(order['_id'], {'a': 1})", ["parts", "twice"], id="the same key twice"
        ),
        pytest.param("yield parts.record(1.0, {}); yield parts.record(1, {})", ["twice"], id="equal keys"),
        pytest.param("yield parts.record('x', {'a': object()})", ["cannot be stored as BSON"], id="no BSON"),
        pytest.param(
            "yield parts.record('x', {'a': 2**64})", ["cannot be stored as BSON"], id="too large a number"
        ),
        pytest.param(
            "yield parts.record('x', {'a': {1: 2}})", ["cannot be stored as BSON"], id="number as name"
        ),
        pytest.param(
            "yield parts.record('x', {'a\\0': 2})", ["cannot be stored as BSON"], id="null in a name"
        ),
        pytest.param(
            "yield parts.record('x', {'_src': 1})", ["'_src'", "the engine's"], id="the engine's field"
        ),
        pytest.param("yield parts.record('x', {'$a': 1})", ["dollar"], id="a dollar"),
        pytest.param("yield parts.record('x', {'a': 'b' * 2**24})", ["16 MB"], id="over 16 MB"),
        pytest.param("yield from (parts.record(n, {}) for n in range(60))", ["more than 50"], id="too many"),
        pytest.param(
            "yield from (parts.record(n, {}) for n in iter(int, 1))", ["more than 50"], id="endless"
        ),
        pytest.param(
            "yield parts.record({'a': Regex('x')}, {'b': 1}); 1 / 0", ["ZeroDivision"], id="half way"
        ),
        pytest.param("order['_id'] = 9; raise ValueError(order['_id'])", ["ValueError"], id="forges the key"),
    ],
)
def test_a_bad_transform_parks_its_documents(harness: Harness, bad: str, words: list[str]) -> None:
    """A dead letter names transform, source key and reason; the others of the batch are derived."""
    harness.write({"tried": MODULE.format(bad=bad)})
    harness.settings = {"worker.max_records": "50"}
    harness.databases.raw.orders.insert_many([{"_id": "a"}, {"_id": "b", "bad": True}, {"_id": "c"}])
    harness.catch_up()
    (letter,) = [each.letter for each in letters(harness).values()]
    assert (letter.transform, letter.source, letter.key) == ("tried", "orders", "b")
    assert all(word in letter.reason for word in words), letter.reason
    assert sorted(each["_id"] for each in harness.databases.derived.parts.find()) == ["a", "c"]


def test_bad_documents_in_the_stream_are_parked_as_well(harness: Harness) -> None:
    """The position passes them, and a later success resolves the letter."""
    harness.write({"tried": MODULE.format(bad="raise ValueError('bad')")})
    caught_up(harness)
    orders = harness.databases.raw.orders
    orders.insert_many([{"_id": "a"}, {"_id": "b", "bad": True}, {"_id": "c"}])
    caught_up(harness)
    assert list(letters(harness)) == ["'b'"]
    orders.update_one({"_id": "b"}, {"$unset": {"bad": 1}})
    caught_up(harness)
    assert not letters(harness)
    assert sorted(each["_id"] for each in harness.databases.derived.parts.find()) == ["a", "b", "c"]


def test_a_record_that_the_server_refuses_is_parked_alone(harness: Harness) -> None:
    """A unique index of the user's parks one document, and the rest of the batch is written."""
    harness.databases.derived.parts.create_index("is", unique=True)
    harness.databases.raw.orders.insert_many([{"_id": n, "is": n} for n in range(5)] + [{"_id": 9, "is": 3}])
    harness.catch_up()
    (letter,) = [each.letter for each in letters(harness).values()]
    assert letter.kind == "refused"
    assert letter.key in {3, 9}
    assert harness.databases.derived.parts.count_documents({}) == 5


@pytest.mark.parametrize(
    "change",
    ["order.pop('_id')", "order.clear()", "order['_id'].clear()", "order['_id'] = 1", "order['is'].clear()"],
)
def test_a_transform_that_changes_its_document_harms_no_other(harness: Harness, change: str) -> None:
    """Neither another transform of the same document nor another document sees the change."""
    changing = f"""
        from distributary import DerivedCollection, transform

        seen = DerivedCollection("seen")

        @transform("orders")
        def changing(order):
            key = dict(order["_id"])
            {change}
            yield seen.record(key, {{"left": len(order)}})
    """
    documents = [{"_id": {"n": n}, "is": {"a": n}} for n in range(20)]
    harness.settings = {"worker.scan_documents": "7"}
    for modules in ({"changing": changing}, {"changing": changing, "tried": MODULE.format(bad="pass")}):
        harness.write(modules)
        harness.databases.raw.orders.delete_many({})
        harness.databases.raw.orders.insert_many(documents)
        harness.catch_up()
    harness.databases.raw.orders.update_many({}, {"$set": {"x": 1}})
    harness.catch_up()
    assert not letters(harness)
    parts = list(harness.databases.derived.parts.find({}, {"_src": 0}).sort("_id", 1))
    assert parts == documents
    assert harness.databases.derived.seen.count_documents({}) == len(documents)
    assert harness.verified().equal


# --- documents ----------------------------------------------------------------------------------------------


def raw_string(name: str, value: bytes, key: bytes = b"") -> RawBSONDocument:
    """Give `{_id: key or name, is: value}` in which the strings are these bytes, valid UTF-8 or not."""
    fields = _element(b"_id", key or name.encode()) + _element(b"is", value)
    return RawBSONDocument((len(fields) + 5).to_bytes(4, "little") + fields + b"\0")


def _element(name: bytes, value: bytes) -> bytes:
    return b"\x02" + name + b"\0" + (len(value) + 1).to_bytes(4, "little") + value + b"\0"


ODD: list[dict[str, Any]] = [
    {"_id": "year 20000", "is": DatetimeMS(569_000_000_000_000)},
    {"_id": "long ago", "is": DatetimeMS(-(2**62))},
    {"_id": DatetimeMS(569_000_000_000_001), "is": 1},
    {"_id": float("nan"), "is": float("nan")},
    {"_id": Decimal128("-Infinity"), "is": Decimal128("NaN")},
    {"_id": {"a": {"b": [1, 2]}, "c": float("nan")}, "is": {}},
    {"_id": {}, "is": [[[]]]},
    {"_id": "dots", "is": {"a.b": 1, "": 2, "$c": {"$d.e": 3}}},
    {"_id": "null in a text", "is": "a\0b"},
    {"_id": "top", "a.b": 1, "is": 1},
    {"_id": "", "is": Binary(b"x", 128)},
]


@pytest.mark.parametrize("when", ["scanned", "inserted", "updated"])
def test_odd_documents_are_derived(harness: Harness, when: str) -> None:
    """Dates outside Python's range, odd keys, dots and dollars go through unchanged, on every way in."""
    orders = harness.databases.raw.orders
    if when != "scanned":
        harness.catch_up()
    orders.insert_many(ODD)
    if when == "updated":
        harness.catch_up()
        orders.update_many({}, {"$set": {"more": 1}})
    harness.catch_up()
    assert not letters(harness)
    expected = [encode({"_id": each["_id"], "is": each["is"]}) for each in orders.find()]
    assert sorted(_without_origin(harness)) == sorted(expected)


def _without_origin(harness: Harness) -> list[bytes]:
    return [encode(each) for each in harness.databases.derived.parts.find({}, {"_src": 0})]


@pytest.mark.parametrize("when", ["scanned", "inserted", "updated"])
def test_invalid_utf8_is_parked_where_it_would_be_stored(harness: Harness, when: str) -> None:
    """In a value or a key it ends in a dead letter; elsewhere it does not matter, and neighbours are derived."""
    harness.settings = {"worker.scan_documents": "1"}
    orders = harness.databases.raw.orders
    if when != "scanned":
        harness.catch_up()
    orders.insert_one(raw_string("value", b"\xff\xfe"))
    orders.insert_one(raw_string("key", b"fine", key=b"k\xff"))
    orders.insert_one({"_id": "fine", "is": 1})
    if when == "updated":
        harness.catch_up()
        orders.update_many({}, {"$set": {"more": 1}})
    harness.catch_up()
    reasons = [each.letter.reason for each in letters(harness).values()]
    assert len(reasons) == 2, reasons
    assert any("cannot be stored as BSON" in each for each in reasons)
    assert any("source key" in each and "UTF-8" in each for each in reasons)
    assert [each["_id"] for each in harness.databases.derived.parts.find()] == ["fine"]
    shown = distributary(harness, "dead-letters", "list")
    assert shown.code == 0, shown.err


# --- collections --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["derived", "state"])
def test_writing_into_the_source_is_refused(harness: Harness, section: str) -> None:
    """Exit 2 by name, and also when the server goes by another host name."""
    loop = {f"{section}.database": harness.databases.raw.name}
    harness.settings = loop
    distributary(harness, "run").assert_told(2, f"{section}.database", "source.database")
    harness.settings = loop | {"derived.uri": harness.databases.uri.replace("127.0.0.1", "localhost")}
    distributary(harness, "run").assert_told(2, f"{section}.database", "loop")


def test_two_transform_modules_with_one_target_are_refused(harness: Harness) -> None:
    """Exit 2 naming both places."""
    second = MODULE.format(bad="pass").replace("tried", "second")
    harness.write({"tried": MODULE.format(bad="pass"), "second": second})
    distributary(harness, "run").assert_told(2, "parts", "tried.py:5", "second.py:5")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        pytest.param({"viewOn": "others", "pipeline": []}, "view", id="view"),
        pytest.param({"timeseries": {"timeField": "at"}}, "timeseries", id="time series"),
        pytest.param({"collation": {"locale": "en", "strength": 1}}, "collation", id="collation"),
    ],
)
def test_unsuitable_sources_are_refused(harness: Harness, options: dict[str, Any], word: str) -> None:
    """Exit 3 with the reason, before anything is written."""
    harness.databases.raw.create_collection("orders", **options)
    distributary(harness, "run").assert_told(3, "orders", word)
    assert harness.databases.derived.list_collection_names() == []


def test_edits_by_hand_are_found_and_repaired(harness: Harness) -> None:
    """`verify` names each difference with exit 1, `--repair` restores what was there."""
    harness.databases.raw.orders.insert_many([{"_id": n, "is": n} for n in range(5)])
    harness.catch_up()
    parts = harness.databases.derived.parts
    parts.delete_one({"_id": 1})
    parts.update_one({"_id": 2}, {"$set": {"is": 9}})
    parts.update_one({"_id": 3}, {"$unset": {"_src": 1}})
    parts.insert_one({"_id": 99})
    found = distributary(harness, "verify")
    assert found.code == 1, found.err
    assert "different: 1 missing, 2 stale, 1 orphaned" in found.out
    repaired = distributary(harness, "verify", "--repair")
    assert repaired.code == 0, repaired.out + repaired.err
    assert distributary(harness, "verify").code == 0
    harness.assert_equal()
