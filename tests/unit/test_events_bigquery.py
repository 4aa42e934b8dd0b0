"""Rows for BigQuery and the tables that they fit: from a model, from samples, and from nothing."""

import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, NewType, NotRequired, Optional, TypedDict
from uuid import UUID

import pytest
from bson import Binary, Decimal128, Int64, ObjectId, Regex, encode
from bson.datetime_ms import DatetimeMS
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from distributary.change import CODEC
from distributary.events.bigquery import MOST_COLUMNS, Table, deletion, name_problem, upsert
from distributary.events.columns import BadModel, table_of_model, table_of_records, type_for
from distributary.events.jsons import decoded
from tests.unit.test_events_jsons import DOCUMENTS

OID = ObjectId("0123456789abcdef01234567")
NOT_FITTING = object()


def row_of(fields: dict[str, Any], table: Table | None = None) -> dict[str, Any]:
    """Give the columns of a record with these fields, without those that every row has."""
    record = decoded(encode({"_id": 1, **fields}, codec_options=CODEC))
    columns = upsert(record, table, (1, 2))
    assert (columns.pop("_id"), columns.pop("_id_type")) == ("1", "number")
    assert (columns.pop("_CHANGE_TYPE"), columns.pop("_CHANGE_SEQUENCE_NUMBER")) == ("UPSERT", "1/2")
    return columns


# --- rows without a model -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind", "written"),
    [
        ("a", "STRING", "a"),
        (OID, "STRING", str(OID)),
        (UUID(int=5), "STRING", "00000000-0000-0000-0000-000000000005"),
        (True, "BOOL", True),
        (5, "INT64", 5),
        (Int64(2**62), "INT64", 2**62),
        (5.5, "FLOAT64", 5.5),
        (math.nan, "FLOAT64", "NaN"),
        (Decimal128("1.50"), "BIGNUMERIC", "1.50"),
        (Decimal128("-0.00"), "BIGNUMERIC", "0"),
        (Decimal128("1E+37"), "BIGNUMERIC", "1" + "0" * 37),
        (datetime(2026, 1, 2, tzinfo=UTC), "TIMESTAMP", "2026-01-02T00:00:00.000Z"),
        (b"ab", "BYTES", "YWI="),
        (Binary(b"ab", 5), "BYTES", "YWI="),
        ({"a": [OID, None]}, "JSON", '{"a":["0123456789abcdef01234567",null]}'),
        ([1, math.inf], "JSON", '[1,"Infinity"]'),
        (Regex("a"), "JSON", '{"$regularExpression":{"pattern":"a","options":""}}'),
    ],
)
def test_a_value_is_written_for_the_column_that_it_suggests(value: Any, kind: str, written: Any) -> None:
    """The table of the documentation; JSON columns take text."""
    assert row_of({"x": value}) == {"x": written}
    assert table_of_records([encode({"_id": 1, "x": value}, codec_options=CODEC)]).fields == {"x": kind}


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (DatetimeMS(2**55), 2**55),
        (Decimal128("NaN"), "NaN"),
        (Decimal128("1E+38"), "1E+38"),
        (Decimal128("1E-39"), "1E-39"),
    ],
)
def test_what_its_column_cannot_hold_is_in_the_rest(value: Any, written: Any) -> None:
    """The row is written all the same, and nothing of the record is lost."""
    row = row_of({"x": value, "y": 1})
    assert (row.pop("y"), json.loads(row.pop("_rest"))) == (1, {"x": written})
    assert not row


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "1a",
        "",
        "é",
        "a.b",
        "a-b",
        "x" * 301,
        "_TABLE_x",
        "_Partition_y",
        "_CHANGE_TYPE",
        "_id_type",
        "_rest",
    ],
)
def test_names_that_bigquery_refuses_are_in_the_rest(name: str) -> None:
    """Other fields are columns all the same."""
    assert name_problem(name)
    row = row_of({name: 5, "b": 6})
    assert (row.pop("b"), json.loads(row.pop("_rest"))) == (6, {name: 5})
    assert not row


@pytest.mark.parametrize("name", ["a", "_a", "A1", "x" * 300, "table", "_idx", "customer_id"])
def test_other_names_are_columns(name: str) -> None:
    """Reserved words of SQL are quoted where they stand in a statement."""
    assert row_of({name: 5}) == {name: 5}


def test_names_that_differ_in_case_only_are_one_column() -> None:
    """The first has it."""
    assert row_of({"Name": 1, "name": 2}) == {"Name": 1, "_rest": '{"name":2}'}


def test_nulls_are_left_out() -> None:
    """A column that a row does not name is null."""
    assert row_of({"a": None, "b": 1}) == {"b": 1}


def test_the_sequence_is_in_hexadecimal() -> None:
    """BigQuery compares its sections as numbers, so that nothing has to be filled up."""
    assert deletion("a", (255, 2**32 - 1))["_CHANGE_SEQUENCE_NUMBER"] == "FF/FFFFFFFF"


@given(DOCUMENTS)
def test_every_record_is_a_row(fields: dict[str, Any]) -> None:
    """Values of columns are no lists and no documents, and every name is one that BigQuery takes, once in any case."""
    fields.pop("_id", None)
    columns = row_of(fields)
    assert not any(isinstance(each, dict | list) for each in columns.values())
    assert all(name == "_rest" or not name_problem(name) for name in columns)
    assert len({name.lower() for name in columns}) == len(columns)
    held = {name for name, value in fields.items() if value is not None}
    assert {*columns, *json.loads(columns.get("_rest", "{}"))} - {"_rest"} == held


@given(DOCUMENTS)
def test_a_row_has_no_column_that_the_sampled_table_lacks(fields: dict[str, Any]) -> None:
    """A record that was in the sample fits the table, so that the subscription does not refuse it."""
    fields.pop("_id", None)
    table = table_of_records([encode({"_id": 1, **fields}, codec_options=CODEC)])
    assert {*row_of(fields)} <= {column.name for column in table.columns}


# --- rows with a model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "written"),
    [
        ("STRING", 5, "5"),
        ("STRING", True, "true"),
        ("STRING", 1.5, "1.5"),
        ("STRING", OID, str(OID)),
        ("STRING", Decimal128("1.50"), "1.50"),
        ("STRING", datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00.000Z"),
        ("STRING", {"a": 1}, '{"a":1}'),
        ("STRING", 'a"', 'a"'),
        ("INT64", 5.0, 5),
        ("INT64", Decimal128("5.00"), 5),
        ("INT64", 5.5, NOT_FITTING),
        ("INT64", 1e300, NOT_FITTING),
        ("INT64", "5", NOT_FITTING),
        ("INT64", True, NOT_FITTING),
        ("FLOAT64", 5, 5.0),
        ("FLOAT64", 2**53 + 1, NOT_FITTING),
        ("FLOAT64", Decimal128("0.1"), 0.1),
        ("FLOAT64", Decimal128("0"), 0.0),
        ("FLOAT64", Decimal128("1E+400"), NOT_FITTING),
        ("FLOAT64", "x", NOT_FITTING),
        ("NUMERIC", 5, "5"),
        ("NUMERIC", 0.1, "0.1"),
        ("NUMERIC", Decimal128("1.123456789"), "1.123456789"),
        ("NUMERIC", Decimal128("1.1234567890"), "1.123456789"),
        ("NUMERIC", Decimal128("1.1234567891"), NOT_FITTING),
        ("NUMERIC", Decimal128("1E+29"), NOT_FITTING),
        ("NUMERIC", math.inf, NOT_FITTING),
        ("BIGNUMERIC", Int64(2**63 - 1), str(2**63 - 1)),
        ("BOOL", False, False),
        ("BOOL", 0, NOT_FITTING),
        ("BYTES", b"ab", "YWI="),
        ("BYTES", "ab", NOT_FITTING),
        ("TIMESTAMP", datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00.000Z"),
        ("TIMESTAMP", "2026-01-02", NOT_FITTING),
        ("DATE", datetime(2026, 1, 2, 23, 59, tzinfo=UTC), "2026-01-02"),
        ("DATE", 5, NOT_FITTING),
        ("JSON", "a", '"a"'),
        ("JSON", 5, "5"),
    ],
)
def test_a_value_is_fitted_to_the_models_column_or_in_the_rest(kind: str, value: Any, written: Any) -> None:
    """What can be had without a loss is converted, a decimal for a float rounded; anything else is not forced."""
    row = row_of({"x": value, "y": "of no column"}, Table({"x": kind}))
    rest = json.loads(row.pop("_rest"))
    assert ("x" in rest) == (written is NOT_FITTING)
    assert rest["y"] == "of no column"
    assert repr(row) == repr({} if written is NOT_FITTING else {"x": written})


class Channel(StrEnum):
    """An enumeration of texts."""

    WEB = "web"


Money = Annotated[Decimal, "NUMERIC"]
CustomerId = NewType("CustomerId", str)


class OrderDict(TypedDict, total=False):
    """An order as a TypedDict."""

    customer_id: CustomerId
    total: NotRequired[Money]
    tags: list[str]


class OrderModel(BaseModel):
    """The same as a model of pydantic."""

    customer_id: CustomerId
    total: Money | None = Field(default=None, alias="sum")
    tags: list[str] = []


@dataclass
class OrderClass:
    """The same as a dataclass."""

    customer_id: CustomerId
    total: "Money | None"
    tags: list[str]
    most: ClassVar[int] = 5


class OrderPlain:
    """The same as a class with annotations, with a key of its own."""

    _id: int
    customer_id: CustomerId
    total: Money
    tags: list[str]
    most: ClassVar[int] = 5


@pytest.mark.parametrize("model", [OrderDict, OrderModel, OrderClass, OrderPlain])
def test_a_table_is_made_of_every_kind_of_model(model: type) -> None:
    """Fields by the names that they have in the class, without the key and what belongs to the class."""
    table = table_of_model(model)
    assert dict(table.fields) == {"customer_id": "STRING", "total": "NUMERIC", "tags": "JSON"}
    assert not table.notes


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (bool, "BOOL"),
        (int, "INT64"),
        (Int64, "INT64"),
        (float, "FLOAT64"),
        (Decimal, "BIGNUMERIC"),
        (Decimal128, "BIGNUMERIC"),
        (Annotated[int, "no type of BigQuery"], "INT64"),
        (Annotated[str, "JSON"], "JSON"),
        (Channel, "STRING"),
        (Literal["a", "b"], "STRING"),
        (Literal[1] | None, "INT64"),
        (Optional[datetime], "TIMESTAMP"),  # noqa: UP045 - the old spelling is read, too
        (date | None, "DATE"),
        (int | float, "FLOAT64"),
        (int | Decimal | None, "BIGNUMERIC"),
        (int | str, "JSON"),
        (bytes, "BYTES"),
        (Binary, "BYTES"),
        (UUID, "STRING"),
        (ObjectId, "STRING"),
        (dict[str, int], "JSON"),
        (list, "JSON"),
        (OrderModel, "JSON"),
        (Any, "JSON"),
    ],
)
def test_annotations_name_types(annotation: Any, kind: str) -> None:
    """What BigQuery has no one type for is JSON."""
    assert type_for(annotation) == kind


class Unread:
    """A model whose annotations name nothing."""

    a: "Nowhere"  # type: ignore[name-defined]  # noqa: F821


class Empty:
    """A model without annotations."""


@pytest.mark.parametrize(
    ("model", "said"), [(Unread, "Nowhere"), (Empty, "no annotated fields"), (5, "no class")]
)
def test_a_model_that_cannot_be_read_is_refused(model: Any, said: str) -> None:
    """With what is wrong with it."""
    with pytest.raises(BadModel, match=said):
        table_of_model(model)


# --- tables ---------------------------------------------------------------------------------------------------


def sampled(*records: dict[str, Any]) -> Table:
    """Give the table of records."""
    return table_of_records([encode({"_id": 1, **each, "_src": {}}, codec_options=CODEC) for each in records])


def test_numbers_of_several_types_are_one_column() -> None:
    """That which holds them all."""
    table = sampled({"a": 1, "b": 1, "c": 1.5}, {"a": 1.5, "b": Decimal128("1"), "c": Decimal128("2")})
    assert dict(table.fields) == {"a": "FLOAT64", "b": "BIGNUMERIC", "c": "BIGNUMERIC"}
    assert not table.notes


def test_a_sample_that_does_not_say_enough_is_told() -> None:
    """Types that have no column together, fields that were always null, names that are no columns."""
    table = sampled({"a": 1, "b": None, "c d": 1, "e": 1}, {"a": "x", "b": None, "E": 1})
    assert dict(table.fields) == {"a": "STRING", "e": "INT64"}
    for said in (
        "'a' is INT64 and STRING",
        "'b' has no column: it was null",
        "'c d' has no column",
        "'E' has no column",
    ):
        assert [note for note in table.notes if note.startswith(said)]


def test_a_table_has_no_more_columns_than_bigquery_allows() -> None:
    """What is behind them is in the rest, and told."""
    names = {f"f{number}": 1 for number in range(MOST_COLUMNS + 1)}
    table = sampled(names)
    assert len(table.columns) == 2000
    assert f"'f{MOST_COLUMNS}'" in table.notes[0]


def test_the_schema_is_bigquerys() -> None:
    """A list of name, type and mode, with the key in front and the rest behind."""
    assert Table({"total": "NUMERIC"}).schema() == [
        {"name": "_id", "type": "STRING", "mode": "REQUIRED"},
        {"name": "_id_type", "type": "STRING", "mode": "REQUIRED"},
        {"name": "total", "type": "NUMERIC", "mode": "NULLABLE"},
        {"name": "_rest", "type": "JSON", "mode": "NULLABLE"},
    ]


def test_the_statement_makes_a_table_for_change_data_capture() -> None:
    """With the primary key by which rows replace one another, clustered by it, and as stale as is asked for."""
    ddl = Table({"from": "STRING", "at": "TIMESTAMP"}).ddl("p-1.shop.customer", 15)
    assert ddl.splitlines() == [
        "CREATE TABLE IF NOT EXISTS `p-1.shop.customer` (",
        "  `_id` STRING NOT NULL,",
        "  `_id_type` STRING NOT NULL,",
        "  `from` STRING,",
        "  `at` TIMESTAMP,",
        "  `_rest` JSON,",
        "  PRIMARY KEY (`_id`, `_id_type`) NOT ENFORCED",
        ")",
        "CLUSTER BY `_id`",
        "OPTIONS (max_staleness = INTERVAL 15 MINUTE);",
    ]


@given(st.lists(DOCUMENTS, max_size=3))
def test_every_table_can_be_stated(documents: list[dict[str, Any]]) -> None:
    """Names are quoted and hold nothing that would end a quotation."""
    table = sampled(
        *[{name: each for name, each in one.items() if name not in ("_id", "_src")} for one in documents]
    )
    assert all(
        re.fullmatch(r"  `\w+` \w+( NOT NULL)?,", line) for line in table.ddl("a.b.c", 1).splitlines()[1:-4]
    )
