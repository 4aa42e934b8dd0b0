"""What authors test their transforms with: `derive`, `apply`, `load`, and the pytest plugin."""

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent
from typing import Any
from uuid import UUID, uuid4

import pytest
from bson import Decimal128, ObjectId, Timestamp

from distributary import DerivedCollection, Record, transform
from distributary.config.model import Worker
from distributary.derive.transform import Failure
from distributary.derive.transform import derive as engine_derive
from distributary.errors import ConfigurationError, EnvironmentFault
from distributary.plugins import transform_of
from distributary.testing import (
    MAX_RECORDS,
    Change,
    Deleted,
    NotDerived,
    NotPure,
    Records,
    apply,
    derive,
    load,
)

NOON = datetime(2025, 3, 4, 12, tzinfo=UTC)

summaries = DerivedCollection("summaries")
lines = DerivedCollection("lines")
by_code = DerivedCollection("by_code")


@transform("orders")
def orders(order: dict[str, Any]) -> Iterator[Record]:
    """Give a record of its own, one per line, and one under a key that moves."""
    yield summaries.record(order["_id"], {"total": order["total"]})
    for number, sku in enumerate(order.get("skus", []), start=1):
        yield lines.record({"order": order["_id"], "line": number}, {"sku": sku})
    if "code" in order:
        yield by_code.record(order["code"], {"order": order["_id"]})


@transform("customers")
def customers(customer: dict[str, Any]) -> Record:
    """Give a record of a collection that another transform fills, too."""
    return by_code.record(customer["code"], {"customer": customer["_id"]})


def order(key: Any = 1, **fields: Any) -> dict[str, Any]:
    """Give an order."""
    return {"_id": key, "total": 5} | fields


def stored(database: Any, collection: str) -> dict[Any, Any]:
    """Give the records of a collection without the engine's field, by key; documents as their items."""
    found = list(database[collection].find({}, {"_src": False}))
    return {tuple(key.items()) if isinstance(key := each.pop("_id"), dict) else key: each for each in found}


# --- derive -------------------------------------------------------------------------------------------------


def test_what_a_document_yields_is_given_by_collection_and_key() -> None:
    """`{collection: {key: fields}}`, with neither `_id` nor `_src`, equal to plain dicts."""
    assert derive(orders, order(code="X")) == {
        "summaries": {1: {"total": 5}},
        "by_code": {"X": {"order": 1}},
    }


def test_a_record_is_looked_up_by_a_key_that_is_a_document() -> None:
    """Keys that a dict cannot hold are written as they are yielded; the order of their fields counts."""
    found = derive(orders, order(skus=["A", "B"]))["lines"]
    assert found[{"order": 1, "line": 2}] == {"sku": "B"}
    assert {"line": 2, "order": 1} not in found
    assert list(found) == [{"order": 1, "line": 1}, {"order": 1, "line": 2}]
    assert found == [({"order": 1, "line": 2}, {"sku": "B"}), ({"order": 1, "line": 1}, {"sku": "A"})]
    assert repr(found) == "{{'order': 1, 'line': 1}: {'sku': 'A'}, {'order': 1, 'line': 2}: {'sku': 'B'}}"


@pytest.mark.parametrize(
    "other",
    [
        {},
        {1: {"a": 2}},
        {1: {"a": 1}, 2: {}},
        [(1, {"a": 1}), (1, {"a": 1})],
        [1],
        "text",
        [(1, {"a": 1}, 2)],
    ],
)
def test_records_differ_from_what_is_not_the_same(other: object) -> None:
    """Other fields, more or fewer records, a key twice, and what is no list of pairs."""
    assert Records([(1, {"a": 1})]) != other


def test_keys_are_those_of_mongodb() -> None:
    """1, 1.0 and Decimal128("1") are one key, True is another one."""
    records = Records([(1, {"a": 1})])
    assert records[1.0] == records[Decimal128("1")] == {"a": 1}
    assert True not in records
    assert records == {1.0: {"a": 1}}


def test_a_key_that_is_not_there_is_told_with_those_that_are() -> None:
    """A failing test says what there is."""
    with pytest.raises(KeyError, match=r"no record has the key 2; there are: 1"):
        derive(orders, order())["summaries"][2]


def test_a_collection_without_records_is_empty_and_an_unknown_one_an_error() -> None:
    """What the transform names can be asked for; a slip of the pen is told."""
    found = derive(orders, order())
    assert found["lines"] == {}
    assert "lines" not in found
    with pytest.raises(KeyError, match="'line'; it names: by_code, lines, summaries"):
        found["line"]


def test_values_are_those_that_are_stored() -> None:
    """The document comes as MongoDB gives it, and the records are as MongoDB keeps them."""
    given = []

    @transform("raw")
    def seen(document: dict[str, Any]) -> Record:
        given.append(document["at"])
        return lines.record(document["_id"], {"at": document["at"], "some": (1, 2), "id": UUID(int=7)})

    at = datetime(2025, 1, 1, 1, 2, 3, 456789, tzinfo=UTC)
    kept = at.replace(microsecond=456000)
    assert derive(seen, {"_id": 1, "at": at})["lines"][1] == {"at": kept, "some": [1, 2], "id": UUID(int=7)}
    assert given == [kept, kept]


def test_it_is_the_engine_that_derives(tmp_path: Path) -> None:
    """The same reason as in a dead letter, and the transform's own exception behind it."""
    engines = engine_derive(transform_of(orders), {"_id": 3}, MAX_RECORDS)
    assert isinstance(engines, Failure)
    with pytest.raises(NotDerived, match="orders does not derive 3") as raised:
        derive(orders, {"_id": 3})
    assert raised.value.reason == engines.reason == "KeyError: 'total'"
    assert isinstance(raised.value.__cause__, KeyError)
    assert isinstance(raised.value, AssertionError)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ({"a": 1}, "not a record"),
        (lines.record(None, {}), "no key"),
        (lines.record(1, {"_src": 1}), "the engine's"),
        ([lines.record(1, {}), lines.record(1.0, {})], "twice from one document"),
        (lines.record(1, {"a": object()}), "cannot be stored as BSON"),
    ],
)
def test_what_cannot_be_stored_is_not_derived(output: Any, reason: str) -> None:
    """Bad records fail a test as they park a document."""
    with pytest.raises(NotDerived, match=reason):
        derive(transform("raw", name="bad")(lambda _: output), {"_id": 1})


def test_the_limit_of_records_is_the_configuration_s() -> None:
    """The default is that of worker.max_records, and another one can be given."""
    assert Worker.model_fields["max_records"].default == MAX_RECORDS
    with pytest.raises(NotDerived, match="more than 2 records"):
        derive(orders, order(skus=["A", "B"]), max_records=2)


@pytest.mark.parametrize(
    ("value", "culprit"),
    [
        (lambda: datetime.now(UTC), "a clock"),
        (time.time_ns, "a clock"),
        (random.random, "chance"),
        (uuid4, "chance"),
        (ObjectId, "chance"),
    ],
)
def test_an_impure_transform_is_told_with_the_likely_culprit(
    value: Callable[[], object], culprit: str
) -> None:
    """Two calls that differ fail, naming the place and what to look for."""

    @transform("raw")
    def impure(_: dict[str, Any]) -> Record:
        return lines.record(1, {"deep": {"down": [0, value()]}})

    with pytest.raises(NotPure, match=rf"(?s)lines\[1\]\.deep\.down\[1\] is .*It looks like {culprit}"):
        derive(impure, {"_id": 1})


def test_keys_that_differ_are_told() -> None:
    """A key made by chance would leave a stale record each time."""
    with pytest.raises(NotPure, match=r"comes one time and not the other\. It looks like chance"):
        derive(transform("raw", name="keys")(lambda _: lines.record(ObjectId(), {})), {"_id": 1})


def test_state_between_calls_is_told() -> None:
    """A transform that fails the second time keeps something."""
    seen = set[Any]()

    @transform("raw")
    def once(document: dict[str, Any]) -> Record:
        if document["_id"] in seen:
            raise LookupError("seen")
        seen.add(document["_id"])
        return lines.record(1, {})

    with pytest.raises(NotPure, match="the second time: it fails with LookupError: seen"):
        derive(once, {"_id": 1})


def test_a_transform_that_changes_its_document_is_told() -> None:
    """Code behind the change would see another document."""

    @transform("raw")
    def rude(document: dict[str, Any]) -> Record:
        document.setdefault("lines", [])
        return lines.record(1, {})

    mine = {"_id": 1}
    with pytest.raises(NotPure, match="rude changes the document"):
        derive(rude, mine)
    assert mine == {"_id": 1}


def test_what_is_no_transform_is_told() -> None:
    """The decorator may have been forgotten."""
    with pytest.raises(TypeError, match="mark it with @transform"):
        derive(lambda _: None, {})


def test_what_is_no_document_is_told() -> None:
    """The test's own document is at fault, not the transform."""
    with pytest.raises(ValueError, match="MongoDB cannot hold this document"):
        derive(orders, {"_id": object()})


def test_a_record_of_an_unnamed_collection_fails_as_in_a_worker(tmp_path: Path) -> None:
    """Of a module that was loaded, the engine's reading of its code counts."""
    text = """
        from distributary import DerivedCollection, transform
        out = DerivedCollection("out")
        @transform("raw")
        def sly(document):
            yield globals()["out"].record(1, {})
        """
    (tmp_path / "sly.py").write_text(dedent(text), encoding="utf-8")
    with pytest.raises(NotDerived, match="which the transform's code does not name"):
        derive(load(tmp_path / "sly.py").sly, {"_id": 1})


# --- apply --------------------------------------------------------------------------------------------------


def test_what_a_document_no_longer_yields_is_gone() -> None:
    """Keys that move, lines that vanish and deleted documents leave no stale record."""
    database = apply(orders, [order(skus=["A", "B"], code="X"), order(skus=["C"], code="Y"), order(2)])
    assert stored(database, "lines") == {(("order", 1), ("line", 1)): {"sku": "C"}}
    assert stored(database, "by_code") == {"Y": {"order": 1}}
    assert set(stored(database, "summaries")) == {1, 2}
    apply(orders, [Deleted(1)], database)
    assert set(stored(database, "summaries")) == {2}
    assert stored(database, "lines") == stored(database, "by_code") == {}


def test_records_are_stored_as_a_worker_stores_them() -> None:
    """The engine's field says who derived a record, from what, and when."""
    database = apply(orders, [order(), order(2)])
    (first, second) = database["summaries"].find().sort("_id")
    assert first == {
        "_id": 1,
        "total": 5,
        "_src": {"by": "orders", "key": 1, "at": Timestamp(1, 1), "epoch": 1},
    }
    assert second["_src"]["at"] > first["_src"]["at"]


def test_the_database_can_be_queried() -> None:
    """Dates come back in UTC, and nested keys are found."""
    database = apply(orders, [order(skus=["A"], total=NOON)])
    assert database["summaries"].find_one({"total": {"$lte": NOON}}, {"_src": 0}) == {"_id": 1, "total": NOON}
    assert database["lines"].count_documents({"_id.order": 1}) == 1


@pytest.mark.parametrize("key", ["a", 1, 1.5, NOON, b"x", ObjectId(), {"a": {"b": NOON}}, True, UUID(int=1)])
def test_records_of_any_key_move_and_go(key: Any) -> None:
    """A record is replaced and removed whatever its key is."""
    database = apply(orders, [order(code=key), order(code="away"), order(code=key)])
    assert database["by_code"].count_documents({}) == 1
    apply(orders, [order(code=key), Deleted(1)], database)
    assert database["by_code"].count_documents({}) == 0


def test_several_collections() -> None:
    """With several sources each change says whose it is."""
    changes: list[Change] = [
        ("orders", order(code="X")),
        ("customers", {"_id": "C", "code": "Y"}),
        ("orders", Deleted(1)),
    ]
    assert stored(apply([orders, customers], changes), "by_code") == {"Y": {"customer": "C"}}


def test_a_contested_key_names_both_owners() -> None:
    """What would be parked at the end fails the test."""
    changes = [("orders", order(code="X")), ("customers", {"_id": "C", "code": "X"})]
    reason = r"customers does not derive 'C'.*by_code\['X'\], which source document 1 owns \(orders\)"
    with pytest.raises(NotDerived, match=reason):
        apply([orders, customers], changes)


def test_a_contested_document_waits_for_its_key() -> None:
    """As with a worker it gets the key when that is free, also in a swap."""
    waits = [order(1, code="X"), order(2, code="X"), order(1, code="Y")]
    assert stored(apply(orders, waits), "by_code") == {"X": {"order": 2}, "Y": {"order": 1}}
    swap = [order(1, code="Y"), order(2, code="X"), order(1, code="X"), order(2, code="Y")]
    assert stored(apply(orders, swap), "by_code") == {"X": {"order": 1}, "Y": {"order": 2}}


def test_contested_documents_that_hold_each_other_up_come_to_rest() -> None:
    """Three documents that want what the others have, and one that never lets go."""
    changes = [order(1, code="X"), order(2, code="Y"), order(3, code="Z"), order(4, code="K")]
    changes += [order(1, code="Y"), order(2, code="Z"), order(3, code="K")]
    with pytest.raises(NotDerived, match="which source document"):
        apply(orders, changes)
    assert set(stored(apply(orders, [*changes, Deleted(4)]), "by_code")) == {"Y", "Z", "K"}


def test_a_document_that_fails_fails_the_test() -> None:
    """The reason is the dead letter's, behind it the transform's exception."""
    with pytest.raises(NotDerived, match="KeyError: 'total'") as raised:
        apply(orders, [order(), {"_id": 2}])
    assert isinstance(raised.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("functions", "change", "error"),
    [
        (orders, ("other", order()), "none of these transforms reads 'other'; they read: orders"),
        ([orders, customers], order(), "say of which collection"),
        (orders, {"total": 1}, "has no _id"),
        (orders, 7, "7 is no change"),
    ],
)
def test_bad_changes_are_told(functions: Any, change: Any, error: str) -> None:
    """The test itself is at fault."""
    with pytest.raises((ValueError, TypeError), match=error):
        apply(functions, [change])


def test_without_mongomock_the_cure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `apply` needs it."""
    monkeypatch.setitem(sys.modules, "mongomock", None)
    assert derive(orders, order())["summaries"]
    with pytest.raises(EnvironmentFault, match=r"pip install 'distributary\[testing\]'"):
        apply(orders, [order()])


# --- load ---------------------------------------------------------------------------------------------------


def test_a_module_is_loaded_as_a_worker_loads_it(tmp_path: Path) -> None:
    """By its path, in a private namespace, with its neighbours; a module without a transform, too."""
    (tmp_path / "_money.py").write_text("CENTS = 100\n", encoding="utf-8")
    text = """
        from distributary import DerivedCollection, transform
        from ._money import CENTS
        out = DerivedCollection("out")
        @transform("raw")
        def cents(document):
            yield out.record(document["_id"], {"cents": document["euros"] * CENTS})
        """
    (tmp_path / "json.py").write_text(dedent(text), encoding="utf-8")
    assert derive(load(tmp_path / "json.py").cents, {"_id": 1, "euros": 2}) == {"out": {1: {"cents": 200}}}
    assert load(tmp_path / "_money.py").CENTS == 100
    assert str(tmp_path) not in sys.path


def test_faults_of_a_module_are_the_loader_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File, line and cure."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("x = 1\nimport nothing_of_that_name\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"bad\.py:2: ModuleNotFoundError.*Install the package"):
        load("bad.py")
    for none in ("none.py", "."):
        with pytest.raises(ConfigurationError, match=r"there is no such `\.py` file"):
            load(none)


# --- the plugin ---------------------------------------------------------------------------------------------


def test_importing_it_is_light() -> None:
    """The plugin is imported in every run of pytest, so it imports neither the driver nor mongomock."""
    code = "import sys, distributary.testing.plugin; print({'pymongo', 'mongomock', 'pydantic'} & {*sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"


@pytest.mark.parametrize(("ci", "outcome", "code"), [("", "1 skipped", 0), ("true", "1 error", 1)])
def test_without_a_mongod_a_test_skips_on_a_laptop_and_fails_in_ci(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: str, code: int
) -> None:
    """The fixture is found without a word in the test's configuration, and tells the reason."""
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("DISTRIBUTARY_MONGOD", str(tmp_path / "none"))
    (tmp_path / "test_it.py").write_text("def test_it(distributary_mongo): ...\n", encoding="utf-8")
    command = [sys.executable, "-W", "error", "-m", "pytest", "-rsE", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, outcome in done.stdout) == (code, True), done.stdout
    assert "DISTRIBUTARY_MONGOD names" in done.stdout
