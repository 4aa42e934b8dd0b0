"""Creating derived collections and their indexes before anything is written to them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pymongo import IndexModel
from pymongo.database import Database
from pymongo.errors import OperationFailure

from distributary.errors import EnvironmentFault
from distributary.sink.stored import OWNER_INDEX

#: Codes of an index that cannot be: CannotCreateIndex, IndexAlreadyExists, InvalidOptions, IndexOptionsConflict,
#: IndexKeySpecsConflict, CannotIndexParallelArrays, InvalidIndexSpecificationOption, CannotBuildIndexKeys.
_BAD_INDEX = frozenset({67, 68, 72, 85, 86, 171, 197, 201})

Indexes = Sequence[Sequence[tuple[str, int]]]


def prepare(derived: Database[Any], wanted: Iterable[tuple[str, Indexes]]) -> None:
    """Create each derived collection with the owner index and its own; what exists is left as it is."""
    existing = {each["name"]: each for each in derived.list_collections()}
    for name, indexes in wanted:
        if name in existing:
            refuse_unsuitable(existing[name])
        models = [
            IndexModel(OWNER_INDEX, name="distributary_owner"),
            *(IndexModel(list(keys)) for keys in indexes),
        ]
        _create(derived, name, models)


def _create(derived: Database[Any], name: str, models: Sequence[IndexModel]) -> None:
    if not models:
        return
    try:
        derived[name].create_indexes(models)
    except OperationFailure as error:
        if error.code not in _BAD_INDEX:
            raise
        raise EnvironmentFault(
            f"The indexes of derived collection {name!r} cannot be created: {error}",
            "Drop the index that is in the way, or change `indexes` in the transform module.",
        ) from error


def prepare_rollups(derived: Database[Any], wanted: Iterable[tuple[str, Indexes]]) -> None:
    """Create the collection of each rollup with its indexes; what exists is left as it is."""
    existing = {each["name"]: each for each in derived.list_collections()}
    for name, indexes in wanted:
        if name in existing:
            refuse_unsuitable(existing[name])
        else:
            derived.create_collection(name, check_exists=False)
        _create(derived, name, [IndexModel(list(keys)) for keys in indexes])


def refuse_unsuitable(info: Mapping[str, Any]) -> None:
    """Refuse a derived collection, as `listCollections` tells of it, that cannot hold records by their key."""
    name, options = info["name"], info.get("options", {})
    if info["type"] != "collection":
        raise EnvironmentFault(
            f"Derived collection {name!r} is a {info['type']}.", "Give the derived collection another name."
        )
    for option, reason in (("collation", "compares keys in its own way"), ("capped", "forgets records")):
        if option in options:
            raise EnvironmentFault(
                f"Derived collection {name!r} is {option}: it {reason}.",
                "Drop it, so that it is created anew, or give the derived collection another name.",
            )
