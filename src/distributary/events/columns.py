"""Which columns a table of records has: those of a model's annotations, or those that sampled records suggest."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from bson import Decimal128, ObjectId

from distributary.derive.records import ENGINE_FIELD
from distributary.events.bigquery import MOST_COLUMNS, REST, TYPES, Table, name_problem, type_of
from distributary.events.jsons import decoded

#: The type of the column for each class; for a class below one of these it is the same.
_OF_CLASSES: Mapping[type, str] = {
    bool: "BOOL",
    int: "INT64",
    float: "FLOAT64",
    Decimal: "BIGNUMERIC",
    Decimal128: "BIGNUMERIC",
    str: "STRING",
    ObjectId: "STRING",
    UUID: "STRING",
    bytes: "BYTES",
    datetime: "TIMESTAMP",
    date: "DATE",
}

#: Types that fit into one column, and its type: numbers of several kinds.
_TOGETHER: Mapping[frozenset[str], str] = {
    frozenset({"INT64", "FLOAT64"}): "FLOAT64",
    frozenset({"INT64", "BIGNUMERIC"}): "BIGNUMERIC",
    frozenset({"FLOAT64", "BIGNUMERIC"}): "BIGNUMERIC",
    frozenset({"INT64", "FLOAT64", "BIGNUMERIC"}): "BIGNUMERIC",
}


class BadModel(ValueError):
    """A model has no annotations that could be read; the message says why."""


def _table(fields: Mapping[str, str], notes: Iterable[str]) -> Table:
    """Leave out what cannot be a column, and say so."""
    kept: dict[str, str] = {}
    taken: set[str] = set()
    told = list(notes)
    for name, kind in fields.items():
        problem = name_problem(name)
        if name.lower() in taken:
            problem = "differs from another one's only in case"
        elif not problem and len(kept) == MOST_COLUMNS:
            problem = f"is behind the first {MOST_COLUMNS:,}, which is all that a table can have"
        if problem:
            told.append(f"{name!r} has no column and is found in `{REST}`: its name {problem}")
        else:
            kept[name] = kind
            taken.add(name.lower())
    return Table(kept, tuple(told))


# --- from a model ---------------------------------------------------------------------------------------------


def table_of_model(model: type) -> Table:
    """Give the table of a pydantic model, a dataclass, a TypedDict or any class with annotations; raises `BadModel`."""
    annotations = dict(_annotations(model))
    if not annotations:
        raise BadModel(f"model {model!r:.80} has no annotated fields")
    return _table({name: type_for(each) for name, each in annotations.items()}, ())


def _annotations(model: type) -> Iterator[tuple[str, Any]]:
    """Give the annotations of the fields; a record's key has columns of its own."""
    if not isinstance(model, type):
        raise BadModel(f"model {model!r:.80} is no class")
    try:
        hints = get_type_hints(model, include_extras=True)
    except (NameError, TypeError) as error:
        raise BadModel(f"the annotations of model {model.__name__} cannot be read: {error}") from error
    for name in _fields(model, hints):
        if name != "_id" and get_origin(hints[name]) is not ClassVar:
            yield name, hints[name]


def _fields(model: type, hints: Mapping[str, Any]) -> Iterable[str]:
    if dataclasses.is_dataclass(model):
        return [each.name for each in dataclasses.fields(model)]
    return [name for name in getattr(model, "model_fields", hints) if name in hints]


def type_for(annotation: Any) -> str:
    """Give the type of the column for an annotation.

    `Annotated[Decimal, "NUMERIC"]` names one of BigQuery's. What is nested, a list, or of several types is JSON.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        named = next(
            (each for each in annotation.__metadata__ if isinstance(each, str) and each in TYPES), None
        )
        return named or type_for(arguments[0])
    if origin in (Union, UnionType):
        return _together({type_for(each) for each in arguments if each is not type(None)})
    if origin is Literal:
        return _together({type_for(type(each)) for each in arguments if each is not None})
    if origin is not None and getattr(origin, "__name__", "") in {"Required", "NotRequired", "ReadOnly"}:
        return type_for(arguments[0])
    if beneath := getattr(annotation, "__supertype__", None) or getattr(annotation, "__value__", None):
        return type_for(beneath)  # a NewType or a type alias
    return _type_for_class(annotation) if isinstance(annotation, type) else "JSON"


def _type_for_class(of: type) -> str:
    return next((_OF_CLASSES[each] for each in of.__mro__ if each in _OF_CLASSES), "JSON")


def _together(kinds: set[str]) -> str:
    if len(kinds) == 1:
        return next(iter(kinds))
    return _TOGETHER.get(frozenset(kinds), "JSON")


# --- from records ---------------------------------------------------------------------------------------------


def table_of_records(documents: Iterable[bytes]) -> Table:
    """Give the table of records in BSON, with a column for each top-level field that has a value in one of them."""
    seen: dict[str, set[str]] = {}
    for document in documents:
        for name, value in decoded(document).items():
            if name not in _NO_FIELDS:
                seen.setdefault(name, set()).update([] if value is None else [type_of(value)])
    fields = {name: _common(kinds) for name, kinds in seen.items() if kinds}
    return _table(fields, _doubts(seen))


_NO_FIELDS = frozenset({"_id", ENGINE_FIELD})


def _common(kinds: set[str]) -> str:
    """Give the type of a column for values of these types; STRING where none holds them all."""
    if len(kinds) == 1:
        return next(iter(kinds))
    return _TOGETHER.get(frozenset(kinds), "STRING")


def _doubts(seen: Mapping[str, set[str]]) -> Iterator[str]:
    for name, kinds in seen.items():
        if not kinds:
            yield f"{name!r} has no column: it was null in every record that was looked at"
        elif len(kinds) > 1 and frozenset(kinds) not in _TOGETHER:
            yield (
                f"{name!r} is {' and '.join(sorted(kinds))}: rows that do not fit its column are refused; "
                "declare a model, to which rows are fitted, or yield one type"
            )
