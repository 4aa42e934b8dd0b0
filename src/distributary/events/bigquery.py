"""Records as rows that a BigQuery subscription with table schema writes, and the tables that they fit.

Sources: "Stream table updates with change data capture ingestion", "TABLE_CONSTRAINTS view" (what a primary key may be)
and "Specifying a schema" (what a column may be called) of the BigQuery manual; "BigQuery subscriptions" of the Pub/Sub
manual: with table schema, a JSON column takes JSON as text, a NUMERIC one the number as text.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Context, Decimal
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from bson import Binary, Decimal128, Int64, ObjectId
from bson.datetime_ms import DatetimeMS

from distributary.events.jsons import (
    PLAIN,
    base64,
    decimal_of,
    decimal_text,
    dumps,
    is_uuid,
    plain_date,
    spelt,
)
from distributary.events.keys import key_kind, key_text

#: The primary key: the record's key as text, and the type that it has in MongoDB, by which 1 and "1" are two rows.
KEY, KEY_TYPE = "_id", "_id_type"

#: The column of what has no column of its own: JSON, fields by their names.
REST = "_rest"

#: BigQuery's limit on columns, without those that are ours.
MOST_COLUMNS = 2000 - 3

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,299}")

#: Beginnings of names that BigQuery keeps for itself, in any case of the letters.
_RESERVED = (
    *("_table_", "_file_", "_partition", "_row_timestamp", "__root__", "_colidentifier"),
    *("_change_sequence_number", "_change_type", "_change_timestamp"),
)

_OURS = frozenset({KEY, KEY_TYPE, REST})


class Column(NamedTuple):
    """A column; only those of the key are `required`."""

    name: str
    type: str
    required: bool = False

    def answer(self) -> dict[str, str]:
        """Give it as BigQuery's JSON has it."""
        return {"name": self.name, "type": self.type, "mode": "REQUIRED" if self.required else "NULLABLE"}


_KEY_COLUMNS = (Column(KEY, "STRING", required=True), Column(KEY_TYPE, "STRING", required=True))


@dataclass(frozen=True)
class Table:
    """A table: its `fields` with the type of each; `notes` say what of a record has no column and what may not fit."""

    fields: Mapping[str, str]
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """Every column, the key's first and that of the rest last."""
        own = (Column(name, kind) for name, kind in self.fields.items())
        return (*_KEY_COLUMNS, *own, Column(REST, "JSON"))

    def schema(self) -> list[dict[str, str]]:
        """Give the schema as BigQuery's JSON has it."""
        return [column.answer() for column in self.columns]

    def ddl(self, name: str, max_staleness_minutes: int) -> str:
        """Give the statement that creates the table as `project.dataset.table`, ready for change data capture."""
        lines = [
            f"  `{column.name}` {column.type}{' NOT NULL' if column.required else ''},"
            for column in self.columns
        ]
        return "\n".join(
            [
                f"CREATE TABLE IF NOT EXISTS `{name}` (",
                *lines,
                f"  PRIMARY KEY (`{KEY}`, `{KEY_TYPE}`) NOT ENFORCED",
                ")",
                f"CLUSTER BY `{KEY}`",
                f"OPTIONS (max_staleness = INTERVAL {max_staleness_minutes} MINUTE);",
            ]
        )


@lru_cache(maxsize=4096)
def name_problem(name: str) -> str:
    """Say why a field cannot be a column; empty if it can."""
    if name.lower() in _OURS:
        return "is the name of a column that every table has"
    if not _NAME.fullmatch(name):
        return (
            "has characters other than letters, digits and underscores, begins with a digit, or is too long"
        )
    return "begins as names that BigQuery keeps for itself" if name.lower().startswith(_RESERVED) else ""


# --- rows -----------------------------------------------------------------------------------------------------


def upsert(record: Mapping[str, Any], table: Table | None, sequence: tuple[int, int]) -> dict[str, Any]:
    """Give the row of a record of `jsons.decoded`: nulls are left out, and what does not fit the table is in the rest.

    Without a table each field is a column of the type that its value suggests, the first of those whose names
    differ only in case. BigQuery keeps of all rows with one key the one with the highest sequence.
    """
    return _row(record["_id"], _columns(record, table), "UPSERT", sequence)


def deletion(key: Any, sequence: tuple[int, int]) -> dict[str, Any]:
    """Give the row of a record that is gone."""
    return _row(key, {}, "DELETE", sequence)


def _row(key: Any, columns: Mapping[str, Any], kind: str, sequence: tuple[int, int]) -> dict[str, Any]:
    number = "{:X}/{:X}".format(*sequence)
    change = {"_CHANGE_TYPE": kind, "_CHANGE_SEQUENCE_NUMBER": number}
    return {KEY: key_text(key), KEY_TYPE: key_kind(key), **columns, **change}


def _columns(record: Mapping[str, Any], table: Table | None) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    taken: set[str] = set()
    for name, value in record.items():
        if value is None or name == "_id":
            continue
        kind = _type_for(name, value, table, taken)
        fitted = _FITTINGS[kind](value) if kind else None
        if fitted is None:
            rest[name] = value
        else:
            columns[name] = fitted
    if rest:
        columns[REST] = json_text(rest)
    return columns


def json_text(value: Any) -> str:
    """Write a value as plain JSON in text, as a JSON column takes it."""
    return dumps(value, PLAIN).decode()


def type_of(value: Any) -> str:
    """Give the type of the column that a value suggests: JSON for what is nested or of no type that BigQuery has."""
    if value.__class__ is Binary:
        return "STRING" if is_uuid(value) else "BYTES"
    return _TYPES.get(value.__class__, "JSON")


def _type_for(name: str, value: Any, table: Table | None, taken: set[str]) -> str | None:
    """Give the type of a field's column; None when it has no column."""
    if table is not None:
        return table.fields.get(name)
    if name_problem(name) or name.lower() in taken:
        return None
    taken.add(name.lower())
    return type_of(value)


_TYPES: Mapping[type, str] = {
    str: "STRING",
    ObjectId: "STRING",
    bool: "BOOL",
    int: "INT64",
    Int64: "INT64",
    float: "FLOAT64",
    Decimal128: "BIGNUMERIC",
    datetime: "TIMESTAMP",
    DatetimeMS: "TIMESTAMP",
    bytes: "BYTES",
}

#: Enough for every number that one of these types can hold, so that nothing is rounded.
_EXACT = Context(prec=100, Emin=-9999, Emax=9999)

#: How many digits a number of these types may have in front of and behind the point.
_DIGITS = {"NUMERIC": (29, 9), "BIGNUMERIC": (38, 38)}


# --- what a type takes in JSON; None where a value does not fit -----------------------------------------------


def _bool(value: Any) -> Any:
    return value if value.__class__ is bool else None


def _int64(value: Any) -> Any:
    if value.__class__ in (int, Int64):
        return int(value)
    number = _number(value)
    whole = number is not None and number == number.to_integral_value() and -(2**63) <= number < 2**63
    return int(number) if whole and number is not None else None


def _float64(value: Any) -> Any:
    if value.__class__ is float:
        return value if math.isfinite(value) else spelt(value)
    if value.__class__ in (int, Int64):
        return float(value) if int(float(value)) == value else None
    number = _number(value)
    return None if number is None or math.isinf(nearest := float(number)) else nearest


def _numeric(kind: str) -> Callable[[Any], Any]:
    """Give what fits numbers into a type: exactly, as text without an exponent."""
    before, behind = _DIGITS[kind]

    def fitted(value: Any) -> Any:
        number = Decimal(value) if value.__class__ in (int, Int64) else _number(value)
        if not number:
            return None if number is None else "0"
        if number.adjusted() >= before:
            return None
        if -behind <= number.as_tuple().exponent <= 0:  # type: ignore[operator]  # it is finite
            return f"{number:f}"
        shortest = number.normalize(_EXACT)
        return f"{shortest:f}" if -shortest.as_tuple().exponent <= behind else None  # type: ignore[operator]  # as well

    return fitted


def _number(value: Any) -> Decimal | None:
    """Give a finite decimal or float, the latter with the digits that it is written with."""
    if value.__class__ is float:
        return Decimal(repr(value)) if math.isfinite(value) else None
    if value.__class__ is not Decimal128:
        return None
    number = decimal_of(value)
    return number if number.is_finite() else None


def _string(value: Any) -> Any:
    if value.__class__ is str:
        return value
    if value.__class__ is Decimal128:
        return decimal_text(value)
    return json_text(value).strip('"') if type_of(value) != "JSON" else json_text(value)


def _bytes(value: Any) -> Any:
    return base64(value) if isinstance(value, bytes) else None


def _timestamp(value: Any) -> Any:
    return plain_date(value) if value.__class__ is datetime else None


def _date(value: Any) -> Any:
    return value.date().isoformat() if value.__class__ is datetime else None


_FITTINGS: Mapping[str, Callable[[Any], Any]] = {
    "BOOL": _bool,
    "INT64": _int64,
    "FLOAT64": _float64,
    "NUMERIC": _numeric("NUMERIC"),
    "BIGNUMERIC": _numeric("BIGNUMERIC"),
    "STRING": _string,
    "BYTES": _bytes,
    "TIMESTAMP": _timestamp,
    "DATE": _date,
    "JSON": json_text,
}

#: Types that a model can name.
TYPES = frozenset(_FITTINGS)
