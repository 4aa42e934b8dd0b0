"""Triggers on a real MongoDB: what they are called for, what comes of it, and that it comes once."""

import json
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from bson import encode
from bson.raw_bson import RawBSONDocument

from distributary.change import Position
from distributary.errors import ConfigurationError, PositionLost, TooManyDeadLetters
from distributary.operate.privileges import NEEDS, Role
from distributary.source import changes
from tests.conftest import Databases, eventually
from tests.harness import ORDERS, Harness
from tests.servers import secured

#: Every change of a form leaves a record, keyed by its position.
AUDIT = """
    from distributary import DerivedCollection, Publish, trigger

    audit = DerivedCollection("audit", indexes=["form"])

    @trigger("forms"{options})
    def changed(change):
        yield audit.record(change.position, {{
            "form": change.key, "operation": change.operation, "at": change.at,
            "document": change.document, "before": change.before,
            "updated": dict(change.updated), "removed": list(change.removed),
        }})
        yield Publish("forms", {{"form": change.key}}, ordering_key=str(change.key))
"""

#: A second trigger on the same collection, whose match overlaps with the first one's.
OVERLAP = """
    from distributary import DerivedCollection, trigger

    hits = DerivedCollection("hits")

    @trigger("forms", operations=["insert", "update"], match={"fullDocument.n": {"$gte": 2}})
    def large(change):
        yield hits.record({"by": "large", "at": change.position}, {"n": change.document["n"]})

    @trigger("forms", operations=["update", "delete"], match={"$or": [
        {"fullDocument.n": {"$lte": 3}}, {"operationType": "delete"}]})
    def small(change):
        yield hits.record({"by": "small", "at": change.position}, {"n": change.document and change.document["n"]})
"""


def audited(options: str = "") -> dict[str, str]:
    """Give the audit module, with options for its trigger."""
    return {"audit": AUDIT.format(options=options)}


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker with an audit trail of forms, that has run."""
    harness = Harness(databases, tmp_path / "modules", audited())
    harness.catch_up()
    return harness


def with_images(harness: Harness) -> None:
    """Let the source keep images of forms."""
    harness.databases.raw.create_collection("forms", changeStreamPreAndPostImages={"enabled": True})


def trail(harness: Harness) -> list[dict[str, Any]]:
    """Give the audit trail in the order in which it was written."""
    return list(harness.databases.derived.audit.find().sort("$natural", 1))


def operations(harness: Harness) -> list[tuple[Any, str]]:
    """Give who changed, and how, in order."""
    return [(each["form"], each["operation"]) for each in trail(harness)]


def test_images_before_and_after(harness: Harness) -> None:
    """With images, every change shows the document as it was before and after it, whatever came later."""
    with_images(harness)
    forms = harness.databases.raw.forms
    forms.insert_one({"_id": 1, "n": 1, "gone": 1})
    forms.update_one({"_id": 1}, {"$set": {"n": 2}, "$unset": {"gone": 1}})
    forms.replace_one({"_id": 1}, {"n": 3})
    forms.delete_one({"_id": 1})
    harness.catch_up()
    inserted, updated, replaced, deleted = trail(harness)
    assert (inserted["document"], inserted["before"]) == ({"_id": 1, "n": 1, "gone": 1}, None)
    assert (updated["document"], updated["before"]) == ({"_id": 1, "n": 2}, {"_id": 1, "n": 1, "gone": 1})
    assert (updated["updated"], updated["removed"]) == ({"n": 2}, ["gone"])
    assert (replaced["document"], replaced["before"]) == ({"_id": 1, "n": 3}, {"_id": 1, "n": 2})
    assert (deleted["document"], deleted["before"]) == (None, {"_id": 1, "n": 3})
    assert deleted["_src"]["key"] == {"key": 1, "position": deleted["_id"]}


def test_without_images_an_update_shows_the_latest(harness: Harness) -> None:
    """Without images, an update shows the document as it is now and none before; a deleted one is not there."""
    forms = harness.databases.raw.forms
    forms.insert_many([{"_id": 1, "n": 1}, {"_id": 2, "n": 1}])
    forms.update_one({"_id": 1}, {"$set": {"n": 2}})
    forms.update_one({"_id": 1}, {"$set": {"n": 3}})
    forms.update_one({"_id": 2}, {"$set": {"n": 2}})
    forms.delete_one({"_id": 2})
    harness.catch_up()
    found = {(each["form"], each["updated"].get("n")): each for each in trail(harness)}
    assert found[1, 2]["document"] == found[1, 3]["document"] == {"_id": 1, "n": 3}
    assert found[2, 2]["document"] is None
    assert {each["before"] for each in found.values()} == {None}


def test_events_lie_in_the_outbox(harness: Harness) -> None:
    """What is published waits in the outbox, in the order of the changes, with its key and its attributes."""
    harness.databases.raw.forms.insert_many([{"_id": n} for n in range(3)])
    harness.catch_up()
    found = list(harness.databases.state.outbox.find().sort("_id", 1))
    assert [json.loads(each["data"])["data"] for each in found] == [{"form": 0}, {"form": 1}, {"form": 2}]
    assert [each["ordering_key"] for each in found] == ["0", "1", "2"]
    assert {each["topic"] for each in found} == {"forms"}
    assert [each["position"] for each in found] == [each["_id"] for each in trail(harness)]


@pytest.mark.parametrize("images", [True, False])
def test_overlapping_matches_are_decided_by_the_server(
    databases: Databases,
    tmp_path: Path,
    images: bool,  # noqa: FBT001 - a parameter of pytest
) -> None:
    """Two triggers on one collection are each called for what they match, for nothing else, and both where both do."""
    harness = Harness(databases, tmp_path / "modules", {"hits": OVERLAP})
    harness.catch_up()
    if images:
        with_images(harness)
    forms = databases.raw.forms
    forms.insert_many([{"_id": n, "n": n} for n in range(6)])
    forms.update_many({}, {"$set": {"touched": 1}})
    forms.delete_many({"_id": {"$gte": 5}})
    harness.catch_up()
    found = [(each["_id"]["by"], each["n"]) for each in databases.derived.hits.find().sort("_id.at", 1)]
    inserts = [("large", n) for n in range(2, 6)]
    updates = [("large", n) for n in (2, 3, 4)] + [("small", n) for n in (0, 1, 2, 3)]
    assert sorted(map(str, found)) == sorted(
        map(str, [*inserts, *updates, *([("large", 5)] if images else []), ("small", None)])
    )


def test_a_projection_is_applied_by_the_server(databases: Databases, tmp_path: Path) -> None:
    """A trigger sees of the documents what it projects; its key and its position are there in any case."""
    modules = audited(', operations=["insert", "delete"], project={"fullDocument.n": 1, "_id": 0}')
    harness = Harness(databases, tmp_path / "modules", modules)
    harness.catch_up()
    databases.raw.forms.insert_one({"_id": 1, "n": 1, "secret": "s"})
    databases.raw.forms.delete_one({"_id": 1})
    harness.catch_up()
    inserted, deleted = trail(harness)
    assert inserted["document"] == {"n": 1}
    assert (deleted["form"], deleted["document"]) == (1, None)


def test_projections_of_several_triggers(databases: Databases, tmp_path: Path) -> None:
    """Triggers of one collection with projections of their own, for updates as well, each see what they asked for."""
    modules = {
        "one": AUDIT.format(options=', project={"fullDocument.n": 1, "operationType": 1}'),
        "two": AUDIT.format(options=', project={"fullDocument.n": 0, "updateDescription": 0}')
        .replace('"audit"', '"second"')
        .replace("def changed", "def other"),
    }
    harness = Harness(databases, tmp_path / "modules", modules)
    harness.catch_up()
    databases.raw.forms.insert_one({"_id": 1, "n": 1, "m": 1})
    databases.raw.forms.update_one({"_id": 1}, {"$set": {"n": 2, "m": 2}})
    harness.catch_up()
    assert [each["document"] for each in trail(harness)] == [{"n": 1}, {"n": 2}]
    second = list(databases.derived.second.find().sort("_id", 1))
    assert [each["document"] for each in second] == [{"_id": 1, "m": 1}, {"_id": 1, "m": 2}]
    assert [each["updated"] for each in second] == [{}, {}]


def test_existing_documents_call_no_trigger(databases: Databases, tmp_path: Path) -> None:
    """A trigger begins at the present: what happened before its worker first ran is no change that it sees."""
    databases.raw.forms.insert_one({"_id": 1})
    harness = Harness(databases, tmp_path / "modules", audited())
    harness.catch_up()
    databases.raw.forms.insert_one({"_id": 2})
    harness.catch_up()
    assert operations(harness) == [(2, "insert")]


def test_the_stream_goes_on_after_a_restart(harness: Harness) -> None:
    """What changed while no worker ran is seen by the next one, once and in order."""
    forms = harness.databases.raw.forms
    for n in range(3):
        forms.insert_one({"_id": n})
        harness.catch_up()
        forms.update_one({"_id": n}, {"$set": {"n": n}})
        forms.delete_one({"_id": n})
    harness.catch_up()
    assert operations(harness) == [(n, each) for n in range(3) for each in ("insert", "update", "delete")]


def test_a_changed_filter_misses_and_repeats_nothing(harness: Harness) -> None:
    """With another match or another trigger the stream goes on behind what was seen, also within one cluster time."""
    forms = harness.databases.raw.forms
    with harness.databases.client.start_session() as session, session.start_transaction():
        forms.insert_many([{"_id": n} for n in range(5)], session=session)
    harness.catch_up()
    harness.databases.state.outbox.delete_many({})
    harness.write({**audited(', match={"documentKey._id": {"$ne": 6}}'), "hits": OVERLAP})
    forms.insert_many([{"_id": 5}, {"_id": 6, "n": 2}])
    harness.catch_up()
    assert operations(harness) == [(n, "insert") for n in range(6)]
    assert [each["n"] for each in harness.databases.derived.hits.find()] == [2]
    assert harness.databases.state.outbox.count_documents({}) == 1


def test_a_dropped_database_does_not_end_the_stream(harness: Harness) -> None:
    """Behind a dropped collection and a dropped database, changes are seen as before."""
    raw = harness.databases.raw
    with harness.running():
        raw.forms.insert_one({"_id": 1})
        raw.forms.drop()
        raw.forms.insert_one({"_id": 2})
        eventually(lambda: len(trail(harness)) == 2)
        raw.client.drop_database(raw.name)
        raw.forms.insert_one({"_id": 3})
        eventually(lambda: len(trail(harness)) == 3)
    assert operations(harness) == [(1, "insert"), (2, "insert"), (3, "insert")]


def stored_stream(harness: Harness) -> dict[str, Any]:
    """Give what the checkpoint says of the triggers' stream."""
    checkpoint = harness.databases.state.checkpoints.find_one({})
    assert checkpoint is not None
    return dict(checkpoint["triggers"])


def lose(harness: Harness) -> None:
    """Let the triggers' position be one that the history does not have, but not the worker's."""
    with harness.databases.raw.forms.watch() as stream:
        harness.databases.raw.forms.insert_one({"_id": "token"})
        token: str = stream.next()["_id"]["_data"]
    other = token[:60] + ("0" if token[60] != "0" else "1") + token[61:]
    position = {"token": other, "time": Position.of_token(other).time}
    harness.databases.state.checkpoints.update_one({}, {"$set": {"triggers.position": position}})


def test_a_lost_position_is_told(harness: Harness) -> None:
    """With `fail` a worker ends whose triggers' position is lost, and says what to do."""
    lose(harness)
    harness.settings = {"worker.on_lost_position": "fail"}
    with pytest.raises(PositionLost, match=r"triggers' position is lost.*on_lost_position"):
        harness.catch_up()


def test_a_lost_position_leaves_a_named_gap(harness: Harness) -> None:
    """With `resync` the triggers go on at the present, and the checkpoint says what they have not seen."""
    lose(harness)
    lost = stored_stream(harness)["position"]["time"]
    harness.catch_up()
    harness.databases.raw.forms.insert_one({"_id": 1})
    harness.catch_up()
    stream = stored_stream(harness)
    (gap,) = stream["gaps"]
    assert gap["since"] == lost < gap["until"] < stream["position"]["time"]
    assert operations(harness) == [(1, "insert")]


def test_what_a_change_stream_refuses_is_a_fault(databases: Databases, tmp_path: Path) -> None:
    """A match that MongoDB takes in no change stream is told with its place when the worker starts."""
    harness = Harness(databases, tmp_path / "modules", audited(', match={"$where": "true"}'))
    with pytest.raises(
        ConfigurationError, match=r"audit\.py:\d+: trigger 'changed': MongoDB refuses.*\$where"
    ):
        harness.catch_up()


def test_images_that_are_too_large_together(databases: Databases, tmp_path: Path) -> None:
    """A change over 16 MB does not end the stream: the trigger goes on with what fits, and fails for the rest."""
    lean = AUDIT.format(options="").replace('"document": change.document, "before": change.before,', "")
    wants = (
        lean.replace('"audit"', '"second"')
        .replace("def changed", "def other")
        .replace('"form": change.key', '"form": change.key, "size": len(change.before["s"])', 1)
        .replace('@trigger("forms"', '@trigger("forms", operations=["update"]')
        .replace('"updated": dict(change.updated),', "")
    )
    lean = lean.replace('"updated": dict(change.updated),', "")
    harness = Harness(databases, tmp_path / "modules", {"lean": lean, "wants": wants})
    harness.catch_up()
    with_images(harness)
    databases.raw.forms.insert_one({"_id": 1, "s": "x" * 9_000_000})
    databases.raw.forms.update_one({"_id": 1}, {"$set": {"s": "y" * 9_000_000}})
    databases.raw.forms.update_one({"_id": 1}, {"$set": {"s": "z"}})
    harness.catch_up()
    assert operations(harness) == [(1, "insert"), (1, "update"), (1, "update")]
    letters = list(databases.state.dead_letters.find().sort("position.token", 1))
    assert [each["kind"] for each in letters] == ["failed", "waiting"]
    assert "change.before is not known" in letters[0]["reason"]


def test_large_updates_without_images(
    databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who cannot be told what a large update is, or whether it matches, gets a dead letter; others are called."""
    code = """
        from distributary import DerivedCollection, trigger

        seen = DerivedCollection("seen")

        @trigger("forms", operations=["update"])
        def keys(change):
            yield seen.record({"by": "keys", "at": change.position}, {"removed": len(change.removed)})

        @trigger("forms", operations=["update"])
        def documents(change):
            yield seen.record({"by": "documents", "at": change.position}, {"n": change.document["n"]})

        @trigger("forms", operations=["update"], match={"fullDocument.n": 1})
        def matching(change):
            yield seen.record({"by": "matching", "at": change.position}, {"key": change.key})
    """
    harness = Harness(databases, tmp_path / "modules", {"forms": code})
    harness.catch_up()
    databases.raw.forms.insert_one({"_id": 1, "n": 1})
    databases.raw.forms.update_one({"_id": 1}, {"$set": {"s": "x" * 12_000_000}})
    harness.catch_up()
    assert databases.derived.seen.distinct("_id.by") == ["keys"]
    reasons = {each["transform"]: each["reason"] for each in databases.state.dead_letters.find()}
    assert "change.document is not known" in reasons["documents"]
    assert "whether the trigger's match applies is not known" in reasons["matching"]
    # An update of more than the real bound is hardly possible in the small cache of a private server.
    monkeypatch.setattr(changes, "MOST_BYTES", 4_000_000)
    databases.raw.forms.update_one({"_id": 1}, {"$set": {"s": "y" * 5_000_000}})
    harness.catch_up()
    (letter,) = databases.state.dead_letters.find({"transform": "keys"})
    assert "change.updated is not known" in letter["reason"]


def test_triggers_beside_transforms(databases: Databases, tmp_path: Path) -> None:
    """A worker derives and calls triggers; what triggers fill is neither swept nor taken for what is derived."""
    modules = {"orders": ORDERS, **audited()}
    harness = Harness(databases, tmp_path / "modules", modules)
    databases.raw.orders.insert_one({"_id": 1, "customer": "c", "skus": ["a"]})
    harness.catch_up()
    databases.raw.forms.insert_one({"_id": 1})
    databases.raw.orders.update_one({"_id": 1}, {"$set": {"skus": ["b"]}})
    harness.catch_up()
    assert databases.derived.audit.count_documents({}) == 1
    harness.assert_equal()


#: Fails for changes with a field `bad`, and for all as long as it is told to.
FAILING = """
    from distributary import DerivedCollection, Publish, trigger

    audit = DerivedCollection("audit")

    @trigger("forms")
    def changed(change):
        yield Publish("forms", {{"n": change.updated.get("n")}}, ordering_key=str(change.key))
        if {condition}:
            raise ValueError(f"bad change of {{change.key}}")
        yield audit.record(change.position, {{"form": change.key, "operation": change.operation,
                                              "n": change.updated.get("n"), "before": change.before}})
"""

BAD = 'change.updated.get("bad")'


@pytest.fixture
def failing(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker whose trigger failed for the second of four changes of form 1; form 2 is fine."""
    harness = Harness(databases, tmp_path / "modules", {"audit": FAILING.format(condition=BAD)})
    harness.catch_up()
    with_images(harness)
    forms = databases.raw.forms
    forms.insert_many([{"_id": 1}, {"_id": 2}])
    forms.update_one({"_id": 1}, {"$set": {"n": 1, "bad": True}})
    forms.update_one({"_id": 2}, {"$set": {"n": 1}})
    forms.update_one({"_id": 1}, {"$set": {"n": 2}})
    harness.catch_up()
    forms.delete_one({"_id": 1})
    harness.catch_up()
    return harness


def letters(harness: Harness) -> list[dict[str, Any]]:
    """Give the dead letters in the order of the changes."""
    return list(harness.databases.state.dead_letters.find().sort("position.token", 1))


def dead_letters(harness: Harness, *arguments: str) -> Any:
    """Run `dead-letters` for JSON, and give its answer."""
    with harness.process("dead-letters", *arguments, "--json", stdout=PIPE) as process:
        out, _ = process.communicate(timeout=60)
    return json.loads(out)


def test_a_change_that_fails_is_kept_with_those_behind_it(failing: Harness) -> None:
    """A trigger's failure parks the change itself and later ones of its document; other documents go on."""
    assert operations(failing) == [(1, "insert"), (2, "insert"), (2, "update")]
    first, second, third = letters(failing)
    assert [each["kind"] for each in (first, second, third)] == ["failed", "waiting", "waiting"]
    assert (first["reason"], first["key"]["key"]) == ("ValueError: bad change of …", 1)
    assert first["change"]["document"] == {"_id": 1, "n": 1, "bad": True}
    assert first["change"]["before"] == {"_id": 1}
    assert first["change"]["updated"] == {"n": 1, "bad": True}
    assert first["position"]["token"] in second["reason"]
    assert (third["change"]["operation"], third["change"]["before"]["n"]) == ("delete", 2)
    assert failing.databases.state.outbox.count_documents({"ordering_key": "1"}) == 1


def test_a_retry_goes_through_the_changes_in_order(failing: Harness) -> None:
    """With the trigger corrected, a retry of one change does it and all behind it, in order, as they were kept."""
    failing.write({"audit": FAILING.format(condition="False")})
    first = letters(failing)[0]
    assert dead_letters(failing, "retry", first["id"]) == {"schema": 1, "tried": 1, "parked": []}
    assert letters(failing) == []
    of_one = [each for each in trail(failing) if each["form"] == 1]
    assert [each["operation"] for each in of_one] == ["insert", "update", "update", "delete"]
    assert [each["before"] and each["before"].get("n") for each in of_one] == [None, None, 1, 2]
    assert failing.databases.state.outbox.count_documents({"ordering_key": "1"}) == 4


def test_a_retry_of_what_still_fails(failing: Harness) -> None:
    """A retry that fails again leaves all that is parked, with one attempt more."""
    answer = dead_letters(failing, "retry", "--all")
    assert (answer["tried"], sorted(each["kind"] for each in answer["parked"])) == (
        3,
        ["failed", "waiting", "waiting"],
    )
    assert [each["attempts"] for each in letters(failing)] == [2, 1, 1]
    assert len(trail(failing)) == 3


def test_a_running_worker_tries_again(failing: Harness) -> None:
    """A running worker carries out the retry, and a change that comes behind is seen as any other."""
    failing.write({"audit": FAILING.format(condition="False")})
    with failing.running():
        assert dead_letters(failing, "retry", "--transform", "changed")["parked"] == []
        failing.databases.raw.forms.insert_one({"_id": 1})
        eventually(lambda: len([each for each in trail(failing) if each["form"] == 1]) == 5)
    assert letters(failing) == []


def test_discarding_frees_what_waits(failing: Harness) -> None:
    """When a change is discarded, those that waited for it are tried by the worker itself."""
    dead_letters(failing, "discard", letters(failing)[0]["id"], "--yes")
    failing.catch_up()
    assert letters(failing) == []
    of_one = [(each["operation"], each["n"]) for each in trail(failing) if each["form"] == 1]
    assert of_one == [("insert", None), ("update", 2), ("delete", None)]


def test_a_parked_change_is_shown(failing: Harness) -> None:
    """`show` has the change as the trigger got it, and says what to do; `list` has its document."""
    first = letters(failing)[0]
    page = failing.said("dead-letters", "show", first["id"])
    assert "trigger:     changed" in page
    assert '"before": {"_id": 1}' in page
    assert "Correct the trigger" in page
    listed = dead_letters(failing, "list")["letters"]
    assert {each["key"]["key"] for each in listed} == {1}


@pytest.mark.parametrize(
    ("effects", "reason"),
    [
        pytest.param("yield 1", "int …, which is no effect", id="no effect"),
        pytest.param('yield Publish("", {})', "a topic is a string", id="no topic"),
        pytest.param('yield Publish("t", [1])', "data is a dict", id="no dict"),
        pytest.param('yield Publish("t", {"a": object()})', "cannot be stored as BSON", id="no BSON"),
        pytest.param('yield Publish("t", {}, 1)', "ordering key …: it is a string", id="ordering key"),
        pytest.param('yield Publish("t", {}, "k", {"a": 1})', "no dict of strings", id="attributes"),
        pytest.param(
            "yield audit.record(1, {}); yield audit.record(1.0, {})", "twice for one change", id="twice"
        ),
        pytest.param("yield audit.record(1, {'_src': 1})", "which is the engine's", id="engine field"),
        pytest.param("yield audit.record(0, {'n': 1})", "has written: key records by the change", id="taken"),
        pytest.param("yield audit.record(change.key, {'u': 'x'})", "MongoDB refuses the record", id="unique"),
        pytest.param("yield audit.record(1, {'s': 'x' * 2**24})", "MongoDB's limit is 16 MB", id="large"),
        pytest.param("import sys; sys.exit(1)", "SystemExit", id="exit"),
    ],
)
def test_effects_that_cannot_be_stored(
    databases: Databases, tmp_path: Path, effects: str, reason: str
) -> None:
    """Whatever a trigger yields that cannot be, its change is parked with a reason; others are not held up."""
    code = f"""
        from distributary import DerivedCollection, Publish, trigger
        audit = DerivedCollection("audit")

        @trigger("forms")
        def changed(change):
            if change.key == 0:
                yield audit.record(0, {{"u": "x"}})
                return
            if change.key == 2:
                yield audit.record(2, {{"u": "y"}})
                return
            yield Publish("t", {{}})
            {effects}
    """
    harness = Harness(databases, tmp_path / "modules", {"audit": code})
    databases.derived.audit.create_index("u", unique=True, sparse=True)
    harness.catch_up()
    databases.raw.forms.insert_many([{"_id": n} for n in range(3)])
    harness.catch_up()
    (letter,) = letters(harness)
    assert reason in letter["reason"]
    assert databases.derived.audit.distinct("_id") == [0, 2]
    assert databases.state.outbox.count_documents({}) == 0


def test_too_many_failures_stop_the_worker(databases: Databases, tmp_path: Path) -> None:
    """A trigger that fails for everything stops the worker, and nothing of that is committed."""
    modules = {"audit": FAILING.format(condition="True")}
    harness = Harness(databases, tmp_path / "modules", modules, {"dead_letters.max_in_window": "5"})
    harness.catch_up()
    databases.raw.forms.insert_many([{"_id": n} for n in range(1000)])
    with pytest.raises(TooManyDeadLetters, match="bad change of"):
        harness.catch_up()
    harness.write({"audit": FAILING.format(condition="False")})
    harness.catch_up()
    assert len(trail(harness)) == 1000
    assert len(letters(harness)) <= 5


def test_status_tells_of_triggers(failing: Harness) -> None:
    """`status` has the position of the triggers, what they have not seen, the events that wait and the letters."""
    lose(failing)
    failing.catch_up()
    (worker,) = json.loads(failing.said("status", "--json"))["workers"]
    assert worker["triggers"]["names"] == ["changed"]
    assert len(worker["triggers"]["unseen"]) == 1
    assert worker["outbox"] == 3
    assert worker["dead_letters"]["changed"] == {"failed": 1, "waiting": 2}
    page = failing.said("status")
    assert "triggers changed: position" in page
    assert "unseen by triggers: changes from" in page
    assert "outbox: 3 events wait to be published" in page


def images_of(harness: Harness) -> dict[str, Any]:
    """Give the options of the source's forms."""
    (found,) = harness.databases.raw.list_collections(filter={"name": "forms"})
    return dict(found["options"])


def test_check_names_who_wants_images(harness: Harness) -> None:
    """Triggers that want images which a source does not keep are a warning with a cure, and nothing is switched on."""
    harness.databases.raw.create_collection("forms")
    out = harness.said("check")
    assert "keeps none: trigger 'changed' reads what was before a change, and gets None" in out
    assert "trigger 'changed' reads the document behind an update, and gets the latest" in out
    assert "distributary check --fix" in out
    assert images_of(harness) == {}


def test_check_fix_switches_images_on(harness: Harness, mongo: str) -> None:
    """`check --fix` switches images on where they are wanted, says so, and creates no collection."""
    harness.settings = {"source.uri": mongo}  # that of someone who may change the source's collections
    out = harness.said("check", "--fix")
    assert "forms does not exist yet" in out
    assert harness.databases.raw.list_collection_names() == []
    harness.databases.raw.forms.insert_one({"_id": 1})
    harness.databases.raw.create_collection("others")
    out = harness.said("check", "--fix")
    assert f"switched changeStreamPreAndPostImages on for {harness.databases.raw.name}.forms" in out
    assert images_of(harness) == {"changeStreamPreAndPostImages": {"enabled": True}}
    harness.settings = {}
    assert "keeps none" not in harness.said("check")
    harness.databases.raw.forms.update_one({"_id": 1}, {"$set": {"n": 1}})
    harness.catch_up()
    assert trail(harness)[-1]["before"] == {"_id": 1}


def test_triggers_that_want_no_images_are_not_warned_of(databases: Databases, tmp_path: Path) -> None:
    """A trigger for inserts, or one that looks at the fields of an update only, needs nothing from the source."""
    code = """
        from distributary import Publish, trigger

        @trigger("forms", operations=["insert"], match={"fullDocument.n": 1})
        def made(change):
            yield Publish("forms", change.document)

        @trigger("forms", operations=["update"], match={"updateDescription.updatedFields.n": 1})
        def touched(change):
            yield Publish("forms", dict(change.updated))
    """
    harness = Harness(databases, tmp_path / "modules", {"forms": code})
    databases.raw.create_collection("forms")
    assert "keeps none" not in harness.said("check")


@pytest.mark.parametrize("verb", ["preview", "rebuild"])
def test_verbs_that_derive_refuse_a_trigger(harness: Harness, verb: str) -> None:
    """A trigger's name is refused with the reason by what derives, and by what compares."""
    assert "'changed' is a trigger" in harness.said(verb, "changed", code=2)
    assert "'changed' is a trigger" in harness.said("backfill", "--transform", "changed", code=2)
    assert "'changed' is a trigger" in harness.said("verify", "--transform", "changed", code=2)
    assert "'changed' is a trigger" in harness.said(
        "replay", "--from", "-1h", "--transform", "changed", code=2
    )


def test_verify_leaves_the_trail_alone(databases: Databases, tmp_path: Path) -> None:
    """What triggers fill is named apart by `verify`, and neither compared nor repaired away."""
    harness = Harness(databases, tmp_path / "modules", {"orders": ORDERS, **audited()})
    databases.raw.orders.insert_one({"_id": 1, "customer": "c"})
    harness.catch_up()
    databases.raw.forms.insert_one({"_id": 1})
    harness.catch_up()
    out = harness.said("verify", "--repair")
    assert out.startswith("equal: ")
    assert "not compared: filled by triggers, which cannot be recomputed: audit" in out
    assert operations(harness) == [(1, "insert")]


def test_a_record_is_traced_to_its_change(harness: Harness) -> None:
    """`trace` leads from an audit record to the document that changed, and to the trigger."""
    harness.databases.raw.forms.insert_one({"_id": 7})
    harness.catch_up()
    out = harness.said("trace", "audit", trail(harness)[0]["_id"])
    assert "forms 7, which exists" in out
    assert "changed (" in out
    assert "an effect of the change" in out


def test_the_least_user_follows_triggers(databases: Databases, tmp_path: Path) -> None:
    """The documented privileges are enough for triggers, also where the server is asked which of them match."""
    with secured(tmp_path / "server") as server:
        names = [each.name for each in databases]
        harness = Harness(databases, tmp_path / "modules", {"hits": OVERLAP})
        resources = dict(zip((Role.SOURCE, Role.DERIVED, Role.STATE), names, strict=True))
        privileges = [
            {"resource": {"db": resources[need.role], "collection": ""}, "actions": list(need.actions)}
            for need in NEEDS
            if not need.optional
        ]
        harness.settings = {"source.uri": server.user("least", privileges)}
        harness.catch_up()
        server.admin[databases.raw.name].forms.insert_one({"_id": 1, "n": 2})
        server.admin[databases.raw.name].forms.update_one({"_id": 1}, {"$set": {"n": 3}})
        harness.catch_up()
        found = server.admin[databases.derived.name].hits.find().sort("_id.at", 1)
        assert sorted((each["_id"]["by"], each["n"]) for each in found) == [
            ("large", 2),
            ("large", 3),
            ("small", 3),
        ]


def test_a_key_and_a_document_that_are_no_utf8(harness: Harness) -> None:
    """A change with bytes that are no UTF-8 parks itself where nothing encodes it, and holds nothing up."""
    document = encode({"_id": 1, "s": "XX"}).replace(b"XX", b"\xff\xfe")
    key = encode({"_id": "XX"}).replace(b"XX", b"\xff\xfe")
    harness.databases.raw.forms.insert_many([RawBSONDocument(document), RawBSONDocument(key)])
    harness.databases.raw.forms.insert_one({"_id": 2})
    harness.catch_up()
    assert operations(harness) == [(2, "insert")]
    assert [
        "cannot be stored" in each["reason"] or "UTF-8" in each["reason"] for each in letters(harness)
    ] == [
        True,
        True,
    ]


def test_a_transaction_of_many_changes(harness: Harness) -> None:
    """The changes of one source transaction are all seen, in order, in batches that are smaller than it."""
    harness.settings = {"worker.batch_changes": "7"}
    raw = harness.databases.raw
    raw.create_collection("forms")
    with raw.client.start_session() as session, session.start_transaction():
        for n in range(50):
            raw.forms.insert_one({"_id": n}, session=session)
            raw.forms.update_one({"_id": n}, {"$set": {"n": n}}, session=session)
    harness.catch_up()
    assert operations(harness) == [(n, each) for n in range(50) for each in ("insert", "update")]


def test_large_documents_are_read_in_parts(harness: Harness) -> None:
    """Updates of documents that are larger than a batch may be show the latest of each, in several reads."""
    harness.settings = {"worker.batch_bytes": "3MB"}
    forms = harness.databases.raw.forms
    forms.insert_many([{"_id": n, "s": "x" * 1_000_000} for n in range(12)])
    forms.update_many({}, {"$set": {"n": 1}})
    harness.catch_up()
    assert [each["document"]["n"] for each in trail(harness) if each["operation"] == "update"] == [1] * 12
