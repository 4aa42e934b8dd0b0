"""Batches that do not fit into memory: cut into pieces that together are the batch, and each of them whole."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from bson import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from distributary.change import Change, Operation, Position
from distributary.derive.records import DerivedCollection, Record
from distributary.derive.transform import Transform
from distributary.engine.derivation import Derivation, Prepared
from distributary.engine.horizon import Horizon
from distributary.ports.source import Batch, Snapshot
from distributary.state import BEGINNING
from tests.fakes import Document, Raw

copies = DerivedCollection("copies")

SOURCE = "raw"

#: Bytes of a record of a small document, about.
SMALL = 100


def copy(document: Document) -> Iterator[Record]:
    """Yield what is read."""
    yield copies.record(document["_id"], {"text": document["text"]})


class Write(NamedTuple):
    """A change: of which document, how large, whether it is carried, and in the transaction of the one before."""

    key: int
    size: int
    carried: bool
    joined: bool


WRITES = st.lists(
    st.builds(Write, st.integers(0, 6), st.sampled_from([0, 50, 400]), st.booleans(), st.booleans()),
    min_size=1,
    max_size=30,
)


def position(time: int, index: int) -> Position:
    """Give the position of a change, or behind it."""
    return Position.of_token(f"82{1:08X}{time:08X}{index:04X}")


def batch_of(writes: list[Write], raw: Raw) -> Batch:
    """Give the writes as a batch; documents that are not carried lie in the source."""
    times = list(accumulate((0 if write.joined else 1 for write in writes[1:]), initial=1))
    changes = []
    for index, (write, time) in enumerate(zip(writes, times, strict=True)):
        document = {"_id": write.key, "text": "x" * write.size}
        shown = document if write.carried else None
        token = position(time, index).token
        changes.append(Change(SOURCE, write.key, Timestamp(1, time), Operation.REPLACE, shown, token))
        raw.insert(SOURCE, document)
    return Batch(changes, position(times[-1] + 1, 0), 1)


class Newest(Raw):
    """A source of which only the newest state is left."""

    def fetch(
        self,
        collection: str,
        keys: Sequence[Any],
        at: Timestamp | None = None,  # noqa: ARG002 - it is gone
        only: Mapping[str, Any] | None = None,
    ) -> Snapshot:
        """Read as of the newest time."""
        return super().fetch(collection, keys, None, only)


def pieces(batch: Batch, raw: Raw, most: int) -> list[Prepared]:
    """Prepare a batch until nothing is left of it."""
    transform = Transform("copy", SOURCE, copy, "1", frozenset({"copies"}), "t.py:1")
    derivation = Derivation(raw, {SOURCE: [transform]}, 1, 100, most=most)
    found, rest = [], [batch]
    while rest:
        found.append(derivation.prepare(rest.pop(), Horizon(BEGINNING)))
        if (left := found[-1].rest) is not None:
            rest.append(left)
    return found


@given(WRITES, st.sampled_from([1, SMALL, 3 * SMALL, 10**6]))
def test_pieces_are_the_batch(writes: list[Write], most: int) -> None:
    """Behind each piece every document is derived that changed in front of its position."""
    raw = Newest()
    batch = batch_of(writes, raw)
    shown: set[int] = set()
    found = pieces(batch, raw, most)
    for piece in found:
        shown |= {item.key for item in piece.desired}
        passed = [each for each in batch.changes if each.token <= piece.batch.position.token]
        assert {each.key for each in passed} <= shown
    assert found[-1].batch.position == batch.position
    assert shown == {write.key for write in writes}


@given(WRITES, st.sampled_from([1, SMALL, 3 * SMALL]))
def test_pieces_are_whole(writes: list[Write], most: int) -> None:
    """A piece ends between two cluster times, unless the changes of one do not fit together."""
    raw = Newest()
    for piece in pieces(batch_of(writes, raw), raw, most)[:-1]:
        assert not piece.batch.torn or len({each.time for each in piece.batch.changes}) == 1


@given(WRITES, st.sampled_from([1, SMALL, 3 * SMALL]))
def test_pieces_fit(writes: list[Write], most: int) -> None:
    """Without its last document, a piece yields fewer bytes than the bound; it holds no documents."""
    raw = Newest()
    for piece in pieces(batch_of(writes, raw), raw, most):
        assert sum(item.size for item in piece.desired[:-1]) < most
        assert all(each.document is None for each in piece.batch.changes)


def test_a_piece_is_shown_as_of_its_cut() -> None:
    """A document that changes in front of a cut and behind it shows what it was at the cut."""
    raw = Raw()
    writes = [
        Write(key, size, carried=True, joined=False) for key, size in [(1, 9), (2, 400), (3, 9), (1, 8)]
    ]
    first, second, *_ = pieces(batch_of(writes, raw), raw, 2 * SMALL)
    assert [item.version.time for item in first.desired] == [Timestamp(1, 1), Timestamp(1, 2)]
    assert [item.version.time for item in second.desired] == [Timestamp(1, 3), Timestamp(1, 4)]
