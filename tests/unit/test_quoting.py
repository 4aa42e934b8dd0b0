"""What is kept of an error's text: the code's own words, and nothing of a document."""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from bson import ObjectId
from pymongo.errors import OperationFailure

from distributary.quoting import Quoting, bare, message_of, of_error, quoting, said_by_server

MARKER = "4711 Ms. Secret-Name"  # stands for what a document's field holds


def _raised(function: Callable[[Any], Any], value: Any) -> tuple[Quoting, Quoting]:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - whichever it is
        function(value)
    assert caught.value.__traceback__ is not None
    return of_error(caught.value, caught.value.__traceback__.tb_next)


def missing(document: Any) -> Any:
    """Ask for a field that is not there."""
    return {"total": 1, "note": document}["paid"]


def looked_up(document: Any) -> Any:
    """Ask for a key that is data."""
    return {"total": 1}[document]


def explained(document: Any) -> None:
    """Raise with a text that quotes."""
    raise ValueError(f"the plan {document} is not known ({len(document)} letters)")


def chained(document: Any) -> None:
    """Raise in an exception's handler, with more on it."""
    try:
        float(document)
    except ValueError as error:
        error.add_note(document)
        raise TypeError("no number") from error


def grouped(document: Any) -> None:
    """Raise several at once."""
    raise ExceptionGroup("two of them", [ValueError(document), KeyError(document)])


class Odd(Exception):
    """One that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError(*self.args)


class Gone(Exception):
    """One that puts its message together itself."""

    def __init__(self, plan: str) -> None:
        super().__init__(f"the plan {plan} is gone")


def gone(document: Any) -> None:
    """Raise one with a message of its own."""
    raise Gone(document)


def odd(document: Any) -> None:
    """Raise what raises when it is shown."""
    raise Odd(document)


def over_lines(document: Any) -> None:
    """Raise with lines that look like those of a traceback."""
    raise ValueError(f'\n  File "x.py", line 1, in f\n    {document}')


ERRORS = {
    missing: "KeyError: 'paid'",
    looked_up: "KeyError: '…'",
    explained: "ValueError: the plan … is not known (… letters)",
    chained: "TypeError: no number",
    grouped: "ExceptionGroup: two of them (…)",
    gone: "Gone: the plan … is gone",
    odd: "Odd: (…)",
    over_lines: 'ValueError: \n  File "x.py", line 1, in f\n    …',
    float: "ValueError: could not convert string to float: '…'",
    int: "ValueError: invalid literal for int() with base 10: '…'",
    datetime.fromisoformat: "ValueError: Invalid isoformat string: '…'",
    ObjectId: "InvalidId: '…' is not a valid ObjectId, it must be a 12-byte input or a 24-character hex string",
    Decimal: "InvalidOperation: […]",
    abs: "TypeError: bad operand type for …(): 'str'",
    (lambda text: text + 1): 'TypeError: can only concatenate … (not "int") to …',
    (lambda text: text.total): "AttributeError: 'str' object has no attribute 'total'",
    (lambda text: text["total"]): "TypeError: string indices must be integers, not 'str'",
}


@pytest.mark.parametrize(("function", "told"), ERRORS.items())
def test_an_error_keeps_the_words_of_the_code(function: Callable[[Any], Any], told: str) -> None:
    """A message keeps what its code or Python says, and nothing of the value that it quotes; so does the traceback."""
    reason, trace = _raised(function, MARKER)
    assert bare(reason) == told
    for word in ("4711", "Ms", "Secret", "Name"):
        assert word not in bare(reason) + bare(trace)


@pytest.mark.parametrize("function", [explained, looked_up, chained, over_lines, float])
def test_the_whole_text_quotes_as_python_does(function: Callable[[Any], Any]) -> None:
    """Where values may be kept, reason and traceback are those that Python gives."""
    reason, trace = _raised(function, MARKER)
    assert reason in trace
    assert MARKER in trace
    assert f"{function.__name__}(document)" not in bare(trace)


def test_a_traceback_names_files_functions_and_lines() -> None:
    """Without values it still leads to the line, through what led to the error."""
    _, trace = _raised(chained, MARKER)
    lines = bare(trace).splitlines()
    assert lines.count("Traceback (most recent call last):") == 2
    assert lines.count("The above exception was the direct cause of the following exception:") == 1
    assert "    float(document)" in lines
    assert lines[-1] == "TypeError: no number"


SAID = {
    'E11000 duplicate key error collection: d.c index: email_1 dup key: { email: "4711 Ms. Secret-Name" }': (
        11000,
        "E11000 duplicate key error collection: d.c index: email_1",
    ),
    "Document failed validation": (121, "Document failed validation"),
    'Can\'t extract geo keys: { _id: 1, at: "4711 Ms. Secret-Name" }  Point must only contain': (
        16755,
        "Can't extract geo keys … (error 16755)",
    ),
    "language override unsupported: 4711 Ms. Secret-Name": (
        17262,
        "language override unsupported … (error 17262)",
    ),
    "PlanExecutor error during aggregation :: caused by :: Failed to parse number '4711 Ms. Secret-Name' in $convert": (
        241,
        "PlanExecutor error during aggregation :: caused by :: Failed to parse number … (error 241)",
    ),
}


@pytest.mark.parametrize("said", SAID)
def test_what_mongodb_says_ends_where_it_quotes(said: str) -> None:
    """A reason of MongoDB is kept up to the first thing that it quotes, with its code."""
    code, told = SAID[said]
    reason = said_by_server("MongoDB refuses c[1]: ", said, code)
    assert reason == f"MongoDB refuses c[1]: {said}"
    assert bare(reason) == f"MongoDB refuses c[1]: {told}"
    assert message_of(OperationFailure(said, code, {"errmsg": said, "code": code}), None) == told


def test_a_quoting_text_is_bare_within_another() -> None:
    """A text that is put into a longer one loses what it quotes, so that nobody has to think of it."""
    text = quoting("yielded ", MARKER, ", not a record")
    assert text == f"yielded {MARKER}, not a record"
    assert f"why: {text}" == f"why: {text:.30}" == "why: yielded …, not a record"
    assert bare("a plain text") == "a plain text"
