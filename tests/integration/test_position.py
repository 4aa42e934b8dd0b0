"""`position`: tokens of a real server are read, and a worker is moved without breaking the promise."""

import json
import os
import pty
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import PIPE
from typing import Any
from uuid import UUID, uuid4

import pytest
from bson import Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.binary import Binary
from bson.datetime_ms import DatetimeMS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distributary.change import Position, identity
from distributary.errors import ConfigurationError, PositionLost
from distributary.operate.positions import mark_of, start_of
from distributary.ports.source import Start
from distributary.source import deployment
from distributary.source.token import TokenKind, token_of
from tests.conftest import SOAK, Databases, eventually
from tests.harness import Harness

ORDERS = """
    from distributary import DerivedCollection, transform

    by_order = DerivedCollection("by_order")

    @transform("orders")
    def orders(order):
        yield by_order.record(order["_id"], {"total": order["total"]})
"""

# --- tokens -------------------------------------------------------------------------------------------------

_DECIMALS = st.one_of(
    st.decimals(allow_nan=True, allow_infinity=True),
    st.decimals(min_value=-1, max_value=1, places=33),
    st.decimals(min_value=-(2**70), max_value=2**70, places=10),
    st.builds(
        lambda digits, exponent: Decimal128(f"{digits}E{exponent}").to_decimal(),
        st.integers(-(10**34) + 1, 10**34 - 1),
        st.integers(-6176, 6111),
    ),
    st.builds(
        lambda digits, exponent: Decimal128(f"{digits}E{exponent}").to_decimal(),
        st.integers(-(10**18), 10**18),
        st.integers(-360, 320),
    ),
).filter(lambda number: len(number.as_tuple().digits) <= 34 and not number.is_snan())

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-300, 300),
    st.integers(-(2**63), 2**63 - 1).map(Int64),
    st.floats(),
    st.floats(-2, 2),
    st.integers(-1100, 1000).map(lambda power: 1.5 * 2.0**power),
    _DECIMALS.map(Decimal128),
    st.text(max_size=20),
    st.text("a\0", max_size=5),
    st.binary(max_size=300),
    st.builds(Binary, st.binary(max_size=5), st.sampled_from([1, 5, 128])),
    st.uuids(),
    st.binary(min_size=12, max_size=12).map(ObjectId),
    st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)).map(lambda time: time.replace(tzinfo=UTC)),  # noqa: DTZ001
    st.integers(10**15, 10**16).map(DatetimeMS),
    st.builds(Timestamp, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    st.sampled_from([MinKey(), MaxKey()]),
)

_NAMES = st.text(st.characters(blacklist_characters="\0$", blacklist_categories=["Cs"]), max_size=5)

_VALUES = st.recursive(
    st.one_of(_SCALARS, st.just(Regex("a+")), st.just(Code("f()"))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_NAMES, inner, max_size=3)),
    max_leaves=5,
)

_KEYS = st.one_of(_SCALARS, st.dictionaries(_NAMES, _VALUES, max_size=3))


@settings(max_examples=150 * SOAK, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=st.lists(_KEYS, min_size=5, max_size=20, unique_by=identity))
def test_keys_of_any_type_are_read_from_their_tokens(databases: Databases, keys: list[Any]) -> None:
    """What a token says is the key, the collection and the time that the server tells of the change."""
    databases.raw.keys.delete_many({})
    with databases.raw.keys.watch() as stream:
        databases.raw.keys.insert_many([{"_id": key} for key in keys])
        changes = [stream.next() for _ in keys]
    for change in changes:
        token = token_of(change["_id"]["_data"])
        assert token.unreadable == ""
        assert token.key is not None
        assert identity(token.key) == identity(change["documentKey"])
        assert (token.time, token.kind) == (change["clusterTime"], TokenKind.CHANGE)
        assert token.collection == uuid_of(databases)


def uuid_of(databases: Databases) -> UUID:
    """Give the id of the collection of keys."""
    (info,) = databases.raw.list_collections(filter={"name": "keys"})
    return UUID(bytes=info["info"]["uuid"])


def test_tokens_of_a_transaction_a_drop_and_an_idle_stream(databases: Databases) -> None:
    """The place in a transaction is told, and what has no key has none."""
    databases.raw.keys.insert_one({"_id": 0})
    with databases.raw.keys.watch() as stream, databases.client.start_session() as session:
        stream.try_next()
        assert stream.resume_token is not None
        idle = token_of(stream.resume_token["_data"])
        assert (idle.kind, idle.collection, idle.key) == (TokenKind.HIGH_WATER_MARK, None, None)
        with session.start_transaction():
            databases.raw.keys.insert_many([{"_id": 1}, {"_id": 2}], session=session)
        tokens = [token_of(stream.next()["_id"]["_data"]) for _ in range(2)]
        assert [(each.index, each.key) for each in tokens] == [(0, {"_id": 1}), (1, {"_id": 2})]
        databases.raw.keys.drop()
        dropped, invalidated = (token_of(stream.next()["_id"]["_data"]) for _ in range(2))
    assert (dropped.collection == tokens[0].collection, dropped.key, dropped.unreadable) == (True, None, "")
    assert (dropped.invalidate, invalidated.invalidate) == (False, True)


# --- the verb -----------------------------------------------------------------------------------------------


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker that has derived ten orders."""
    made = Harness(databases, tmp_path / "modules", {"orders": ORDERS})
    databases.raw.orders.insert_many([{"_id": number, "total": 1} for number in range(10)])
    made.catch_up()
    return made


def position(harness: Harness, *arguments: str, code: int = 0) -> str:
    """Give what the verb says."""
    with harness.process("position", *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    return out if code == 0 else err


def answer(harness: Harness, *arguments: str) -> dict[str, Any]:
    """Give what the verb says to a program."""
    found: dict[str, Any] = json.loads(position(harness, *arguments, "--json"))
    assert found["schema"] == 1
    return found


def at(harness: Harness) -> Position:
    """Give the worker's position."""
    checkpoint = harness.databases.state.checkpoints.find_one({"_id": "default"})
    assert checkpoint is not None
    return Position(**checkpoint["position"])


def states(harness: Harness) -> set[str]:
    """Give what `status` says of the transforms."""
    with harness.process("status", "--json", stdout=PIPE) as process:
        found = json.loads(process.communicate(timeout=60)[0])
    return {each["state"] for each in found["workers"][0]["transforms"].values()}


def verify(harness: Harness) -> dict[str, Any]:
    """Give what `verify` finds."""
    with harness.process("verify", "--json", stdout=PIPE) as process:
        found: dict[str, Any] = json.loads(process.communicate(timeout=60)[0])
    return found


def lost_token(databases: Databases) -> str:
    """Give the token of a change that this server does not have: a real one, of another collection."""
    with databases.raw.orders.watch() as stream:
        databases.raw.orders.insert_one({"_id": "token", "total": 0})
        token: str = stream.next()["_id"]["_data"]
    databases.raw.orders.delete_one({"_id": "token"})
    return token[:60] + ("0" if token[60] != "0" else "1") + token[61:]


def test_a_token_is_decoded_with_the_name_of_its_collection(harness: Harness) -> None:
    """With a configuration the collection is told by name; a source that is away costs two seconds, not the answer."""
    with harness.databases.raw.orders.watch() as stream:
        harness.databases.raw.orders.insert_one({"_id": 10, "total": 1})
        token = stream.next()["_id"]["_data"]
    found = answer(harness, "decode", token)["token"]
    assert (found["collection"], found["key"], found["kind"]) == ("orders", {"_id": 10}, "change")
    harness.settings = {"source.uri": "mongodb://127.0.0.1:1/?replicaSet=rs0"}
    assert answer(harness, "decode", token)["token"]["collection"] is None


def test_the_checkpoint_is_shown(harness: Harness) -> None:
    """What is saved is told, with lag and headroom, and the last move once there was one."""
    found = answer(harness, "show")
    shown = found["checkpoint"]
    assert (shown["token"], shown["epoch"], shown["state"]) == (at(harness).token, 1, "stopped")
    assert shown["lag_seconds"] >= 0
    assert shown["headroom_seconds"] >= 0
    assert found["moved"] is None
    position(harness, "set", "oldest", "--yes")
    assert answer(harness, "show")["moved"]["direction"] == "back"
    assert "back by " in position(harness, "show")


def test_without_a_checkpoint_there_is_nothing_to_show_or_to_move(
    databases: Databases, tmp_path: Path
) -> None:
    """Where a worker begins is the configuration's to say."""
    harness = Harness(databases, tmp_path / "modules", {"orders": ORDERS})
    assert answer(harness, "show")["checkpoint"] is None
    assert "no checkpoint yet; it begins as worker.start says: backfill" in position(harness, "show")
    assert "worker.start" in position(harness, "set", "now", "--yes", code=1)
    assert databases.state.position_moves.count_documents({}) == 0


def test_what_lies_between_two_positions_is_counted(harness: Harness) -> None:
    """Changes are counted by collection and operation, in either order, up to the token and with it."""
    since, raw = at(harness), harness.databases.raw
    with raw.orders.watch() as stream:
        stream.try_next()
        raw.orders.insert_many([{"_id": number, "total": 1} for number in range(10, 13)])
        raw.orders.update_one({"_id": 1}, {"$set": {"total": 2}})
        raw.other.insert_one({})
        raw.orders.delete_one({"_id": 2})
        tokens = [stream.next()["_id"]["_data"] for _ in range(5)]
    found = answer(harness, "show", since.token, "now")
    assert found["changes"] == {"orders": {"insert": 3, "update": 1, "delete": 1}}
    assert found["seconds"] >= 0
    assert answer(harness, "show", tokens[0], tokens[3])["changes"] == {"orders": {"insert": 2, "update": 1}}
    backwards = answer(harness, "show", tokens[3])
    assert (backwards["changes"], backwards["total"]) == ({"orders": {"insert": 3, "update": 1}}, 4)
    assert backwards["seconds"] <= 0
    assert backwards["to"]["token"] == since.token
    said = position(harness, "show", tokens[3].lower())
    assert "ahead of it\n4 changes between them\n  orders: 3 insert, 1 update\n" in said
    assert answer(harness, "show", "now", "now")["total"] == 0


def test_a_dropped_collection_and_database_lie_between(harness: Harness) -> None:
    """What happens to whole collections counts, too, and does not end the count."""
    since, raw = at(harness), harness.databases.raw
    raw.orders.drop()
    raw.orders.insert_one({"_id": 1, "total": 1})
    harness.databases.client.drop_database(raw.name)
    raw.orders.insert_one({"_id": 2, "total": 1})
    changes = answer(harness, "show", since.token, "now")["changes"]
    assert changes["orders"]["insert"] == 2
    assert changes["orders"]["gone"] >= 2


def test_what_is_no_position_is_refused(harness: Harness) -> None:
    """Words that are none, `backfill`, and times outside the history end with what is wrong."""
    raw = harness.databases.raw
    for text in ("yesterday", "backfill", "1900-01-01", "-99999999w", "82"):
        with pytest.raises(ConfigurationError, match=r"is no position\. +Give a resume token in hex"):
            mark_of(text, raw)
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    with pytest.raises(ConfigurationError, match="lies in the future"):
        mark_of(later, raw)
    with pytest.raises(PositionLost, match="does not reach back to"):
        mark_of("2001-01-01", raw)
    assert "is no position" in position(harness, "show", "yesterday", code=2)
    assert "Its oldest operation is of 2" in position(harness, "set", "-520w", "--yes", code=4)


def test_a_position_is_read_as_the_configuration_reads_it(databases: Databases) -> None:
    """A token stays, a time and a duration are cluster times, and `oldest` asks the source."""
    assert start_of("now", databases.raw) == Start()
    assert start_of("2026-01-31T12:00:00Z", databases.raw).time == Timestamp(1769860800, 0)
    assert start_of("82" + "ab" * 8, databases.raw).token == "82" + "AB" * 8
    assert start_of("oldest", databases.raw).time == deployment.oldest(databases.client)
    hour_ago = start_of("-1h", databases.raw).time
    assert hour_ago is not None
    assert abs(datetime.now(UTC).timestamp() - 3600 - hour_ago.time) < 60
    with pytest.raises(ConfigurationError):
        start_of("backfill", databases.raw)


# --- moving -------------------------------------------------------------------------------------------------


def test_back_nothing_goes_to_an_older_state(harness: Harness) -> None:
    """Set back, the worker writes nothing but what is newer, however small its batches; derived stays equal."""
    harness.settings = {"worker.batch_changes": "2"}
    old, raw, derived = at(harness), harness.databases.raw, harness.databases.derived
    for total in range(2, 6):
        raw.orders.update_many({}, {"$set": {"total": total}})
    raw.orders.replace_one({"_id": 3}, {"_id": 3, "total": 9})
    raw.orders.delete_one({"_id": 4})
    raw.orders.insert_one({"_id": 20, "total": 1})
    raw.orders.delete_one({"_id": 20})
    raw.orders.delete_one({"_id": 5})
    raw.orders.insert_one({"_id": 5, "total": 8})
    harness.catch_up()
    ahead = at(harness)
    found = answer(harness, "set", old.token, "--yes")
    assert (found["moved"], found["direction"], found["not_built"]) == (True, "back", [])
    assert at(harness) == old
    checkpoint = harness.databases.state.checkpoints.find_one({"_id": "default"})
    assert checkpoint is not None
    assert checkpoint["ahead"] >= ahead.time
    assert states(harness) == {"built"}
    with derived.by_order.watch() as stream:
        stream.try_next()
        raw.orders.update_one({"_id": 1}, {"$set": {"total": 7}})
        harness.catch_up()
        written = [stream.next()]
        while (more := stream.try_next()) is not None:
            written.append(more)
    assert [each["documentKey"]["_id"] for each in written] == [1]
    harness.assert_equal()
    assert at(harness).time >= ahead.time
    assert verify(harness)["equal"]


def test_ahead_what_is_skipped_is_said_and_made_good(harness: Harness) -> None:
    """Set ahead, every transform counts as not built until a backfill has built it."""
    raw = harness.databases.raw
    raw.orders.update_many({}, {"$set": {"total": 2}})
    raw.orders.delete_one({"_id": 1})
    old = at(harness)
    said = position(harness, "set", "now", "--yes")
    assert "WHAT CHANGED IN BETWEEN IS SKIPPED" in said
    assert "then `distributary backfill`" in said
    assert at(harness).time > old.time
    assert states(harness) == {"not built"}
    harness.catch_up()
    assert states(harness) == {"not built"}
    assert verify(harness)["not_built"] == ["orders"]
    assert harness.derived() != harness.recomputed()
    with harness.process("backfill", stdout=PIPE, stderr=PIPE) as process:
        process.communicate(timeout=60)
    assert states(harness) == {"built"}
    assert verify(harness)["equal"]
    harness.assert_equal()


def test_a_move_is_recorded(harness: Harness) -> None:
    """Who moved it, when, from where and to where is kept; nothing is when nothing was moved."""
    old = at(harness)
    assert answer(harness, "set", old.token, "--yes")["moved"] is False
    assert harness.databases.state.position_moves.count_documents({}) == 0
    position(harness, "set", "oldest", "--yes")
    (move,) = harness.databases.state.position_moves.find()
    assert (move["worker"], Position(**move["old"]), Position(**move["new"])) == ("default", old, at(harness))
    assert "@" in move["by"]
    assert abs((move["at"] - datetime.now(UTC)).total_seconds()) < 60
    assert harness.databases.state.leases.find_one({"holder": {"$ne": None}}) is None


def test_a_duration_back_is_no_option(harness: Harness) -> None:
    """`-1s` is a position wherever one may be given."""
    eventually(
        lambda: deployment.oldest(harness.databases.client).time + 1 < datetime.now(UTC).timestamp() - 1
    )
    assert answer(harness, "show", "-1s", "now")["seconds"] in {0, 1, 2}
    assert answer(harness, "set", "-1s", "--yes")["moved"]


def test_a_running_worker_is_not_moved(harness: Harness) -> None:
    """Its position is its own; the refusal says what to do, and nothing is changed."""
    with harness.running() as worker:
        eventually(lambda: (found := worker.holder()) is not None and found.alive)
        said = position(harness, "set", "oldest", "--yes", code=1)
        assert "is running, held by " in said
        assert "Stop it, run this again" in said
    assert harness.databases.state.position_moves.count_documents({}) == 0
    harness.assert_equal()


def test_a_lost_position_is_refused(harness: Harness) -> None:
    """A token that the source does not have ends with 4 and the oldest operation; nothing is changed."""
    lost, before = lost_token(harness.databases), at(harness)
    for arguments in (["set", lost, "--yes"], ["show", lost, "now"]):
        said = position(harness, *arguments, code=4)
        assert "Its oldest operation is of 2" in said
    assert at(harness) == before


def test_ahead_of_a_job_that_has_begun_is_refused(harness: Harness) -> None:
    """A job would call built what it read before the changes that are skipped; back is no such danger."""
    harness.databases.state.jobs.insert_one(
        {
            "_id": ObjectId(),
            "worker": "default",
            "done": False,
            "kind": "backfill",
            "source": "orders",
            "transforms": ["orders"],
            "reason": "asked for",
            "sweep": False,
            "keys": [],
            "foreign": [],
            "stage": "scan",
            "after": [3],
            "documents": 4,
            "total": 10,
            "code": {},
        }
    )
    before = at(harness)
    assert "distributary jobs cancel" in position(harness, "set", "now", "--yes", code=1)
    assert at(harness) == before
    position(harness, "set", "oldest", "--yes")


def test_somebody_is_asked(harness: Harness) -> None:
    """On a terminal the move is asked for, elsewhere `--yes` has to be said."""
    before = at(harness)
    assert "--yes" in position(harness, "set", "oldest", code=2)
    for reply, code, moved in ((b"n\n", 1, False), (b"y\n", 0, True)):
        with (
            terminal(reply) as stdin,
            harness.process("position", "set", "oldest", stdin=stdin, stdout=PIPE) as process,
        ):
            out, _ = process.communicate(timeout=60)
        assert process.returncode == code
        assert "What changed since is read again" in out
        assert (at(harness) != before) is moved


@contextmanager
def terminal(typed: bytes) -> Iterator[int]:
    """Give a terminal on which this is typed."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, typed)
        yield theirs
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_worker_of_another_source_is_not_moved(harness: Harness) -> None:
    """A position of this source means nothing on the one that the worker reads."""
    harness.databases.state.checkpoints.update_one(
        {"_id": "default"}, {"$set": {"source.database": uuid4().hex}}
    )
    assert "reads another source" in position(harness, "set", "oldest", "--yes", code=1)
