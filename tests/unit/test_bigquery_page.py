"""The page about BigQuery: its models hold the shop's records, its statement is right, its transform works."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bson import encode

from distributary.change import CODEC
from distributary.events.bigquery import Table, upsert
from distributary.events.columns import table_of_model
from distributary.events.jsons import decoded
from distributary.sample.retail import data_set, sizes_at
from distributary.testing import derive, load
from tests.recompute import recompute

ROOT = Path(__file__).parents[2]
SHOP = ROOT / "transformers"
PAGE = (ROOT / "docs/bigquery.md").read_text(encoding="utf-8")

#: The collections that the page publishes, with its models' names.
PUBLISHED = dict(re.findall(r'publish="(\w+)", format="bigquery", model=(\w+)\)', PAGE))


def block(path: str) -> str:
    """Give the page's file."""
    found = re.search(rf"```python\n# {re.escape(path)}\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def tables() -> Mapping[str, Table]:
    """Give the tables of the page's models, by collection."""
    defined: dict[str, Any] = {}
    exec(compile(block("transformers/_tables.py"), "docs/bigquery.md", "exec"), defined)
    return {name: table_of_model(defined[model]) for name, model in PUBLISHED.items()}


def test_the_models_hold_the_shops_records(tables: Mapping[str, Table]) -> None:
    """Every record of the sample data fits its table, and each column has a value in some of them."""
    functions = {name: getattr(load(SHOP / f"{name}.py"), name) for name in ("orders", "clickstream")}
    raw = [(name, each) for name, some in data_set(sizes_at(0.05)) if name in functions for each in some]
    derived = recompute(functions, raw)
    assert len(tables) == 4
    for name, table in tables.items():
        rows = [row(key, fields, table) for key, fields in derived[name].items()]
        assert not [each for each in rows if "_rest" in each]
        assert {*table.fields} <= {column for each in rows for column in each}


def row(key: Any, fields: Mapping[str, Any], table: Table) -> dict[str, Any]:
    """Give the row of a record."""
    return upsert(decoded(encode({"_id": key, **fields}, codec_options=CODEC)), table, (1, 1))


def test_the_statement_shown_is_the_one_that_is_printed(tables: Mapping[str, Table]) -> None:
    """For the table that the page names."""
    assert tables["order_lines"].ddl("my-project.shop.order_lines", 15) in PAGE


def test_queries_name_columns_that_there_are(tables: Mapping[str, Table]) -> None:
    """Of a model's fields, those that the page selects from its table."""
    queries = "".join(re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL))
    assert {*re.findall(r"FROM shop\.(\w+)", queries)} >= tables.keys()
    used = {
        "orders_by_customer": ["customer_id", "total", "status"],
        "session_events": ["customer_id", "event", "engagement_msec"],
        "bought_together": ["first", "second"],
        "order_lines": ["customer_id", "product_id"],
    }
    for name, columns in used.items():
        assert all(column in queries and column in tables[name].fields for column in columns)


def test_what_models_found_is_a_section_of_the_customer(tmp_path: Path) -> None:
    """As an export writes it: whole numbers are text."""
    for name in ("_values.py", "derived.py"):
        shutil.copy(SHOP / name, tmp_path)
    (tmp_path / "customer_scores.py").write_text(block("transformers/customer_scores.py"), encoding="utf-8")
    function = load(tmp_path / "customer_scores.py").customer_scores
    found = {"segment": 3, "recommended": ["P00012"]}
    assert derive(function, {"_id": "U1", **found, "segment": "3"}) == {"customer": {"U1": {"scores": found}}}
    assert derive(function, {"_id": "U1"})["customer"]["U1"] == {"scores": {"segment": 0, "recommended": []}}
