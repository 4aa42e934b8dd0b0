"""The registry: what it answers, and every fault that it refuses, all at once."""

from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError
from functools import partial
from typing import Any

import pytest

from distributary.derive.faults import faults
from distributary.derive.fingerprint import Code
from distributary.derive.found import Declared, Found, Marked
from distributary.derive.naming import index_keys, shadowed, source_name_problem
from distributary.derive.records import DerivedCollection
from distributary.derive.registry import Registry, build
from distributary.derive.transform import Mark
from distributary.errors import ConfigurationError

Document = dict[str, Any]


def nothing(_document: Document) -> None:
    """Derive nothing."""


def marked(
    name: str,
    source: str = "raw",
    writes: Sequence[DerivedCollection] = (),
    *,
    place: str = "t.py:1",
    function: Callable[..., Any] = nothing,
    inline: tuple[int, ...] = (),
) -> Marked:
    """Give a transform as the loader would."""
    return Marked(Mark(source, name), function, place, Code(f"code of {name}", frozenset(writes), inline))


def problems(*transforms: Marked, collections: Sequence[DerivedCollection] = ()) -> list[str]:
    """Give the faults of one module as text."""
    declared = tuple(Declared(collection, f"t.py:{line}") for line, collection in enumerate(collections, 1))
    return [str(fault) for fault in faults([Found("t", transforms, declared)])]


def three() -> Registry:
    """Give a registry of three transforms over two sources."""
    a, b = DerivedCollection("a"), DerivedCollection("b")
    transforms = (marked("one", "y", [a]), marked("two", "x", [a, b]), marked("three", "y", []))
    return build([Found("t", transforms, (Declared(a, "t.py:1"), Declared(b, "t.py:2")))])


def test_it_finds_by_name_source_and_collection() -> None:
    """Transforms by name and by source in their order, sources sorted, owners by what the code names."""
    registry = three()
    assert registry.sources == ("x", "y")
    assert [transform.name for transform in registry.by_source["y"]] == ["one", "three"]
    assert registry.transforms["two"].collections == {"a", "b"}
    assert registry.transforms["two"].fingerprint == "code of two"
    assert registry.owners_of("a") == {"one", "two"}
    assert registry.owners_of("nothing") == frozenset()


def test_it_is_immutable() -> None:
    """Neither its fields nor its mappings can be written."""
    registry = three()
    with pytest.raises(FrozenInstanceError):
        registry.sources = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        registry.transforms["x"] = registry.transforms["one"]  # type: ignore[index]


def test_only_keeps_what_is_asked_for() -> None:
    """A subset has its transforms' sources and collections and no others; of no names it is the whole."""
    registry = three()
    subset = registry.only(["one"])
    assert (list(subset.transforms), list(subset.collections), subset.sources) == (["one"], ["a"], ("y",))
    assert registry.only([]) is registry


def test_only_names_what_is_unknown() -> None:
    """Every unknown name is a fault, with the name that was probably meant."""
    with pytest.raises(ConfigurationError) as raised:
        three().only(["thre", "one", "zzz"])
    close, far = map(str, raised.value.faults)
    assert close.startswith("worker.only: no transform is called 'thre'. Did you mean 'three'?")
    assert far == "worker.only: no transform is called 'zzz'. There are: one, three, two."


def test_a_loop_is_refused_in_one_database() -> None:
    """A derived collection named like a source is a loop only if both lie in the same database."""
    orders = DerivedCollection("orders")
    module = Found("t", (marked("copy", "orders", [orders]),), (Declared(orders, "t.py:7"),))
    registry = build([module])
    registry.check_loop(source_db_is_derived_db=False)
    with pytest.raises(
        ConfigurationError, match=r"t\.py:7: derived collection 'orders' .* 'copy' reads: a loop"
    ):
        registry.check_loop(source_db_is_derived_db=True)


def test_one_object_in_two_modules_is_declared_once() -> None:
    """Modules may share a collection by import; the place is where it was declared."""
    shared = DerivedCollection("shared")
    found = [
        Found("a", (marked("one", writes=[shared]),), (Declared(shared, "a.py:1"),)),
        Found("b", (marked("two", writes=[shared]),), (Declared(shared, "b.py:1"),)),
    ]
    assert build(found).places == {"shared": "a.py:1"}


def test_all_faults_come_at_once() -> None:
    """`build` raises one error with the faults of all modules."""
    first = Found("a", (marked("one", place="a.py:1"),), (Declared(DerivedCollection("x"), "a.py:2"),))
    second = Found("b", (marked("one", place="b.py:1"),), (Declared(DerivedCollection("x"), "b.py:2"),))
    with pytest.raises(ConfigurationError) as raised:
        build([first, second])
    transform, collection = raised.value.faults
    assert (transform.place, collection.place) == ("b.py:1", "b.py:2")
    assert transform.problem == "a second transform is called 'one'; the first is at a.py:1."
    assert collection.problem == "derived collection 'x' is declared twice; the first time at a.py:2."
    assert transform.cure
    assert collection.cure


def test_an_undeclared_collection_is_refused() -> None:
    """A transform may name only collections that a module declares, told by the object, not by its name."""
    (problem,) = problems(
        marked("one", writes=[DerivedCollection("x")]), collections=[DerivedCollection("x")]
    )
    assert problem.startswith(
        "t.py:1: transform 'one' names derived collection 'x', which no transform module"
    )


def test_a_collection_made_while_deriving_is_refused() -> None:
    """The fault is at the line that makes it."""
    (problem,) = problems(marked("one", inline=(5,)))
    assert problem.startswith("t.py:5: transform 'one' makes a derived collection while it derives.")


@pytest.mark.parametrize("name", ["", "1st", "a b", "a.b", "<lambda>", "ä"])
def test_bad_transform_names_are_refused(name: str) -> None:
    """A transform's name is plain enough for a command line and a metric."""
    (problem,) = problems(marked(name))
    assert "cannot name a transform" in problem


BAD_NAMES: dict[object, str] = {
    "": "empty",
    "a$b": "dollar",
    "a\0": "null",
    "system.users": "system.",
    ".a": "dot",
    "a.": "dot",
    "a..b": "dot",
    "\ud800": "UTF-8",
    7: "no string",
}


#: Names that a source collection may have, and a derived one may not.
OURS: dict[object, str] = {
    "parts/orders": "the engine's",
    "orders__rebuild_notes": "those of rebuilds",
    "orders__rebuild_0a1b2c3d": "those of rebuilds",
    "orders__previous": "those of rebuilds",
}


@pytest.mark.parametrize("name", OURS)
def test_a_source_may_have_names_that_are_ours(name: Any) -> None:
    """What rebuilds put over and drop lies in the derived database only."""
    assert not source_name_problem(name)


@pytest.mark.parametrize(
    ("name", "collection"),
    [
        ("orders__rebuild_0a1b2c3d", "orders"),
        ("parts/orders__rebuild_0a1b2c3d", "parts/orders"),
        ("orders__rebuild_notes", ""),
        ("orders__rebuild_0a1b2c3d_copy", ""),
        ("orders__rebuild_0A1B2C3D", ""),
        ("__rebuild_0a1b2c3d", ""),
        ("orders", ""),
    ],
)
def test_shadows_are_known_by_their_names(name: str, collection: str) -> None:
    """Only what a rebuild names so is taken for its shadow, and dropped when it is left behind."""
    assert shadowed(name) == collection


@pytest.mark.parametrize(("name", "reason"), [*BAD_NAMES.items(), *OURS.items(), ("ä" * 84, "167 bytes")])
def test_bad_collection_names_are_refused(name: Any, reason: str) -> None:
    """What MongoDB does not take as a collection's name is a fault that names the rule."""
    (problem,) = problems(collections=[DerivedCollection(name)])
    assert "cannot name a derived collection" in problem
    assert reason in problem


@pytest.mark.parametrize(("name", "reason"), [*BAD_NAMES.items(), ("a" * 254, "253 bytes")])
def test_bad_source_names_are_refused(name: Any, reason: str) -> None:
    """The same rules hold for the name of a source collection."""
    (problem,) = problems(marked("one", name))
    assert "cannot name a source collection" in problem
    assert reason in problem


def test_index_keys_are_the_drivers() -> None:
    """A field is ascending, with a leading `-` descending; a list is a compound index."""
    assert index_keys("sku") == [("sku", 1)]
    assert index_keys(["customer_id", "-ordered_at"]) == [("customer_id", 1), ("ordered_at", -1)]
    assert index_keys(("a.b", "-_id")) == [("a.b", 1), ("_id", -1)]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ([], "no fields"),
        (3, "neither a field name nor a list"),
        ({"a": 1}, "neither a field name nor a list"),
        ([("a", 1)], "neither a field name nor a list"),
        (["a", "b", "-a"], "a field twice"),
        ("$a", "dollar"),
        ("a.$b", "dollar"),
        ("_src", "engine's"),
        ("-_src.at", "engine's"),
        ("-", "empty field name"),
        ("", "empty field name"),
        ("a..b", "empty field name"),
        ("a\0", "null"),
        ("_id", "by itself"),
        ([f"f{number}" for number in range(33)], "limit is 32"),
    ],
)
def test_bad_indexes_are_refused(spec: Any, reason: str) -> None:
    """Each bad index is a fault at its collection that says what is wrong with it."""
    with pytest.raises(ValueError, match=reason):
        index_keys(spec)
    (problem,) = problems(collections=[DerivedCollection("x", indexes=[spec, "fine"])])
    assert problem.startswith("t.py:1: derived collection 'x' has a bad index")
    assert reason in problem


@pytest.mark.parametrize(
    ("indexes", "reason"),
    [
        ("sku", "no list"),
        (["a", ["b"], ("a",)], "has the index ('a',) twice"),
        ([f"f{number}" for number in range(61)], "61 indexes"),
    ],
)
def test_bad_sets_of_indexes_are_refused(indexes: Any, reason: str) -> None:
    """A string for a list, two equal indexes, and more of them than there is room for are faults."""
    (problem,) = problems(collections=[DerivedCollection("x", indexes=indexes)])
    assert reason in problem


async def coroutine(_document: Document) -> None:
    """Cannot be a transform."""


async def async_generator(_document: Document) -> Any:
    """Cannot be a transform."""
    yield


@pytest.mark.parametrize("function", [coroutine, async_generator])
def test_async_functions_are_refused(function: Callable[..., Any]) -> None:
    """A transform is a plain function."""
    (problem,) = problems(marked("one", function=function))
    assert "is async" in problem


class Unsuitable:
    """Takes one argument, but is a class."""

    def __init__(self, document: Document) -> None:
        self.document = document


@pytest.mark.parametrize(
    "function",
    [
        lambda: (),
        lambda a, b: (a, b),
        lambda a, b=1: (a, b),
        lambda a, *, b: (a, b),
        lambda *, a: a,
        lambda **a: a,
        Unsuitable,
        dict,
    ],
)
def test_other_signatures_are_refused(function: Callable[..., Any]) -> None:
    """A transform takes exactly one positional argument."""
    (problem,) = problems(marked("one", function=function))
    assert "exactly one positional argument" in problem


@pytest.mark.parametrize(
    "function",
    [
        lambda a: a,
        lambda a, /: a,
        lambda *a: a,
        lambda a, *, b=1: (a, b),
        partial(lambda a, b: (a, b), b=1),
    ],
)
def test_suitable_signatures_are_taken(function: Callable[..., Any]) -> None:
    """What can be called with the document alone is fine, an undecorated wrapper included."""
    assert not problems(marked("one", function=function))


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        ({"publish": "ab"}, "is published to 'ab', no topic"),
        ({"publish": "google-things"}, "is published to 'google-things', no topic"),
        ({"publish": ""}, "is published to '', no topic"),
        ({"publish": 7}, "is published to 7, no topic"),
        ({"publish": "projects/p/topics/a b"}, "no topic"),
        ({"publish": "customer", "format": "avro"}, "has the format 'avro'"),
    ],
)
def test_a_topic_that_cannot_be(declared: dict[str, Any], problem: str) -> None:
    """What is published has a topic that Pub/Sub takes and a format that there is, else its place is told."""
    (told,) = problems(collections=[DerivedCollection("customer", **declared)])
    assert told.startswith("t.py:1:")
    assert problem in told


def test_a_topic_of_another_project_is_fine() -> None:
    """It is named whole."""
    assert problems(collections=[DerivedCollection("c", publish="projects/p/topics/customers")]) == []


def test_tables_have_topics_of_their_own() -> None:
    """A subscription writes what comes by its topic into one table; events may share a topic."""
    rows = [DerivedCollection(name, publish="rows", format="bigquery") for name in "ab"]
    (told,) = problems(collections=rows)
    assert "'b' is published to 'rows' for BigQuery, as 'a' is (t.py:1)" in told
    assert problems(collections=[DerivedCollection(name, publish="events") for name in "ab"]) == []
