"""Shadows: collections that are written along with the derived ones until they take their places."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from distributary.change import new_tuple
from distributary.derive.plan import Desired
from distributary.derive.records import EncodedRecord

#: The names of shadows, by those of the collections that they belong to.
Names = Mapping[str, str]


def shadowed(desired: Iterable[Desired], shadows: Names) -> list[Desired]:
    """Give what documents yield into shadows."""
    return [_with(item, list(_records(item, shadows))) for item in desired]


def written(collections: Mapping[str, Iterable[str]], shadows: Names) -> dict[str, list[str]]:
    """Give the shadows in which each transform may have records, as `collections` has it for the live ones."""
    return {name: [shadows[each] for each in some if each in shadows] for name, some in collections.items()}


def _with(item: Desired, records: Sequence[EncodedRecord]) -> Desired:
    return replace(item, records=records, size=sum([len(record.document) for record in records]))


def _records(item: Desired, shadows: Names) -> Iterable[EncodedRecord]:
    for place, key, document, tail in item.records:
        shadow = shadows.get(place[0])
        if shadow is not None:
            yield new_tuple(EncodedRecord, ((shadow, place[1]), key, document, tail))
