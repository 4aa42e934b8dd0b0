"""The demo's own logic: its configuration, its measure of lag, and its verdict."""

from pathlib import Path
from typing import Any

import pytest
from bson import Timestamp

from distributary.cli.demo import Day, Lag, Result
from distributary.cli.play import PLAYS
from distributary.cli.stage import configuration, examples
from distributary.config import load
from distributary.errors import Failed
from distributary.plugins import load as loaded
from distributary.sample.retail import SIZES


def result(**changes: Any) -> Result:
    """Give a result with the answer of `verify`, changed."""
    found = {"equal": True, "documents": 2000, "records": 3000, "missing": 0, "stale": 0, "orphaned": 0}
    return Result(a_day(), found | changes, {"one": 1000, "two": 2000}, {}, [], [])


def a_day() -> Day:
    """Give a day on which an order was cancelled and another one was placed."""
    before = {"_id": "U1", "profile": {"name": {"given": "Ada", "family": "Wong"}, "city": "Oslo"}}
    after = {**before, "orders": [{"_id": 9, "status": "placed", "products": ["Mug", "Pan"]}]}
    orders = [{"_id": 8, "status": "paid", "products": ["Mug"]}, {"_id": 9, "status": "new", "products": []}]
    return Day("U1", ["places order 9"], {**before, "orders": orders}, after)


def test_the_configuration_is_valid_whatever_the_folder_is_called(tmp_path: Path) -> None:
    """It names the shipped modules and nothing of the user's."""
    folder = tmp_path / 'with "quotes" and ümläuts'
    file = tmp_path / "distributary.toml"
    text = configuration("mongodb://127.0.0.1:1/?replicaSet=rs0", folder, list(SIZES))
    file.write_text(text, encoding="utf-8")
    config = load(file, {})
    assert config.personal_data
    assert config.worker.transformers == (str(folder),)
    assert set(config.worker.only) == set(SIZES)


def test_the_examples_are_found() -> None:
    """There is a module for every raw collection of the demo, and the collections that several fill."""
    modules = {path.stem for path in examples().glob("*.py") if path.stem[0] != "_"}
    assert modules == {*SIZES, "derived"}


@pytest.mark.parametrize("domain", list(PLAYS))
def test_every_domain_has_its_modules_and_asks_what_they_fill(domain: str) -> None:
    """Everything that runs is found in the folder, and the questions are to collections that it fills."""
    play = PLAYS[domain]
    registry = loaded([examples() / play.folder], play.only, entry_points=False)
    assert {*registry.transforms, *registry.triggers} == set(play.only)
    assert set(registry.sources) == set(play.sample.sizes_at(1))
    assert {query.collection for query in play.queries} <= {*registry.collections, *registry.rollups}
    assert bool(registry.triggers) is (play.topic is not None)


def test_a_key_that_is_a_document_is_shown_by_its_values() -> None:
    """Items may have keys of several fields."""
    known = {"intents": [{"_id": {"visit": "V1", "what": "form"}, "state": "started"}]}
    assert list(Day("C1", [], known, known).lines) == [("intents V1 form", "started", "started")]


def test_a_customer_is_shown_line_by_line_before_and_after() -> None:
    """Fields of sections and items of lists keep their line, also those that came or went."""
    assert list(a_day().lines) == [
        ("profile.name", "Ada Wong", "Ada Wong"),
        ("profile.city", "Oslo", "Oslo"),
        ("orders 9", "new, ", "placed, Mug Pan"),
        ("orders 8", "paid, Mug", ""),
    ]


def test_the_query_of_a_day_is_one_read() -> None:
    """It can be typed into mongosh as it is shown."""
    assert a_day().shell == 'db.customer.findOne({"_id": "U1"})'


def test_lag_is_that_of_the_oldest_write_to_come() -> None:
    """A write waits until the worker has committed its time or a later one; then its wait is kept."""
    lag = Lag()
    for increment in (1, 2, 3):
        lag.wrote("insert", Timestamp(100, increment))
    assert lag.committed(Timestamp(100, 2)) > 0
    assert len(lag.seconds) == 2
    assert lag.committed(lag.newest) == 0
    assert len(lag.seconds) == lag.writes == 3


def test_the_verdict_says_what_was_verified() -> None:
    """One line with the counts."""
    result().check()
    assert result().verdict == (
        "Verified: 3,000 derived records in 2 collections equal a recomputation from 2,000 raw documents."
    )


def test_differences_fail_the_demo_and_are_counted() -> None:
    """The exit code is that of a failure, and the message says how much differs."""
    with pytest.raises(Failed, match="1 missing, 2 stale, 0 orphaned") as failure:
        result(equal=False, missing=1, stale=2).check()
    assert failure.value.exit_code == 1
