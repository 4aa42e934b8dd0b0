"""The table of BigQuery that holds a derived collection: of its model, or of what is stored now. Nothing is written."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, NamedTuple

from pymongo.database import Database

from distributary.change import RAW
from distributary.derive.records import DerivedCollection
from distributary.derive.registry import Registry
from distributary.errors import ConfigurationError, Failed, Fault
from distributary.events.bigquery import KEY, KEY_TYPE, Table
from distributary.events.columns import BadModel, table_of_model, table_of_records
from distributary.operate.preview import committed


class Tabled(NamedTuple):
    """A table for a derived collection; `records` is the number that it was read off, None for a model's."""

    collection: DerivedCollection
    table: Table
    records: int | None = None

    def answer(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        model = self.collection.model
        return {
            "collection": self.collection.name,
            "model": model.__name__ if model and self.records is None else None,
            "records": self.records,
            "columns": self.table.schema(),
            "primary_key": [KEY, KEY_TYPE],
            "notes": list(self.table.notes),
        }


def chosen(registry: Registry, name: str) -> DerivedCollection:
    """Give the derived collection of this name; raises `ConfigurationError` when there is none."""
    if name in registry.collections:
        return registry.collections[name]
    raise ConfigurationError([_unknown(registry, name)])


def _unknown(registry: Registry, name: str) -> Fault:
    if name in registry.rollups:
        return Fault("COLLECTION", f"{name!r} is a rollup, which is not published.", "Sum up in BigQuery.")
    names = sorted(registry.collections)
    close = get_close_matches(name, names, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    told = f"{hint}There are: {', '.join(names) or 'none'}."
    return Fault("COLLECTION", f"no derived collection is called {name!r}.", told)


def of_model(registry: Registry, collection: DerivedCollection) -> Tabled:
    """Give the table of the collection's model; raises `ConfigurationError` when it cannot be read."""
    assert collection.model is not None
    try:
        return Tabled(collection, table_of_model(collection.model))
    except BadModel as error:
        cure = "Give a pydantic model, a dataclass, a TypedDict or another class with annotations."
        raise ConfigurationError([Fault(registry.places[collection.name], f"{error}.", cure)]) from error


def refuse_bad_models(registry: Registry) -> None:
    """Raise `ConfigurationError` for a published collection whose model cannot be read."""
    for collection in registry.published.values():
        if collection.model is not None:
            of_model(registry, collection)


def of_sample(derived: Database[Any], collection: DerivedCollection, count: int) -> Tabled:
    """Give the table that records suggest which are drawn at random; raises `Failed` when there are none."""
    counter = _Counted(derived, collection.name, count)
    table = table_of_records(counter)
    if not counter.records:
        raise Failed(
            f"{derived.name}.{collection.name} has no records to sample.",
            f"Run `distributary run` first, or declare DerivedCollection({collection.name!r}, model=...).",
        )
    return Tabled(collection, table, counter.records)


class _Counted:
    """Records in BSON that are drawn at random, and how many they were."""

    def __init__(self, derived: Database[Any], name: str, count: int) -> None:
        self._stored = committed(derived).get_collection(name, RAW)
        self._count = count
        self.records = 0

    def __iter__(self) -> Iterator[bytes]:
        for document in self._stored.aggregate([{"$sample": {"size": self._count}}]):
            self.records += 1
            yield document.raw
