"""`bigquery-schema`: the table of a derived collection, from its model or from what is stored."""

import json
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from bson import Decimal128, decode, encode

from distributary.change import CODEC
from distributary.events.bigquery import upsert
from distributary.events.jsons import decoded
from tests.conftest import Databases
from tests.harness import Harness

ORDERS = """
    from datetime import datetime
    from decimal import Decimal
    from typing import Annotated, TypedDict

    from distributary import DerivedCollection, Rollup, transform

    class Summary(TypedDict):
        customer_id: str
        total: Annotated[Decimal, "NUMERIC"]
        at: datetime

    by_customer = DerivedCollection("orders_by_customer", publish="orders", format="bigquery", model=Summary)
    lines = DerivedCollection("order_lines", publish="lines", format="bigquery")
    customer = DerivedCollection("customer")
    empty = DerivedCollection("empty")
    bad = DerivedCollection("bad", model=int)
    spent = Rollup("spent", over=by_customer, by="customer_id", compute={"orders": {"$sum": 1}})

    @transform("orders")
    def orders(order):
        yield by_customer.record(order["_id"], {"customer_id": order["customer"], "total": order["total"]})
        yield customer.item(order["customer"], "orders", order["_id"], {"total": order["total"]})
        for number, sku in enumerate(order["skus"]):
            yield lines.record({"order": order["_id"], "line": number}, {"sku": sku, "price per": 1, "seen": None})
        if order["_id"] < 0:
            yield empty.record(1, {})
            yield bad.record(1, {})
"""


@pytest.fixture
def harness(databases: Databases, tmp_path: Path) -> Harness:
    """Give a worker that has derived some orders."""
    databases.raw.orders.insert_many(
        [
            {"_id": 1, "customer": "ann", "total": Decimal128("5.00"), "skus": ["a", 7]},
            {"_id": 2, "customer": "bob", "total": Decimal128("7.50"), "skus": ["b"]},
        ]
    )
    made = Harness(databases, tmp_path / "modules", {"orders": ORDERS})
    made.catch_up()
    return made


def told(harness: Harness, *arguments: str, code: int = 0) -> tuple[str, str]:
    """Give what the verb writes to stdout and to stderr."""
    with harness.process("bigquery-schema", *arguments, stdout=PIPE, stderr=PIPE) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    return out, err


def columns(found: Any) -> dict[str, str]:
    """Give the types by column, without those that every table has."""
    return {each["name"]: each["type"] for each in found if each["name"] not in ("_id", "_id_type", "_rest")}


def test_a_model_says_which_columns_there_are(harness: Harness) -> None:
    """Without a connection; stdout is the JSON that `bq` takes."""
    harness.settings = {"source.uri": "mongodb://127.0.0.1:9/"}
    out, err = told(harness, "orders_by_customer")
    assert columns(json.loads(out)) == {"customer_id": "STRING", "total": "NUMERIC", "at": "TIMESTAMP"}
    assert not err


def test_stored_records_suggest_columns(harness: Harness) -> None:
    """With a model too, when a sample is asked for; the engine's field is none of them."""
    out, _ = told(harness, "orders_by_customer", "--sample", "10")
    assert columns(json.loads(out)) == {"customer_id": "STRING", "total": "BIGNUMERIC"}
    assert columns(json.loads(told(harness, "customer")[0])) == {"orders": "JSON"}


def test_what_may_not_fit_is_told_beside_the_schema(harness: Harness) -> None:
    """On stderr, so that stdout can be piped on."""
    out, err = told(harness, "order_lines")
    assert columns(json.loads(out)) == {"sku": "STRING"}
    assert "'sku' is INT64 and STRING" in err
    assert "'price per' has no column" in err
    assert "'seen' has no column: it was null" in err


def test_the_statement_names_the_table(harness: Harness) -> None:
    """With its primary key and the staleness that is asked for."""
    named = ["--ddl", "--table", "my-shop.sales.orders", "--max-staleness", "30"]
    out, _ = told(harness, "orders_by_customer", *named)
    assert out.startswith("CREATE TABLE IF NOT EXISTS `my-shop.sales.orders` (\n")
    assert "PRIMARY KEY (`_id`, `_id_type`) NOT ENFORCED" in out
    assert out.endswith("INTERVAL 30 MINUTE);\n")


def test_the_answer_for_a_program_has_it_all(harness: Harness) -> None:
    """Schema, where it comes from, notes, key and statement."""
    answer = json.loads(told(harness, "order_lines", "--json", "--table", "p.d.t")[0])
    assert (answer["schema"], answer["collection"], answer["records"], answer["model"]) == (
        1,
        "order_lines",
        3,
        None,
    )
    assert answer["primary_key"] == ["_id", "_id_type"]
    assert len(answer["notes"]) == 3
    assert answer["ddl"].startswith("CREATE TABLE")
    assert columns(answer["columns"]) == {"sku": "STRING"}
    of_model = json.loads(told(harness, "orders_by_customer", "--json")[0])
    assert (of_model["model"], of_model["records"], of_model["ddl"]) == ("Summary", None, None)


def test_stored_records_are_rows_of_their_table(harness: Harness) -> None:
    """Every column of every record is in the schema, of the model as of the sample."""
    collection = harness.registry.collections["orders_by_customer"]
    for arguments in ([], ["--sample", "10"]):
        known = {each["name"] for each in json.loads(told(harness, "orders_by_customer", *arguments)[0])}
        for record in harness.databases.derived[collection.name].find():
            raw = encode(
                {name: value for name, value in record.items() if name != "_src"}, codec_options=CODEC
            )
            row = upsert(decoded(raw), None, (1, 1))
            assert {*row} - {"_CHANGE_TYPE", "_CHANGE_SEQUENCE_NUMBER"} <= known
            assert decode(raw)["customer_id"] == row["customer_id"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["order_line"], 2, "Did you mean 'order_lines'?"),
        (["spent"], 2, "is a rollup, which is not published"),
        (["bad"], 2, "orders.py:"),
        (["empty"], 1, "declare DerivedCollection('empty', model=...)"),
        (["customer", "--ddl"], 2, "--ddl wants --table"),
        (["customer", "--table", "shop.customer"], 2, "project.dataset.table"),
        (["customer", "--table", "a.b.c`; DROP TABLE x; --"], 2, "project.dataset.table"),
    ],
)
def test_what_cannot_be_answered_says_what_to_do(
    harness: Harness, arguments: list[str], code: int, said: str
) -> None:
    """Usage and configuration with 2, nothing to look at with 1."""
    assert said in told(harness, *arguments, code=code)[1]
