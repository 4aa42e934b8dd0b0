"""Comparing shared records with what their parts come to; both as they were committed together."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from distributary.change import identity
from distributary.derive.batch import is_storable
from distributary.derive.shared import Whole, between, differing, of_keys
from distributary.operate.comparison import Difference, Kind
from distributary.operate.sides import Moment

#: Shared records that are compared at once.
SLICE = 200


class Slice(NamedTuple):
    """What came of comparing some shared records in the order of their keys; nothing is `behind` the last ones.

    `records` is how many their parts come to.
    """

    records: int
    behind: tuple[Any, ...]
    differences: list[Difference]


def compare(moment: Moment, collection: str, after: tuple[Any, ...]) -> Slice:
    """Compare the next shared records behind a key, and those that are missing between them."""
    stored = moment.next_records(collection, after, SLICE)
    behind = (stored[-1]["_id"],) if len(stored) == SLICE else ()
    return _compared(collection, stored, moment.wholes(collection, between(after, behind)), behind)


def compare_keys(moment: Moment, collection: str, keys: Sequence[Any]) -> Slice:
    """Compare the shared records under these keys."""
    stored = moment.records_under(collection, keys)
    storable = [key for key in keys if is_storable(key)]
    wholes = moment.wholes(collection, of_keys(storable)) if storable else iter(())
    return _compared(collection, stored, wholes)


def _compared(
    collection: str,
    stored: Sequence[Mapping[str, Any]],
    wholes: Iterator[Whole],
    behind: tuple[Any, ...] = (),
) -> Slice:
    found = list(_differences(collection, stored, wholes))
    kinds = Counter(each.kind for each in found)
    return Slice(len(stored) + kinds[Kind.MISSING] - kinds[Kind.ORPHANED], behind, found)


def _differences(
    collection: str, stored: Sequence[Mapping[str, Any]], wholes: Iterator[Whole]
) -> Iterator[Difference]:
    left = {identity(each["_id"]): each for each in stored}
    for whole in wholes:
        before = left.pop(identity(whole.key), None)
        if before is None:
            yield Difference(Kind.MISSING, collection, whole.key, foreign=True)
        elif fields := differing(before, whole.fields):
            yield Difference(Kind.STALE, collection, whole.key, fields=fields, foreign=True)
    for each in left.values():
        yield Difference(Kind.ORPHANED, collection, each["_id"], foreign=True)
