"""Rollups in a test's database, which may be one in memory that computes less than a server."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distributary.change import identity
from distributary.derive.plan import Plan, Stored
from distributary.derive.records import ENGINE_FIELD
from distributary.derive.rollup import Computed, Rollup, computed, computing, within
from distributary.derive.touched import Groups, Touched
from distributary.derive.transform import Transform
from distributary.errors import EnvironmentFault
from distributary.testing.order import in_order

if TYPE_CHECKING:  # the driver is slow to import, and every run of pytest imports this
    from pymongo.database import Database

Document = dict[str, Any]


class Followed:
    """The rollups over what some transforms fill, kept in a database."""

    def __init__(self, database: "Database[Document]", transforms: Iterable[Transform]) -> None:
        self._database = database
        self._rollups: Mapping[str, Rollup] = {
            each.name: each
            for transform in transforms
            for some in transform.rollups.values()
            for each in some
        }
        self._in_memory = type(database).__module__.partition(".")[0] == "mongomock"

    def follow(self, plan: Plan, known: Iterable[Stored]) -> None:
        """Compute the groups that were touched by the writes of a plan."""
        touched = Touched(self._rollups.values())
        touched.note_plan(plan, known)
        self._compute(touched)

    def follow_shared(self, collection: str, documents: Iterable[Document]) -> None:
        """Compute the groups that shared records were in, or are in now."""
        touched = Touched(self._rollups.values())
        for document in documents:
            touched.note(collection, document)
        self._compute(touched)

    def _compute(self, touched: Touched) -> None:
        for name, groups in touched.groups.items():
            self._store(self._rollups[name], groups)

    def _store(self, rollup: Rollup, groups: Groups) -> None:
        found = {identity(each.group): each for each in self._computed(rollup, list(groups.values()))}
        collection = self._database[rollup.name]
        for group, key in groups.items():
            result = found.get(group)
            if result is None:
                collection.delete_one({"_id": key})
            else:
                document = {**result.document, ENGINE_FIELD: {"by": rollup.name}}
                collection.replace_one({"_id": key}, document, upsert=True)

    def _computed(self, rollup: Rollup, groups: Sequence[Any]) -> list[Computed]:
        stages: list[Any] = [{"$match": within(rollup, groups)}, *computing(rollup)]
        collection = self._database[rollup.over.name]
        if not self._in_memory:
            return [each for one in collection.aggregate(stages) if (each := computed(rollup, one))]
        try:
            found = list(collection.aggregate(list(map(_simple, stages))))
        except (NotImplementedError, TypeError) as error:
            raise EnvironmentFault(
                f"mongomock cannot compute rollup {rollup.name!r}: {error}",
                "Give `apply` a database of a real MongoDB.",
            ) from error
        return [_sorted(rollup, each) for one in found if (each := computed(rollup, one))]


def _simple(stage: Document) -> Document:
    """Give a stage in what mongomock knows: it counts with a sum, and sorts no lists."""
    if "$set" in stage:
        return {"$match": {}}
    if "$group" not in stage:
        return stage
    named = stage["$group"].items()
    return {"$group": {name: {"$sum": 1} if "$count" in _names(each) else each for name, each in named}}


def _names(accumulator: object) -> Iterable[str]:
    return accumulator if isinstance(accumulator, Mapping) else ()


def _sorted(rollup: Rollup, result: Computed) -> Computed:
    sets = {name for name, accumulator in rollup.compute.items() if "$addToSet" in accumulator}
    document = {
        name: sorted(value, key=in_order) if name in sets else value
        for name, value in result.document.items()
    }
    return result._replace(document=document)
