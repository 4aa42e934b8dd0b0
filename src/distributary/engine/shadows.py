"""Shadows: collections that are written along with the derived ones until they take their places."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from distributary.change import new_tuple
from distributary.derive.plan import Desired
from distributary.derive.records import EncodedRecord
from distributary.state import Built, Shadow

Shadows = Mapping[str, Shadow]


def along(desired: Sequence[Desired], shadows: Shadows) -> Sequence[Desired]:
    """Give what documents yield, with each record of a collection that has a shadow in that, too."""
    if not shadows:
        return desired
    return [_with(item, [*item.records, *_shadowed(item, shadows)]) for item in desired]


def alone(desired: Iterable[Desired], shadows: Shadows) -> list[Desired]:
    """Give what documents yield in shadows only."""
    return [_with(item, list(_shadowed(item, shadows))) for item in desired]


def written(
    transforms: Mapping[str, Built], shadows: Shadows, *, alone: bool = False
) -> Mapping[str, Sequence[str]]:
    """Give the collections in which each transform may have records, shadows included, or only those."""
    return {
        name: [*(() if alone else built.collections), *_names(built.collections, shadows)]
        for name, built in transforms.items()
    }


def live(collection: str, shadows: Shadows) -> str:
    """Give the collection that a shadow belongs to; another one's name is its own."""
    return next((name for name, each in shadows.items() if each.name == collection), collection)


def _names(collections: Iterable[str], shadows: Shadows) -> list[str]:
    return [shadows[name].name for name in collections if name in shadows]


def _with(item: Desired, records: Sequence[EncodedRecord]) -> Desired:
    return replace(item, records=records, size=sum([len(record.document) for record in records]))


def _shadowed(item: Desired, shadows: Shadows) -> Iterable[EncodedRecord]:
    for place, key, document, tail in item.records:
        shadow = shadows.get(place[0])
        if shadow is not None:
            yield new_tuple(EncodedRecord, ((shadow.name, place[1]), key, document, tail))
