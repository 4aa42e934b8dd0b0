"""Keys on the command line: what a text may mean."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import click
import pytest
from bson import Int64, ObjectId
from bson.datetime_ms import DatetimeMS

from distributary.cli.keys import parse_key

DIGITS = "0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "candidates"),
    [
        ("42", [42, "42"]),
        ("1.5", [1.5, "1.5"]),
        ("true", [True, "true"]),
        ("null", [None, "null"]),
        ("C1", ["C1"]),
        ('"42"', ["42"]),
        ("", [""]),
        ('{"order": 1, "line": 2}', [{"order": 1, "line": 2}]),
        (f'{{"$oid": "{DIGITS}"}}', [ObjectId(DIGITS)]),
        ('{"$date": "2026-01-02T00:00:00Z"}', [datetime(2026, 1, 2, tzinfo=UTC)]),
        ('{"$date": {"$numberLong": "4611686018427387904"}}', [DatetimeMS(2**62)]),
        ('{"$uuid": "00000000-0000-0000-0000-000000000001"}', [UUID(int=1)]),
        ('{"$numberLong": "5"}', [Int64(5), '{"$numberLong": "5"}']),
        (DIGITS, [ObjectId(DIGITS), DIGITS]),
        ("1" * 24, [ObjectId("1" * 24), "1" * 24]),
        ("[1]", ["[1]"]),
        ('{"$oid": "short"}', ['{"$oid": "short"}']),
        ("[" * 100_000, ["[" * 100_000]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_text_means_what_it_may(text: str, candidates: list[Any]) -> None:
    """Extended JSON comes first, then an ObjectId, then the text; what is no key is left out."""
    found = parse_key(text)
    assert found == candidates
    assert list(map(type, found)) == list(map(type, candidates))


def test_the_fields_of_a_key_keep_their_order() -> None:
    """Documents are equal only with their fields in the same order."""
    assert list(parse_key('{"b": 1, "a": 2}')[0]) == ["b", "a"]


def test_what_is_no_text_is_no_key() -> None:
    """Bytes that are not UTF-8 cannot be looked up."""
    with pytest.raises(click.BadParameter):
        parse_key("\udcff")
