"""Texts that quote documents: what an exception or MongoDB says, with and without the contents.

Where a text is kept, `bare` decides. Of an exception, the bare form has its type, its traceback, and of its message the
phrases that the code on the traceback has as constants, or Python in its own messages. Of what MongoDB says it has what
stands in front of the first thing that is quoted.
"""

import builtins
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from traceback import StackSummary, format_exception, walk_tb
from types import CodeType, TracebackType
from typing import Self

#: What stands for what is left out.
LEFT_OUT = "…"

#: What the interpreter itself says; `%` is what it quotes.
_PYTHON = """
unsupported operand type(s) for %: % and %|bad operand type for %: %|not supported between instances of % and %|
% object has no attribute %|% object is not subscriptable|% object is not iterable|% object is not callable|
% object does not support item assignment|% object cannot be interpreted as an integer|unhashable type: %|
cannot unpack non-iterable % object|not enough values to unpack (expected %, got %)|too many values to unpack (expected|
list index out of range|tuple index out of range|string index out of range|
list indices must be integers or slices, not %|string indices must be integers, not %|
could not convert string to float: %|invalid literal for int() with base 10: %|division by zero|
float() argument must be a string or a real number, not %|integer division or modulo by zero|
int() argument must be a string, a bytes-like object or a real number, not %|
can only concatenate % (not %) to %|sequence item %: expected str instance, % found|argument must be %, not %|
expected string or bytes-like object, got %|Invalid isoformat string: %|time data % does not match format %|
month must be in 1..12|day is out of range for month|hour must be in 0..23|minute must be in 0..59|
second must be in 0..59|can't compare offset-naive and offset-aware datetimes|
can't subtract offset-naive and offset-aware datetimes|maximum recursion depth exceeded|substring not found|
missing % required positional argument|got an unexpected keyword argument %|dictionary changed size during iteration
"""

#: Characters of a message that are looked at: it may quote a whole document.
MESSAGE_CHARACTERS = 10_000

#: Types that Python names in its messages.
_TYPES = [name for name, each in vars(builtins).items() if isinstance(each, type)]
_BSON_TYPES = ["NoneType", "datetime.datetime", "ObjectId", "Decimal128", "Int64", "Binary", "Timestamp"]

#: Whose exceptions quote nothing that is not a `Quoting`.
_OWN = f"{__package__}."

#: What is left of a message where something else was left out of it.
_WORD = re.compile(r"\w")
_EDGES = re.compile(r"^([\s'\"(\[]*)(.*?)([\s'\"()\[\],.:;]*)$", re.DOTALL)

#: Where MongoDB begins to quote, and what it puts between the layers of an error.
_QUOTED_BY_SERVER = re.compile(r"[:{\[\"\d`]|(?<!\w)'|'(?!\w)")
_LAYERS = " :: caused by :: "
_DUPLICATE = re.compile(r"(E11000 duplicate key error collection: \S+ index: .*?) dup key: ", re.DOTALL)

_CHAINED = {
    True: "\nThe above exception was the direct cause of the following exception:\n\n",
    False: "\nDuring handling of the above exception, another exception occurred:\n\n",
}


class Quoting(str):
    """A text that may quote a document; `bare` is what it says without. Within an f-string it is bare."""

    __slots__ = ("bare",)
    bare: str

    def __new__(cls, full: str, bare: str) -> Self:
        """Give a text in both forms."""
        text = super().__new__(cls, full)
        text.bare = bare
        return text

    def __format__(self, spec: str) -> str:
        return format(self.bare, spec)


def bare(text: str) -> str:
    """Give a text without what it quotes."""
    return text.bare if isinstance(text, Quoting) else text


def quoting(before: str, quoted: object, after: str = "") -> Quoting:
    """Give a text that quotes something."""
    return Quoting(f"{before}{quoted!s}{after}", f"{before}{LEFT_OUT}{after}")


def together(*texts: str) -> Quoting:
    """Give one text of several."""
    return Quoting("".join(texts), "".join(map(bare, texts)))


def said_by_server(before: str, message: str, code: int | None) -> Quoting:
    """Give a text that ends in what MongoDB said."""
    return Quoting(before + message, before + _of_server(message, code))


def _of_server(message: str, code: int | None) -> str:
    if duplicate := _DUPLICATE.match(message):
        return duplicate[1]
    told = _LAYERS.join(map(_unquoted, message.split(_LAYERS)))
    return told if told == message else f"{told} (error {code})"


def _unquoted(layer: str) -> str:
    quoted = _QUOTED_BY_SERVER.search(layer)
    return f"{layer[: quoted.start()].rstrip()} {LEFT_OUT}".lstrip() if quoted else layer


def of_error(error: BaseException, trace: TracebackType | None) -> tuple[Quoting, Quoting]:
    """Give an exception's type and message, and its traceback from `trace` inwards."""
    name = type(error).__name__
    full = f"{name}: {_said(error)}"
    try:
        formatted = "".join(format_exception(type(error), error, trace))
    except Exception as other:  # noqa: BLE001 - what the error itself raises when it is shown
        formatted = f"{_stack(trace)}{full} ({type(other).__name__} when it is shown)\n"
    return Quoting(full, _line(error, trace, name)), Quoting(
        formatted, "".join(_formatted(error, trace, set()))
    )


def _said(error: BaseException) -> str:
    try:
        return str(error)[:MESSAGE_CHARACTERS]
    except Exception as other:  # noqa: BLE001 - the user's code may raise anything
        return f"({type(other).__name__} when it is shown)"


def _formatted(error: BaseException, trace: TracebackType | None, seen: set[int]) -> Iterator[str]:
    """Give the lines of a traceback with what led to it, without what the messages quote."""
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        yield from _formatted(before, before.__traceback__, seen)
        yield _CHAINED[before is error.__cause__]
    module = type(error).__module__
    name = type(error).__qualname__
    yield _stack(trace)
    yield _line(error, trace, name if module in {"builtins", "__main__"} else f"{module}.{name}") + "\n"


def _stack(trace: TracebackType | None) -> str:
    if trace is None:
        return ""
    return "".join(["Traceback (most recent call last):\n", *StackSummary.extract(walk_tb(trace)).format()])


def _line(error: BaseException, trace: TracebackType | None, name: str) -> str:
    message = message_of(error, trace)
    return f"{name}: {message}" if message else name


def message_of(error: BaseException, trace: TracebackType | None) -> str:
    """Give the message of an exception without what it quotes."""
    reply = getattr(error, "details", None)  # the driver's errors have the server's reply
    if isinstance(reply, Mapping):
        return _of_server(str(reply.get("errmsg", "")), reply.get("code"))
    if type(error).__module__.startswith(_OWN):
        return _said(error)
    return _without_quoted(_said(error), tuple(dict.fromkeys(_codes(error, trace))))


def _codes(error: BaseException, trace: TracebackType | None) -> Iterator[CodeType]:
    """Give the code that an exception went through, and what puts its message together."""
    yield from (frame.f_code for frame, _ in walk_tb(trace))
    for kind in type(error).__mro__:
        for name in ("__init__", "__str__"):
            if code := getattr(vars(kind).get(name), "__code__", None):
                yield code


def _constants(codes: Iterable[CodeType]) -> Iterator[str]:
    """Give the texts in code, each with the quotes that it is shown in, too."""
    for code in codes:
        for text in _texts(code.co_consts):
            yield from (text, f"{text!r}")
        yield from (f"{name!r}" for name in code.co_names)


def _texts(constants: Iterable[object]) -> Iterator[str]:
    for each in constants:
        if isinstance(each, str):
            yield each
        elif isinstance(each, tuple | frozenset):
            yield from _texts(each)


def _python() -> Iterator[str]:
    for part in re.split(r"[|%]", _PYTHON):
        yield part.strip("\n")
    for name in (*_TYPES, *_BSON_TYPES):
        yield from (f"'{name}'", f'"{name}"')


_PHRASES = [phrase for phrase in _python() if _WORD.search(phrase)]


def _without_quoted(message: str, codes: tuple[CodeType, ...]) -> str:
    """Keep the phrases in a message, and the marks between them."""
    parts, end = [], 0
    for match in _known(codes).finditer(message):
        parts += [_left_out(message[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*parts, _left_out(message[end:])])


@lru_cache(256)
def _known(codes: tuple[CodeType, ...]) -> re.Pattern[str]:
    """Give the pattern of all that is known to quote nothing."""
    phrases = {each for each in (*_constants(codes), *_PHRASES) if _WORD.search(each)}
    return re.compile("|".join(map(_bounded, sorted(phrases, key=len, reverse=True))))


def _bounded(phrase: str) -> str:
    """Give the pattern of a phrase that does not begin or end within a word."""
    start = r"(?<!\w)" if _WORD.match(phrase) else ""
    return f"{start}{re.escape(phrase)}" + (r"(?!\w)" if _WORD.match(phrase[-1]) else "")


def _left_out(part: str) -> str:
    edges = _EDGES.match(part)
    assert edges is not None
    return f"{edges[1]}{LEFT_OUT}{edges[3]}" if edges[2] else part
