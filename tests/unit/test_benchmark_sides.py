"""Benchmarks compare with copies of modules that differ in one thing: without the customer view, or published."""

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
from bson import json_util

from benchmarks.sides import VIEW, both, publishing, without
from distributary import plugins
from distributary.derive.records import Record
from distributary.errors import Failed
from distributary.sample import people, retail

SHIPPED = Path(__file__).parents[2] / "transformers"


def documents() -> Mapping[str, Any]:
    """Give a document of every kind, by the transform that it is for."""
    rng = Random(1)
    goods = [retail.product(rng, number) for number in range(1, 9)]
    order = retail.order(rng, 7, "U000001", goods, people.FIRST_DAY)
    session = retail.Session("S0000007", "U000001", people.FIRST_DAY)
    return {
        "users": retail.user(rng, 1),
        "products": goods[0],
        "orders": {**order, "gaSessionId": session.key},
        "clickstream": session.click(rng, 0, goods),
    }


def derived(modules: Path) -> list[str]:
    """Give what modules derive from the documents, but for sections and items."""
    transforms = plugins.load([modules], entry_points=False).transforms
    found: list[Any] = []
    for name, document in documents().items():
        made: Any = transforms[name].function(document)
        found += [made] if isinstance(made, Record) else made
    found = [each for each in found if isinstance(each, Record)]
    return [
        json.dumps([each.collection.name, each.key, each.fields], default=json_util.default) for each in found
    ]


def test_nothing_but_the_view_is_left_out(tmp_path: Path) -> None:
    """The copy derives the same records as the shipped modules, and knows nothing of the view."""
    whole, bare = both(SHIPPED, tmp_path / "without")
    assert VIEW in plugins.load([whole.modules], entry_points=False).collections
    assert VIEW not in plugins.load([bare.modules], entry_points=False).collections
    records = derived(whole.modules)
    assert len(records) >= len(documents())
    assert derived(bare.modules) == records


def test_another_use_of_the_view_is_refused(tmp_path: Path) -> None:
    """Modules that use the view for more than to yield to it are named, rather than measured as if without it."""
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "odd.py").write_text("from .derived import customer\nother = customer\n")
    with pytest.raises(Failed, match=r"odd\.py"):
        without(VIEW, tmp_path / "some", tmp_path / "without")


def test_every_derived_collection_is_published_and_nothing_else_differs(tmp_path: Path) -> None:
    """The copy derives the same records, and each of its collections has a topic of its name."""
    bare = without(VIEW, SHIPPED, tmp_path / "without")
    copy = publishing(bare, tmp_path / "publishing")
    collections = plugins.load([copy], entry_points=False).collections
    assert collections
    assert {name: each.publish for name, each in collections.items()} == {name: name for name in collections}
    assert derived(copy) == derived(bare)
