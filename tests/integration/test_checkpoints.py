"""Checkpoints of every format that a release wrote: they are read, or refused with a cure."""

from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from bson import Timestamp
from bson.json_util import CANONICAL_JSON_OPTIONS, loads

from distributary.assemble import Assembled
from distributary.change import Position
from distributary.engine.wiring import Goal
from distributary.errors import Failed
from distributary.state import FORMAT, Built, Checkpoint, SourceIdentity
from distributary.store.checkpoints import Checkpoints
from distributary.store.lease import Lease
from tests.conftest import Databases, eventually
from tests.harness import Harness

#: Extended JSON of a stored checkpoint, one file per format, named by its number.
KEPT = {int(each.stem): each for each in (Path(__file__).parent / "checkpoints").glob("*.json")}

TOKEN = (
    "82692100A8000000012B022C0100296E5A1004C1D0A3B8E5F24D0C9B1E7A6F3C2D4E5F463C6F7065726174696F6E54797065003C"
    "696E736572740046646F63756D656E744B65790046645F69640064692100A8A1B2C3D4E5F60718000004"
)

#: What every file tells, in the words of this release.
TOLD = Checkpoint(
    worker="default",
    position=Position(TOKEN, Timestamp(1763770536, 1)),
    ahead=Timestamp(1763770530, 3),
    source=SourceIdentity("rs0", "692100a0f1e2d3c4b5a69788", "raw"),
    epoch=2,
    watched=("orders", "users"),
    transforms={
        "orders": Built(
            "orders", "0123456789abcdef", frozenset({"order_lines", "orders_by_code"}), built=True
        ),
        "users": Built("users", "fedcba9876543210", frozenset({"names"}), built=False, unplugged=True),
    },
    detached={"users": Timestamp(1763770500, 7)},
    revision=41,
)


def kept(number: int) -> dict[str, Any]:
    """Give the stored document of one format."""
    document: dict[str, Any] = loads(KEPT[number].read_text("utf-8"), json_options=CANONICAL_JSON_OPTIONS)
    return document


def shape(value: Any) -> Any:
    """Give the names and types of a document; entries whose names are data count as one."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    return type(value).__name__


def form(document: dict[str, Any]) -> Any:
    """Give the shape of a stored checkpoint, whatever its transforms and collections are called."""
    entries = list(document["transforms"].values())[:1]
    return shape(document | {"transforms": entries, "detached": list(document["detached"].values())[:1]})


@pytest.mark.parametrize("number", sorted(KEPT))
def test_a_checkpoint_of_every_format_is_read(databases: Databases, number: int) -> None:
    """What an earlier release wrote means the same to this one."""
    databases.state.checkpoints.insert_one(kept(number))
    assert Checkpoints(databases.state).load("default") == TOLD


@pytest.mark.parametrize("number", sorted(KEPT))
def test_a_worker_goes_on_from_a_checkpoint_of_every_format(harness: Harness, number: int) -> None:
    """From an earlier release's checkpoint, moved to this source, a worker misses nothing."""
    harness.catch_up()
    checkpoints = harness.databases.state.checkpoints
    mine = checkpoints.find_one_and_delete({"_id": "default"})
    assert mine is not None
    here = {name: mine[name] for name in ("position", "source", "watched")}
    checkpoints.insert_one(kept(number) | here | {"ahead": Timestamp(0, 0)})
    harness.databases.raw.orders.insert_one({"_id": 1, "customer": "c", "skus": ["a"]})
    harness.catch_up()
    harness.assert_equal()


def test_the_present_format_is_kept(harness: Harness) -> None:
    """Whoever changes what is stored raises `FORMAT` and keeps a file of it."""
    orders = harness.databases.raw.orders
    orders.insert_one({"_id": 1})
    harness.catch_up()
    orders.drop()
    harness.catch_up()
    written = harness.databases.state.checkpoints.find_one({"_id": "default"})
    assert written is not None
    assert max(KEPT) == FORMAT
    assert form(written) == form(kept(FORMAT))


def newer(harness: Harness) -> dict[str, Any]:
    """Let the checkpoint be one of a newer release, and give it."""
    checkpoints = harness.databases.state.checkpoints
    checkpoints.update_one({"_id": "default"}, {"$set": {"format": FORMAT + 1}})
    return dict(checkpoints.find_one({"_id": "default"}) or {})


def test_a_newer_format_is_refused_with_its_cure(harness: Harness) -> None:
    """An older release touches nothing that a newer one wrote, says what to do, and gives the lease back."""
    harness.catch_up()
    written = newer(harness)
    with pytest.raises(Failed, match=rf"has format {FORMAT + 1}.*reads up to {FORMAT}") as refused:
        harness.catch_up()
    assert "Run the newer release again" in refused.value.cure
    state = harness.databases.state
    assert state.checkpoints.find_one({"_id": "default"}) == written
    assert [each["holder"] for each in state.leases.find()] == [None]


def test_an_older_standby_does_not_take_over_from_a_newer_release(harness: Harness) -> None:
    """What waited for the lease while the checkpoint became a newer one ends before it publishes or writes anything."""
    harness.catch_up()
    Lease(harness.databases.state, "default", 60).acquire()
    with harness.assembled() as assembled:
        died: list[Failed] = []
        standby = Thread(target=lambda: died.append(_refused(assembled)))
        standby.start()
        eventually(lambda: assembled.holder() is not None)
        written = newer(harness)
        harness.databases.state.leases.update_one({}, {"$set": {"holder": None}})
        standby.join(30)
    assert "reads up to" in died[0].message
    assert harness.databases.state.checkpoints.find_one({"_id": "default"}) == written


def _refused(assembled: Assembled) -> Failed:
    with pytest.raises(Failed) as refused:
        assembled.serve(Goal())
    return refused.value


def test_no_verb_of_an_older_release_goes_on_with_a_newer_state(harness: Harness) -> None:
    """Each ends with exit code 1 and the cure, and leaves what is there as it is."""
    harness.databases.raw.orders.insert_many([{"_id": each, "code": "same"} for each in range(2)])
    harness.catch_up()
    before = newer(harness), list(harness.databases.state.dead_letters.find())
    verbs = ("status", "backfill", "position set now --yes", "jobs cancel 692100a0f1e2d3c4b5a69788")
    for verb in (*verbs, "dead-letters list", "dead-letters discard --all --yes"):
        assert f"this release reads up to {FORMAT}" in harness.said(*verb.split(), code=1), verb
    state = harness.databases.state
    assert (state.checkpoints.find_one({"_id": "default"}), list(state.dead_letters.find())) == before


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker with the orders module."""
    return Harness(databases, tmp_path / "modules")
