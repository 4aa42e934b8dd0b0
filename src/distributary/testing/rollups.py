"""Rollups in a test's database, which may be one in memory that computes less than a server."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bson import Decimal128

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
        fields = _read_by(rollup)
        if any(_has_decimal(each.get(name)) for each in collection.find() for name in fields):
            raise _too_hard(rollup, f"it takes no Decimal128 in {', '.join(fields)}")
        try:
            found = list(collection.aggregate(list(map(_simple, stages))))
        except (NotImplementedError, TypeError) as error:  # values that it does not order
            raise _too_hard(rollup, str(error)) from error
        return [_sorted(rollup, each) for one in found if (each := computed(rollup, one))]


def _too_hard(rollup: Rollup, why: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"mongomock cannot compute rollup {rollup.name!r}: {why}.",
        "Give `apply` a database of a real MongoDB.",
    )


def _read_by(rollup: Rollup) -> list[str]:
    """Give the fields whose decimals mongomock takes for no numbers: all that are not just summed up or collected."""
    hard = [
        operand
        for each in rollup.compute.values()
        for name, operand in each.items()
        if not (name in {"$sum", "$addToSet"} and isinstance(operand, str))
    ]
    named = {path.partition(".")[0] for path in rollup.paths} | set(_queried(rollup.match or {}))
    return sorted(named.union(*map(_fields, hard)))


def _queried(query: Mapping[str, Any]) -> Iterator[str]:
    """Give the top-level fields that a query looks at."""
    for name, part in query.items():
        if name == "$expr":
            yield from _fields(part)
        elif name[:1] == "$":
            yield from (field for each in part for field in _queried(each))
        else:
            yield name.partition(".")[0]


def _fields(expression: object) -> set[str]:
    """Give the top-level fields that an expression reads."""
    if isinstance(expression, str):
        return {expression[1:].partition(".")[0]} if expression[:1] == "$" else set()
    inner = expression.values() if isinstance(expression, Mapping) else expression
    return set().union(*map(_fields, inner)) if isinstance(inner, Iterable) else set()


def _has_decimal(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_decimal, value.values()))
    return isinstance(value, Decimal128) or (isinstance(value, list) and any(map(_has_decimal, value)))


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
