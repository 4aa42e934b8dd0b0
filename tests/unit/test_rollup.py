"""Rollups: what is refused in one, the groups of records, and when two results agree."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import reduce
from itertools import permutations
from operator import add
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from bson import DBRef, Decimal128, Int64, ObjectId, Regex, encode
from hypothesis import given
from hypothesis import strategies as st

from distributary.change import CODEC, identity
from distributary.derive.records import BadRecord, DerivedCollection
from distributary.derive.registry import Registry
from distributary.derive.rollup import (
    ACCUMULATORS,
    Rollup,
    agree,
    canonical,
    computed,
    computing,
    group_of,
    problems,
    unsuitable,
    within,
)
from distributary.derive.transform import derive_or_raise
from distributary.errors import ConfigurationError
from distributary.plugins import load

over = DerivedCollection("over")


def rollup(by: Any = "a", compute: Any = None, match: Any = None, **fields: Any) -> Rollup:
    """Give a rollup."""
    return Rollup("sums", over, by, {"n": {"$sum": 1}} if compute is None else compute, match, **fields)


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (rollup(""), "names no field|empty"),
        (rollup([]), "names no field"),
        (rollup(3), "names no field"),
        (rollup(["a", 3]), "names no field"),
        (rollup("a..b"), "empty"),
        (rollup("$a"), "dollar"),
        (rollup("a.$b"), "dollar"),
        (rollup("_src.by"), "engine's"),
        (rollup("_id"), "every record"),
        (rollup(["a", "_id"]), "every record"),
        (rollup(["a.b", "a_b"]), "two fields have one name"),
        (rollup(["a", "a"]), "two fields have one name"),
        (rollup(compute={}), "computes nothing"),
        (rollup(compute=[]), "computes nothing"),
        (rollup(compute={"_id": {"$sum": 1}}), "cannot compute a field '_id'"),
        (rollup(compute={"_src": {"$sum": 1}}), "cannot compute a field '_src'"),
        (rollup(compute={"a.b": {"$sum": 1}}), "cannot compute a field"),
        (rollup(compute={"$a": {"$sum": 1}}), "cannot compute a field"),
        (rollup(compute={3: {"$sum": 1}}), "cannot compute a field"),
        (rollup(compute={"n": "$a"}), "not one accumulator"),
        (rollup(compute={"n": {"$sum": 1, "$avg": 1}}), "not one accumulator"),
        (rollup(compute={"n": {"$push": "$a"}}), "depends on the order"),
        (rollup(compute={"n": {"$first": "$a"}}), "depends on the order"),
        (rollup(compute={"n": {"$mergeObjects": "$a"}}), "depends on the order"),
        (rollup(compute={"n": {"$top": {"sortBy": {"at": -1}, "output": "$a"}}}), "leaves open"),
        (rollup(compute={"n": {"$bottomN": {"n": 1, "output": "$a"}}}), "leaves open"),
        (rollup(compute={"n": {"$sum": {"$rand": {}}}}), r"\$rand"),
        (rollup(compute={"n": {"$max": ["$a", "$$NOW"]}}), r"\$\$NOW"),
        (rollup(match={"$expr": {"$gt": ["$at", "$$CLUSTER_TIME"]}}), r"\$\$CLUSTER_TIME"),
        (rollup(match={"$or": [{"a": 1}, {"$where": "true"}]}), r"\$where"),
        (rollup(match=[]), "no query"),
        (rollup(match={"a": object()}), "BSON"),
    ],
)
def test_what_cannot_be_is_refused(bad: Rollup, problem: str) -> None:
    """Everything that is known to be wrong without a server has a problem and a cure."""
    found = list(problems(bad))
    assert found
    assert re.search(problem, "; ".join(each.problem for each in found))
    assert all(each.cure for each in found)


@pytest.mark.parametrize(
    "good",
    [
        *(rollup(compute={"n": {name: "$a"}}) for name in ACCUMULATORS),
        rollup(compute={"n": {"$topN": {"n": 2, "sortBy": {"at": -1, "_id": 1}, "output": "$a"}}}),
        rollup(compute={"n": {"$sum": {"$cond": [{"$eq": ["$a", {"$literal": "$$NOW"}]}, 1, 0]}}}),
        rollup(["a", "_id.line", "b.c"], match={"a": {"$gt": 1}}),
    ],
)
def test_what_can_be_is_not(good: Rollup) -> None:
    """The accumulators whose result does not depend on order pass, and totally ordered ones."""
    assert not list(problems(good))


MODULE = """
    from distributary import DerivedCollection, Rollup, transform

    one = DerivedCollection("one")
    two = DerivedCollection("two", indexes=["a"])
    {rollups}

    @transform("raw")
    def first(document):
        yield one.record(document["_id"], {{"a": document["a"]}})

    @transform("raw")
    def second(document):
        yield two.record(document["_id"], {{}})
"""


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., Registry]:
    """Give what loads the module with some rollups."""

    def loading(*rollups: str, only: tuple[str, ...] = (), **files: str) -> Registry:
        text = dedent(MODULE).format(rollups="\n".join(rollups))
        for name, content in {"module": text, **files}.items():
            (tmp_path / f"{name}.py").write_text(dedent(content), encoding="utf-8")
        return load([tmp_path], only, entry_points=False)

    return loading


def refused(loaded: Callable[..., Registry], *rollups: str) -> str:
    """Give the faults of a module."""
    with pytest.raises(ConfigurationError) as error:
        loaded(*rollups)
    return str(error.value)


COUNT = 'compute={"n": {"$sum": 1}}'


def test_rollups_are_found_at_module_level(loaded: Callable[..., Registry]) -> None:
    """Those in lists too, in whichever module; each with its place, and apart from the collections."""
    beside = (
        f'from distributary import Rollup\nfrom .module import one\nmore = [Rollup("c", one, "a", {COUNT})]'
    )
    registry = loaded(
        f'x = Rollup("a", one, "a", {COUNT})', f'y = Rollup("b", two, "a", {COUNT})', other=beside
    )
    assert set(registry.rollups) == {"a", "b", "c"}
    assert set(registry.collections) == {"one", "two"}
    assert registry.declared == {"a", "b", "c", "one", "two"}
    assert registry.places["a"].endswith("module.py:6")
    assert registry.places["c"].endswith("other.py:3")
    assert registry.places["one"].endswith("module.py:4")
    assert {each.name for each in registry.transforms["first"].rollups["one"]} == {"a", "c"}


def test_only_the_rollups_over_chosen_collections_stay(loaded: Callable[..., Registry]) -> None:
    """A subset of the transforms has the rollups over what it fills."""
    rollups = (f'x = Rollup("a", one, "a", {COUNT})', f'y = Rollup("b", two, "a", {COUNT})')
    assert set(loaded(*rollups, only=("second",)).rollups) == {"b"}


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (f'x = Rollup("one", one, "a", {COUNT})', "has the name of a derived collection"),
        (
            f'x, y = Rollup("s", one, "a", {COUNT}), Rollup("s", two, "a", {COUNT})',
            "has the name of a rollup",
        ),
        (f'x = Rollup("s", DerivedCollection("three"), "a", {COUNT})', "no transform module declares"),
        (f'x = Rollup("s", Rollup("t", one, "a", {COUNT}), "a", {COUNT})', "cannot be over a rollup"),
        (f'x = Rollup("s", "one", "a", {COUNT})', "is over 'one'"),
        (f'x = Rollup("a$b", one, "a", {COUNT})', "cannot name a rollup"),
        (f'x = Rollup(3, one, "a", {COUNT})', "cannot name a rollup"),
        (f'x = Rollup("s", one, "a", {COUNT}, indexes="n")', "indexes that are no list"),
        ('x = Rollup("s", one, "a", {"n": {"$push": "$a"}})', "depends on the order"),
    ],
)
def test_faults_have_their_place(loaded: Callable[..., Registry], source: str, problem: str) -> None:
    """What is wrong with a rollup is told with its line."""
    text = refused(loaded, source)
    assert problem in text
    assert "module.py:6: " in text


def test_a_rollup_may_not_be_read_again(loaded: Callable[..., Registry]) -> None:
    """A rollup with the name of a source collection in the same database is a loop."""
    registry = loaded(f'x = Rollup("raw", one, "a", {COUNT})')
    with pytest.raises(ConfigurationError, match="rollup 'raw' has the database and the name"):
        registry.check_loop(source_db_is_derived_db=True)
    registry.check_loop(source_db_is_derived_db=False)


def test_a_record_that_fits_no_group_is_refused(loaded: Callable[..., Registry]) -> None:
    """The record, the field and the rollup are named; records of other collections are not looked at."""
    transforms = loaded(f'x = Rollup("sums", one, "a", {COUNT})').transforms
    with pytest.raises(
        BadRecord, match=r"record one\[1\]: field 'a', by which rollup 'sums' groups, is a list"
    ):
        derive_or_raise(transforms["first"], {"_id": 1, "a": [1]}, 10)
    assert len(derive_or_raise(transforms["first"], {"_id": 1, "a": {"b": [1]}}, 10)) == 1


def test_the_fingerprint_is_that_of_the_computation() -> None:
    """Indexes and the name do not count; what is computed, over what, by what and of which records does."""
    same = [rollup(), rollup(indexes=["n"]), Rollup("other", over, "a", {"n": {"$sum": 1}})]
    assert len({each.fingerprint for each in same}) == 1
    others = [
        rollup("b"),
        rollup(["a"]),
        rollup(compute={"n": {"$sum": 2}}),
        rollup(match={"a": 1}),
        Rollup("sums", DerivedCollection("else"), "a", {"n": {"$sum": 1}}),
    ]
    assert len({each.fingerprint for each in [rollup(), *others]}) == 6


# --- groups -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "document", "group"),
    [
        ("a", {"a": 1}, 1),
        ("a.b", {"a": {"b": "x"}}, "x"),
        ("a.b", {"a": 3}, None),
        ("a", {}, None),
        ("a", {"a": None}, None),
        ("a", {"a": [1]}, None),
        ("a.b", {"a": [{"b": 1}]}, None),
        ("a", {"a": False}, False),
        ("a", {"a": {}}, {}),
        (["a", "b.c"], {"a": 1, "b": {"c": 2.0}}, {"a": 1, "b_c": 2}),
        (["a", "b"], {"a": 1}, None),
        (["a"], {"a": 1}, {"a": 1}),
        ("_id.x", {"_id": {"x": 4}}, 4),
    ],
)
def test_the_group_of_a_record(by: Any, document: Mapping[str, Any], group: Any) -> None:
    """It is the same of a dict and of its bytes."""
    mine = rollup(by)
    assert group_of(mine, document) == group
    assert group_of(mine, encode(document, codec_options=CODEC)) == group


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1], "a list"),
        ((1,), "a list"),
        (Regex("a"), "regular expression"),
        ({"$gt": 1}, "dollar"),
        ({"a": [{"$b": 1}]}, "dollar"),
        (DBRef("c", 1), "dollar"),
    ],
)
def test_what_is_no_group_is_said(value: object, reason: str) -> None:
    """What MongoDB cannot look up, or does not take as a key, is named."""
    assert reason in unsuitable(rollup(), {"a": value})
    assert "'sums'" in unsuitable(rollup(), {"a": value})


@pytest.mark.parametrize(
    "value", [1, 1.5, "x", None, True, ObjectId(), datetime.now(UTC), {"a": [1]}, Decimal128("1"), b"x"]
)
def test_what_is_a_group_is_not(value: object) -> None:
    """All other values can be groups."""
    assert unsuitable(rollup(), {"a": value}) == ""


def test_equal_numbers_have_one_form() -> None:
    """The form of a group does not depend on the type that comes first."""
    for same in (
        [1, 1.0, Int64(1), Decimal128("1"), Decimal128("1.00"), Decimal128("1E0")],
        [0, -0.0, Decimal128("-0"), Decimal128("0E-10")],
        [2.5, Decimal128("2.5"), Decimal128("2.500")],
        [Decimal128("0.1"), Decimal128("0.10")],
        [float("inf"), Decimal128("Infinity")],
        [2**62, float(2**62), Decimal128(str(2**62))],
        [float(2**70), Decimal128(str(2**70))],
    ):
        forms = [canonical({"of": [each]}) for each in same]
        assert len({repr(encode(each)) for each in forms}) == 1, same
    assert str(canonical(Decimal128("NaN"))) == "nan"
    assert canonical(Decimal128("1E6000")) == Decimal128("1E6000")


NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.decimals(allow_nan=False, places=3, min_value=-(10**9), max_value=10**9).map(Decimal128),
    st.integers(-3, 3).map(lambda each: Decimal128(str(each))),
)


@given(NUMBERS, NUMBERS)
def test_forms_are_equal_exactly_when_values_are(first: Any, second: Any) -> None:
    """A form equals its value for MongoDB, and two forms have the same bytes exactly when their values are equal."""
    assert identity(canonical(first)) == identity(first)
    same_bytes = encode({"a": canonical(first)}) == encode({"a": canonical(second)})
    assert same_bytes == (identity(first) == identity(second))


def test_what_the_server_gave_is_read_as_groups() -> None:
    """What is no group is left out: null, lists, and groups of several fields with one missing."""
    assert computed(rollup(), {"_id": None, "n": 1, "_src": 1}) is None
    assert computed(rollup(), {"_id": [1], "n": 1, "_src": 1}) is None
    assert computed(rollup(["a", "b"]), {"_id": {"a": 1}, "n": 1, "_src": 1}) is None
    assert computed(rollup(["a", "b"]), {"_id": {"a": 1, "b": [1]}, "n": 1, "_src": 1}) is None
    found = computed(rollup(), {"_id": 1.0, "n": 5, "_src": 7})
    assert found is not None
    assert (found.group, found.document, found.records) == (1, {"_id": 1, "n": 5}, 7)


def test_groups_that_a_hand_made_find_nothing() -> None:
    """A stored key that is no group of several fields does not break the query."""
    assert within(rollup(["a", "b"]), ["nobody", {"a": 1}]) == {"$or": [{"$alwaysFalse": 1}]}
    assert within(rollup(["a", "b.c"]), [{"a": 1, "b_c": 2}]) == {
        "$or": [{"a": {"$eq": 1}, "b.c": {"$in": [2]}}]
    }


def test_groups_that_differ_in_the_last_field_are_one_branch() -> None:
    """A query of many groups has as few branches as can be; equal numbers of all types are one value."""
    groups = [{"a": 1, "b": 2}, {"a": 3, "b": 4}, {"a": 1.0, "b": 5}]
    assert within(rollup(["a", "b"]), groups) == {
        "$or": [{"a": {"$eq": 1}, "b": {"$in": [2, 5]}}, {"a": {"$eq": 3}, "b": {"$in": [4]}}]
    }


def test_the_stages_match_and_group() -> None:
    """The query comes first, and sets are sorted."""
    stages = computing(rollup("a.b", {"all": {"$addToSet": "$c"}}, {"d": 1}))
    assert [next(iter(each)) for each in stages] == ["$match", "$group", "$set"]
    assert stages[1]["$group"]["_id"] == "$a.b"


# --- results ------------------------------------------------------------------------------------------------


def test_sums_of_doubles_agree_in_any_order() -> None:
    """Whatever the order of summing is, two results agree; what differs by more does not."""
    sums = {reduce(add, each) for each in permutations([0.1, 0.7, 1e3, -3.3, 1e-7])}
    assert len(sums) > 1
    assert all(agree(first, second) for first in sums for second in sums)
    assert not agree(1.0, 1.0001)
    assert not agree(10**15, 10**15 + 1)
    assert agree(1, Decimal128("1.0"))
    assert agree(float("nan"), float("nan"))
    assert not agree(float("inf"), 1.0)
    assert not agree([True], [1])
    assert agree({"a": [0.1 + 0.2]}, {"a": [0.3]})
    assert not agree({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert not agree([1], [1, 2])
