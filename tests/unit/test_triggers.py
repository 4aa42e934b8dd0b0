"""Triggers without a server: how they are found, what is wrong with them, what they yield, how they are asked for."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from bson import Timestamp, encode

from distributary import DerivedCollection, Publish, trigger
from distributary.change import CODEC
from distributary.derive.registry import Registry
from distributary.derive.transform import Failure
from distributary.derive.trigger import Effects, LeftOut, Seen, change_of
from distributary.derive.trigger import react as react_to
from distributary.errors import ConfigurationError, Fault
from distributary.plugins import load, trigger_of
from distributary.source.changes import pipeline, projection
from distributary.testing import NotDerived, react

HEAD = """
from distributary import DerivedCollection, Publish, transform, trigger
audit = DerivedCollection("audit", indexes=["form"])
"""

audit = DerivedCollection("audit")


@trigger("forms", operations=["update", "delete"])
def drop_off(change: Any) -> Any:
    """Tell of a form that was left, and note it."""
    if change.operation == "delete":
        return
    yield audit.record(change.position, {"form": change.key, "was": change.before["state"]})
    yield Publish("drop-offs", {"step": change.document["step"]}, ordering_key=str(change.key))


def written(folder: Path, code: str) -> Path:
    """Write a module, and give its folder."""
    folder.mkdir(exist_ok=True)
    (folder / "module.py").write_text(HEAD + dedent(code), encoding="utf-8")
    return folder


def loaded(folder: Path, code: str, only: tuple[str, ...] = ()) -> Registry:
    """Load a module."""
    return load([written(folder, code)], only, entry_points=False)


def faults(folder: Path, code: str) -> list[Fault]:
    """Give what is wrong with a module."""
    with pytest.raises(ConfigurationError) as caught:
        loaded(folder, code)
    return list(caught.value.faults)


PLAIN = """
    @trigger("forms", operations=["update"], match={"fullDocument.state": "left"})
    def left(change):
        yield audit.record(change.position, {"was": change.before})
"""


def test_a_trigger_is_found_with_all_that_it_says(tmp_path: Path) -> None:
    """A module of triggers alone is enough; their collections are created, and are no transform's."""
    registry = loaded(tmp_path / "t", PLAIN)
    found = registry.triggers["left"]
    assert (found.source, found.operations) == ("forms", ("update",))
    assert found.collections == {"audit"}
    assert found.reads == {"before"}
    assert (registry.sources, registry.read) == ((), ("forms",))
    assert registry.audited == set(registry.collections) == {"audit"}


def test_only_takes_triggers_by_name(tmp_path: Path) -> None:
    """`only` chooses among transforms and triggers, with the collections that the chosen ones name."""
    more = """
    states = DerivedCollection("states")

    @transform("forms")
    def state(form):
        yield states.record(form["_id"], {})
    """
    code = PLAIN + more
    assert set(loaded(tmp_path / "a", code, ("left",)).collections) == {"audit"}
    assert set(loaded(tmp_path / "b", code, ("state",)).triggers) == set()
    with pytest.raises(ConfigurationError, match="There are: left, state"):
        loaded(tmp_path / "c", code, ("none",))


def test_a_trigger_cannot_be_derived(tmp_path: Path) -> None:
    """What derives, compares or builds anew refuses a trigger's name, and says why."""
    with pytest.raises(ConfigurationError, match=r"'left' is a trigger.*dead-letters retry"):
        loaded(tmp_path / "t", PLAIN).only_transforms(["left"])


def test_the_fingerprint_follows_the_code_and_not_the_decorator(tmp_path: Path) -> None:
    """Other code is another fingerprint; other options of the decorator are the stream's matter."""
    first = loaded(tmp_path / "a", PLAIN).triggers["left"].fingerprint
    again = loaded(tmp_path / "b", PLAIN.replace('"left"}', '"gone"}')).triggers["left"].fingerprint
    other = loaded(tmp_path / "c", PLAIN.replace('"was"', '"is"')).triggers["left"].fingerprint
    assert first == again != other


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        pytest.param('operations=["upsert"]', "'upsert' is no operation", id="operation"),
        pytest.param("operations=[]", "it has no operations", id="no operations"),
        pytest.param("match=1", "match is 1, not a dict", id="match"),
        pytest.param("project={}", "project is {}, not a dict with something", id="project"),
        pytest.param("project={'n': 1}", "project names 'n', which is no field", id="project's field"),
        pytest.param("match={'a': object()}", "match cannot be written as BSON", id="no BSON"),
        pytest.param("name='a b'", "'a b' cannot name a trigger", id="name"),
    ],
)
def test_bad_options_are_faults(tmp_path: Path, options: str, problem: str) -> None:
    """What is wrong with a decorator is told with the trigger's place."""
    code = f'@trigger("forms", {options})\ndef left(change): ...\n'
    (fault,) = faults(tmp_path / "t", code)
    assert problem in fault.problem
    assert fault.place.endswith("module.py:5") or fault.place.endswith("module.py:4")
    assert fault.cure


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        pytest.param(
            '@trigger("f")\ndef a(c): ...\n@transform("g", name="a")\ndef b(d): ...\n',
            "a transform and a trigger are both called 'a'; the other is at",
            id="name of both",
        ),
        pytest.param(
            '@trigger("f")\ndef a(c): ...\n@trigger("g", name="a")\ndef b(d): ...\n',
            "a second trigger is called 'a'; the first is at",
            id="name of two",
        ),
        pytest.param(
            '@trigger("f")\ndef a(c):\n    yield audit.record(1, {})\n'
            '@transform("g")\ndef b(d):\n    yield audit.record(1, {})\n',
            "trigger 'a' writes derived collection 'audit', which transform 'b'",
            id="collection of both",
        ),
        pytest.param('@trigger("f")\nasync def a(c): ...\n', "trigger 'a' is async", id="async"),
        pytest.param(
            '@trigger("f")\ndef a(): ...\n', "trigger 'a' must be a function of exactly one", id="none"
        ),
        pytest.param(
            '@trigger("f")\ndef a(c): ...\ndef a(c): ...\n',
            "trigger 'a' is hidden by the function",
            id="hidden",
        ),
    ],
)
def test_bad_triggers_are_faults(tmp_path: Path, code: str, problem: str) -> None:
    """Names are unique among transforms and triggers, a collection belongs to one kind, and so on."""
    assert problem in faults(tmp_path / "t", code)[0].problem


def content(**fields: Any) -> bytes:
    """Give a change in BSON."""
    named: dict[str, Any] = {"operation": "update", "key": 1, "document": None, "before": None}
    return encode({**named, "updated": {}, "removed": [], "left_out": [], **fields}, codec_options=CODEC)


def seen(**fields: Any) -> Seen:
    """Give a change as it is seen by `drop_off`."""
    return Seen(
        "drop_off", "forms", fields.get("key", 1), Timestamp(1_700_000_000, 1), "82AB", content(**fields)
    )


def test_what_the_function_gets() -> None:
    """A change has the documents, the fields, its time with the time zone, and is the function's own copy."""
    change = change_of(seen(document={"_id": 1}, updated={"a.b": 1}, removed=["c"]))
    assert (change.operation, change.key, change.position) == ("update", 1, "82AB")
    assert change.at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert (change.document, change.before, change.updated, change.removed) == (
        {"_id": 1},
        None,
        {"a.b": 1},
        ["c"],
    )
    with pytest.raises(AttributeError):
        change.key = 2  # type: ignore[misc]


def test_what_was_too_large_fails_only_who_asks_for_it() -> None:
    """An image that was left out raises when it is read, and does not seem to be none."""
    change = change_of(seen(left_out=["before"]))
    assert change.document is None
    with pytest.raises(LeftOut, match=r"change\.before is not known"):
        _ = change.before


def test_effects_are_encoded_and_keyed_by_the_change() -> None:
    """Records name the trigger, the document and the position; events are numbered."""
    reacted = react_to(trigger_of(drop_off), seen(document={"step": 2}, before={"state": "s"}), 3, 10)
    assert isinstance(reacted.result, Effects)
    (record,) = reacted.result.desired.records
    assert (record.place, reacted.result.desired.key) == (("audit", "82AB"), {"key": 1, "position": "82AB"})
    (event,) = reacted.result.events
    assert (event.topic, event.number, event.ordering_key, event.data) == (
        "drop-offs",
        0,
        "1",
        encode({"step": 2}),
    )


def test_a_failure_is_given_and_not_raised() -> None:
    """What goes wrong in a trigger comes back with a traceback that begins in the trigger."""
    result = react_to(trigger_of(drop_off), seen(before={}), 1, 10).result
    assert isinstance(result, Failure)
    assert result.reason == "KeyError: 'state'"
    assert "derive/trigger.py" not in result.traceback
    assert "test_triggers.py" in result.traceback


def test_too_many_effects_are_a_failure() -> None:
    """A trigger that yields more than is allowed for one change fails."""
    result = react_to(trigger_of(drop_off), seen(document={"step": 1}, before={"state": 1}), 1, 1).result
    assert isinstance(result, Failure)
    assert "more than 1 effects" in result.reason


def test_react_gives_what_a_trigger_yields() -> None:
    """An author's test compares effects with what the trigger's module makes."""
    found = react(
        drop_off, operation="update", document={"_id": 7, "step": 2}, before={"state": "s"}, position="82"
    )
    assert found == [
        audit.record("82", {"form": 7, "was": "s"}),
        Publish("drop-offs", {"step": 2}, ordering_key="7"),
    ]
    assert react(drop_off, operation="delete", key=7) == []


def test_react_fails_where_a_worker_parks_the_change() -> None:
    """A change that would be a dead letter raises with the letter's reason."""
    with pytest.raises(NotDerived, match="KeyError: 'state'"):
        react(drop_off, operation="update", key=1, document={}, before={})
    with pytest.raises(ValueError, match="'upsert' is no operation"):
        react(drop_off, operation="upsert")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"fullDocument.n": 1}, {"fullDocument.n": 1, "_id": 1, "_distributary": 1}),
        ({"fullDocument": {"n": 1}, "_id": 0}, {"fullDocument": {"n": 1}, "_id": 1, "_distributary": 1}),
        ({"fullDocument": {"n": 0}, "_id": 0}, {"fullDocument": {"n": 0}}),
        ({"fullDocument": {"$literal": 0}}, {"fullDocument": {"$literal": 0}, "_id": 1, "_distributary": 1}),
        ({"ns": False}, {"ns": False}),
    ],
)
def test_a_projection_keeps_what_the_engine_needs(given: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    """Whether a projection keeps or leaves out, the token and the engine's own part survive it."""
    assert projection(given) == kept


def test_the_filter_names_every_trigger_and_what_ends_a_stream(tmp_path: Path) -> None:
    """The stream lets pass what some trigger wants, updates that are to be decided on, and what ends it."""
    (_, wanted, *_) = pipeline([loaded(tmp_path / "t", PLAIN).triggers["left"]])
    place = {"ns.coll": "forms", "operationType": {"$in": ["update"]}}
    assert wanted["$match"]["$or"] == [
        {"$and": [place, {"fullDocument.state": "left"}]},
        {"ns.coll": "forms", "operationType": "update", "fullDocument": None},
        {"operationType": {"$in": ["dropDatabase", "invalidate"]}},
    ]
