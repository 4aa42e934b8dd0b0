"""Rollups: what MongoDB computes over the records of a derived collection, one document per group."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import sha256
from math import isfinite, isnan
from typing import Any, NamedTuple

from bson import DBRef, Decimal128, Regex, encode
from bson.decimal128 import create_decimal128_context
from bson.errors import BSONError

from distributary.change import CODEC, Identity, identity
from distributary.derive.records import ENGINE_FIELD, DerivedCollection, IndexSpec
from distributary.excerpt import excerpt

#: Accumulators whose result does not depend on the order of records.
ACCUMULATORS = ("$sum", "$avg", "$min", "$max", "$count", "$addToSet", "$minN", "$maxN")

#: Those whose result does not either when their `sortBy` tells any two records apart.
SORTING = ("$top", "$topN", "$bottom", "$bottomN")

#: What gives something else the next time, or cannot stand behind another stage.
_UNSTABLE = frozenset({"$rand", "$sampleRate", "$function", "$accumulator", "$where", "$text"})
_UNSTABLE_VARIABLES = frozenset({"$$NOW", "$$CLUSTER_TIME", "$$USER_ROLES"})

#: The query that finds nothing, without reading anything.
NOTHING = {"$alwaysFalse": 1}

#: Where a group that was computed has the number of its records.
COUNT = ENGINE_FIELD

#: Digits of a fingerprint; and the number of the rules by which groups are computed, which it covers.
_DIGITS = 16
_RULES = 1

_DECIMAL = create_decimal128_context()
_LONG = 2**63


@dataclass(frozen=True, eq=False)
class Rollup:
    """A derived collection of one document per group of the records in another: `{_id: group, **compute}`.

    `by`: the field whose value is the group, or a list of fields (`_id` is a document then). `compute`: result fields,
    each an accumulator of `$group` whose result does not depend on the order of records. `match`: a query; only
    records that match it are counted. A record in which a field of `by` is missing or null belongs to no group.
    """

    name: str
    over: DerivedCollection
    by: str | Sequence[str]
    compute: Mapping[str, Mapping[str, Any]]
    match: Mapping[str, Any] | None = None
    indexes: Sequence[IndexSpec] = field(default=())

    @property
    def paths(self) -> tuple[str, ...]:
        """The fields of `by`."""
        return (self.by,) if isinstance(self.by, str) else tuple(self.by)

    @property
    def fingerprint(self) -> str:
        """A text that is another one when groups are computed in another way; indexes do not count."""
        by = self.by if isinstance(self.by, str) else list(self.by)
        definition = {
            "rules": _RULES,
            "over": self.over.name,
            "by": by,
            "compute": self.compute,
            "match": self.match,
        }
        return sha256(encode(definition, codec_options=CODEC)).hexdigest()[:_DIGITS]


class Problem(NamedTuple):
    """What is wrong with a rollup, and what to do about it."""

    problem: str
    cure: str


# --- what can be wrong with one ------------------------------------------------------------------------


def problems(rollup: Rollup) -> Iterator[Problem]:
    """Give what is wrong with `by`, `compute` and `match`, as far as it is known without a server."""
    yield from _by_problems(rollup.by)
    yield from _compute_problems(rollup.compute)
    match: object = rollup.match
    if match is not None and not isinstance(match, Mapping):
        yield Problem(f"has a match that is no query: {match!r:.80}", 'Write match={"state": "paid"}.')
    for part in sorted(set(_unstable([rollup.compute, rollup.match]))):
        yield Problem(
            f"uses {part}, which gives something else the next time or cannot be used here",
            "Compute from the fields of the records alone; a transform can put what is needed there.",
        )
    try:
        encode({"compute": rollup.compute, "match": rollup.match}, codec_options=CODEC)
    except (BSONError, UnicodeError, TypeError, OverflowError, RecursionError, ValueError) as error:
        yield Problem(f"cannot be written as BSON: {error}", "Use values that MongoDB has.")


def _by_problems(by: object) -> Iterator[Problem]:
    paths = [by] if isinstance(by, str) else by
    if not isinstance(paths, list | tuple) or not paths or not all(isinstance(path, str) for path in paths):
        yield Problem(
            f"has by={by!r:.80}, which names no field", 'Write by="customer_id", or a list of fields.'
        )
        return
    for path in paths:
        yield from _path_problems(path)
    names = [group_name(path) for path in paths]
    if len(set(names)) < len(names):
        yield Problem(
            f"has by={by!r:.80}, in which two fields have one name in the group",
            'Name each field once; "a.b" is called "a_b" there.',
        )


def _path_problems(path: str) -> Iterator[Problem]:
    cure = "Name a field of the records, with dots for one that lies deeper."
    parts = path.split(".")
    if not all(parts) or "\0" in path:
        yield Problem(f"has an empty or bad field name in by: {path!r:.80}", cure)
    if any(part.startswith("$") for part in parts):
        yield Problem(f"has by={path!r:.80}, and no field may start with a dollar sign", cure)
    if parts[0] == ENGINE_FIELD:
        yield Problem(f"has by={path!r:.80}, which is the engine's", cure)
    if path == "_id":
        yield Problem("has by='_id', so that every record would be a group of its own", cure)


def _compute_problems(compute: object) -> Iterator[Problem]:
    if not isinstance(compute, Mapping) or not compute:
        yield Problem(f"computes nothing: {compute!r:.80}", 'Write compute={"orders": {"$sum": 1}}.')
        return
    for name, accumulator in compute.items():
        if not _is_field(name):
            yield Problem(
                f"cannot compute a field {name!r:.80}",
                f"Choose a name without dots and dollar signs, and not '_id' or {ENGINE_FIELD!r}.",
            )
        yield from _accumulator_problems(name, accumulator)


def _is_field(name: object) -> bool:
    if not isinstance(name, str) or name in {"", "_id", ENGINE_FIELD}:
        return False
    return not name.startswith("$") and not {".", "\0"} & set(name)


def _accumulator_problems(name: str, accumulator: object) -> Iterator[Problem]:
    if not isinstance(accumulator, Mapping) or len(accumulator) != 1:
        yield Problem(
            f"computes {name!r:.80} with {accumulator!r:.80}, which is not one accumulator",
            'Write it as {"$sum": "$total"}.',
        )
        return
    ((operator, argument),) = accumulator.items()
    if operator in SORTING:
        if not _is_total(argument):
            yield Problem(
                f"computes {name!r:.80} with {operator}, whose sortBy leaves open which of two equal records is first",
                'End its sortBy with \'_id\': {"at": -1, "_id": 1}.',
            )
    elif operator not in ACCUMULATORS:
        yield Problem(
            f"computes {name!r:.80} with {operator!r:.80}, whose result depends on the order of records "
            "or which is no accumulator",
            f"Use one of {', '.join((*ACCUMULATORS, *SORTING))}.",
        )


def _is_total(argument: object) -> bool:
    sort = argument.get("sortBy") if isinstance(argument, Mapping) else None
    return isinstance(sort, Mapping) and "_id" in sort


def _unstable(values: Iterable[object]) -> Iterator[str]:
    for value in values:
        if isinstance(value, Mapping):
            yield from (name for name in value if name in _UNSTABLE)
            yield from _unstable(part for name, part in value.items() if name != "$literal")
        elif isinstance(value, list | tuple):
            yield from _unstable(value)
        elif isinstance(value, str) and value.partition(".")[0] in _UNSTABLE_VARIABLES:
            yield value.partition(".")[0]


# --- groups --------------------------------------------------------------------------------------------


def group_name(path: str) -> str:
    """Give the name of a field of `by` in a group that is a document."""
    return path.replace(".", "_")


def group_of(rollup: Rollup, document: Mapping[str, Any] | bytes) -> Any | None:
    """Give the group of a record, decoded or in BSON, in canonical form; None when it belongs to none."""
    if isinstance(document, bytes):
        document = excerpt(document, {path.partition(".")[0] for path in rollup.paths})
    values = [_value(document, path) for path in rollup.paths]
    if any(value is None or _unsuitable(value) for value in values):
        return None
    if isinstance(rollup.by, str):
        return canonical(values[0])
    return {group_name(path): canonical(value) for path, value in zip(rollup.paths, values, strict=True)}


def unsuitable(rollup: Rollup, fields: Mapping[str, Any]) -> str:
    """Say why a record with these fields cannot be put into a group; empty if it can, or belongs to none."""
    for path in rollup.paths:
        reason = _unsuitable(_value(fields, path))
        if reason:
            return f"field {path!r}, by which rollup {rollup.name!r} groups, is {reason}"
    return ""


def _value(document: object, path: str) -> Any:
    """Give what lies at a path: a list as soon as one lies on it, None for what is missing."""
    for part in path.split("."):
        if isinstance(document, list | tuple):
            break
        document = document.get(part) if isinstance(document, Mapping) else None
    return document


#: Types of values that need no further look.
_PLAIN = frozenset({str, int, bool, type(None)})


def _unsuitable(value: object) -> str:
    if value.__class__ in _PLAIN:
        return ""
    if isinstance(value, list | tuple):
        return "a list, which MongoDB does not take for a group"
    if isinstance(value, Regex) or hasattr(value, "pattern"):
        return "a regular expression, which cannot be looked up"
    if _has_operators(value):
        return "a document with names that start with a dollar sign"
    return ""


def _has_operators(value: object) -> bool:
    if isinstance(value, DBRef):
        return True
    if isinstance(value, Mapping):
        return any(str(name).startswith("$") or _has_operators(part) for name, part in value.items())
    return isinstance(value, list | tuple) and any(map(_has_operators, value))


def canonical(value: Any) -> Any:
    """Give the one form of a group's key among those that MongoDB takes for equal.

    A number is an integer if it is one and fits, else a double if it is exactly that.
    """
    if value.__class__ in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return {name: canonical(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(part) for part in value]
    if isinstance(value, int):  # Int64
        return int(value)
    if isinstance(value, float):
        return _of_float(value)
    return _of_decimal(value.to_decimal()) if isinstance(value, Decimal128) else value


def _of_float(number: float) -> int | float:
    return int(number) if number.is_integer() and -_LONG <= number < _LONG else number


def _of_decimal(number: Decimal) -> Any:
    if number.is_nan() or number.is_infinite():
        return float("nan") if number.is_nan() else float(number)
    if -_LONG <= number < _LONG and number == number.to_integral_value():
        return int(number)
    double = float(number)
    if isfinite(double) and Decimal(double) == number:
        return double
    return Decimal128(number.normalize(_DECIMAL))


# --- what the server computes --------------------------------------------------------------------------


def within(rollup: Rollup, groups: Sequence[Any]) -> dict[str, Any]:
    """Give the query of the records of some groups; it may find others, too.

    Groups that differ in the last field only are one branch: the server takes long over a thousand of them.
    """
    if isinstance(rollup.by, str):
        return {rollup.by: {"$in": list(groups)}}
    *heads, last = rollup.paths
    names = [group_name(path) for path in rollup.paths]
    alike: dict[Identity, tuple[list[Any], list[Any]]] = {}
    for each in groups:
        if isinstance(each, Mapping) and all(name in each for name in names):
            *head, value = (each[name] for name in names)
            alike.setdefault(identity(head), (head, []))[1].append(value)
    return {
        "$or": [
            {**{path: {"$eq": value} for path, value in zip(heads, head, strict=True)}, last: {"$in": values}}
            for head, values in alike.values()
        ]
        or [NOTHING]
    }


def computing(rollup: Rollup) -> list[dict[str, Any]]:
    """Give the stages behind those that find a group's records: `{_id: group, **compute, COUNT: records}`."""
    key: Any = (
        f"${rollup.by}"
        if isinstance(rollup.by, str)
        else {group_name(path): f"${path}" for path in rollup.paths}
    )
    sets = [name for name, accumulator in rollup.compute.items() if "$addToSet" in accumulator]
    return [
        *([{"$match": dict(rollup.match)}] if rollup.match else []),
        {"$group": {"_id": key, **rollup.compute, COUNT: {"$sum": 1}}},
        *(
            [{"$set": {name: {"$sortArray": {"input": f"${name}", "sortBy": 1}} for name in sets}}]
            if sets
            else []
        ),
    ]


class Computed(NamedTuple):
    """What the server computed for one group: its document without the engine's field, and its records' number."""

    group: Any
    document: dict[str, Any]
    records: int


def computed(rollup: Rollup, found: Mapping[str, Any]) -> Computed | None:
    """Read a document that `computing` gave; None for one that is no group."""
    group: Any = found.get("_id")
    values = [group] if isinstance(rollup.by, str) else [group.get(group_name(path)) for path in rollup.paths]
    if any(value is None or _unsuitable(value) for value in values):
        return None
    group = canonical(group)
    fields = {name: value for name, value in found.items() if name not in {"_id", COUNT}}
    return Computed(group, {"_id": group, **fields}, int(found[COUNT]))


#: How far two sums of doubles may lie apart, since their order is not the same each time.
TOLERANCE = 1e-9


def agree(first: Any, second: Any) -> bool:
    """Whether two results are equal: numbers as MongoDB compares them, doubles but for the order of their sum."""
    if _is_number(first) and _is_number(second):
        return identity(first) == identity(second) or _is_close(first, second)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return list(first) == list(second) and all(agree(first[name], second[name]) for name in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(agree, first, second))
    return bool(identity(first) == identity(second))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Decimal128) and not isinstance(value, bool)


def _is_close(first: Any, second: Any) -> bool:
    if not isinstance(first, float) and not isinstance(second, float):
        return False
    one, other = (
        float(each.to_decimal() if isinstance(each, Decimal128) else each) for each in (first, second)
    )
    if isnan(one) or isnan(other) or not (isfinite(one) and isfinite(other)):
        return False
    return abs(one - other) <= TOLERANCE * max(abs(one), abs(other))
