"""The examples of the page about the customer view: its raw documents yield the documents that it shows."""

import re
from pathlib import Path

import pytest
from bson.json_util import CANONICAL_JSON_OPTIONS, JSONOptions, loads

from distributary.change import CODEC
from distributary.plugins import load as loaded
from distributary.testing import load, personal_key
from tests.recompute import recompute

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/customer-view.md").read_text(encoding="utf-8")
OPTIONS: JSONOptions = CANONICAL_JSON_OPTIONS.with_options(tz_aware=True, tzinfo=CODEC.tzinfo)
EXAMPLES = [loads(block, json_options=OPTIONS) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]
FOLDERS = [ROOT / "transformers", ROOT / "transformers/insurance"]


@pytest.mark.parametrize("number", [0, 1], ids=["retail", "insurance"])
@personal_key("a key of the tests")
def test_the_documents_shown_are_those_that_are_derived(number: int) -> None:
    """Raw documents by collection come first, then the one document that they are together."""
    raw, shown = EXAMPLES[2 * number : 2 * number + 2]
    functions = {name: getattr(load(FOLDERS[number] / f"{name}.py"), name) for name in raw}
    assert recompute(functions, raw.items())["customer"] == {shown.pop("_id"): shown}


@pytest.mark.parametrize("number", [0, 1], ids=["retail", "insurance"])
def test_the_tables_name_every_derived_collection(number: int) -> None:
    """What transforms and triggers fill and what rollups come to is in the table of its domain, and nothing else."""
    rows = re.findall(r"^\| (.*`.*) \| (.+) \| (.+) \| .+ \|$", PAGE.split("## ")[number + 1], re.MULTILINE)
    registry = loaded([FOLDERS[number]], entry_points=False)
    names = [name for named, _, kind in rows if kind != "trigger" for name in re.findall(r"`(\w+)`", named)]
    assert sorted(names) == sorted({*registry.collections, *registry.rollups})
    triggers = [source for _, source, kind in rows if kind == "trigger"]
    assert triggers == [each.source for each in registry.triggers.values()]
