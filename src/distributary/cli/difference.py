"""How records that differ look to a person: a sign, a colour on a terminal, and a line for each field."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from distributary.cli.common import one_line
from distributary.operate.preview import FieldDiff, RecordDiff, State

SIGNS = {
    State.ADDED: "+",
    State.CHANGED: "~",
    State.REMOVED: "-",
    State.UNCHANGED: "=",
    State.CONTESTED: "!",
    State.KEPT: "=",
}

_STYLES = {"+": "green", "~": "yellow", "-": "red", "!": "red"}

#: Columns that a value takes at least, however narrow the terminal is.
_VALUE_COLUMNS = 16

#: Columns of a line that are not values: indentation, signs, a name.
_OTHER_COLUMNS = 24


def legible(text: str) -> str:
    """Give text that any output takes: invalid UTF-8 in it is written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def columns_of(out: Console) -> int:
    """Give how many columns a value may take: on a terminal two of them fit into a line, elsewhere all do."""
    return max(_VALUE_COLUMNS, (out.width - _OTHER_COLUMNS) // 2) if out.is_terminal else 0


def value(held: Any, columns: int) -> str:
    """Give a value on one line, cut to so many columns; 0 cuts nothing."""
    text = one_line(held)
    return f"{text[: columns - 1]}…" if 0 < columns < len(text) else text


def signed(state: State, text: str, indent: int = 2) -> Text:
    """Give a line with the sign and the colour of a state."""
    return _signed(SIGNS[state], text, indent)


def field_lines(record: RecordDiff, columns: int, indent: int = 6) -> Iterator[Text]:
    """Give the fields of a record that is added or changed."""
    if record.state is State.CHANGED and not record.fields:
        yield _signed("~", "the order of its fields", indent)
    if record.state in (State.ADDED, State.CHANGED):
        yield from (_field(each, columns, indent) for each in record.fields)


def _field(each: FieldDiff, columns: int, indent: int) -> Text:
    values = " -> ".join(value(some[0], columns) for some in (each.old, each.new) if some)
    sign = "~" if each.old and each.new else "+" if each.new else "-"
    name = each.name if each.name.isprintable() else one_line(each.name)
    return _signed(sign, f"{name}: {values}", indent)


def _signed(sign: str, text: str, indent: int) -> Text:
    return Text(f"{'':{indent}}{sign} {legible(text)}", _STYLES.get(sign, ""))
