"""The log: one line per call, for people or machines, without credentials."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
import structlog
from bson import ObjectId
from pydantic import SecretStr

from distributary.log import configure, get_logger, without_credentials

SECRET = "s3cret"  # a password


class Terminal(StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Leave the process's log as it was."""
    yield
    structlog.reset_defaults()


def lines(stream: StringIO) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_have_action_level_and_utc_time() -> None:
    """Each line is one object that a machine can sort by action, level and time."""
    stream = StringIO()
    configure("json", "info", stream)
    get_logger(worker="w").info("batch committed", changes=3)
    (line,) = lines(stream)
    at = datetime.fromisoformat(line.pop("at"))
    assert at.tzinfo == UTC
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)
    assert line == {"action": "batch committed", "level": "info", "worker": "w", "changes": 3}


def test_text_has_no_colours_off_a_terminal() -> None:
    """A file gets plain text with action, level and values."""
    stream = StringIO()
    configure("text", "info", stream)
    get_logger().warning("lease lost", holder="other")
    assert re.fullmatch(r"\S+Z \[warning +\] lease lost +holder=other\n", stream.getvalue())


def test_text_has_colours_on_a_terminal_that_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets colours, unless NO_COLOR is set."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, plain = Terminal(), Terminal()
    configure(stream=coloured)
    get_logger().info("started")
    monkeypatch.setenv("NO_COLOR", "1")
    configure(stream=plain)
    get_logger().info("started")
    assert "\x1b[" in coloured.getvalue()
    assert "\x1b[" not in plain.getvalue()


def test_stderr_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Stdout belongs to the answer."""
    configure()
    get_logger().info("started")
    out, err = capsys.readouterr()
    assert out == ""
    assert "started" in err


def test_lines_below_the_level_are_left_out() -> None:
    """The level is the least that is shown."""
    stream = StringIO()
    configure("json", "warning", stream)
    get_logger().info("started")
    get_logger().error("stopped")
    assert [line["action"] for line in lines(stream)] == ["stopped"]


def test_loggers_made_before_follow_the_configuration() -> None:
    """A module may make its logger when it is imported."""
    early, stream = get_logger(), StringIO()
    configure("json", "info", stream)
    early.info("started")
    assert len(lines(stream)) == 1


@pytest.mark.parametrize("form", ["text", "json"])
def test_credentials_are_taken_out(form: Any) -> None:
    """No form shows a secret: not in a value, in depth, in the action, in an exception or its frames."""
    stream = StringIO()
    configure(form, "info", stream)
    uri = f"mongodb://user:{SECRET}@host/"
    get_logger().info(f"connected to {uri}", uri=uri, nested={"uris": [uri]}, typed=SecretStr(SECRET))
    try:
        int(uri)
    except ValueError:
        get_logger().exception("failed")
    assert SECRET not in stream.getvalue()
    assert "mongodb://host/" in stream.getvalue()
    assert "ValueError" in stream.getvalue()


def test_credentials_end_at_the_string() -> None:
    """Text after a connection string is left, with an '@' in it too."""
    assert without_credentials('{"uri":"mongodb://h/","to":"a@b"}') == '{"uri":"mongodb://h/","to":"a@b"}'
    assert without_credentials("mongodb+srv://u:p@h/ by a@b") == "mongodb+srv://h/ by a@b"


def test_any_value_can_be_logged() -> None:
    """Keys of documents come in every shape; a line about one never raises."""
    stream = StringIO()
    configure("json", "info", stream)
    for value in (ObjectId("0" * 24), b"\xff", 2**70, "\udcff", {1: "a", (2,): "b"}, float("nan")):
        get_logger().info("parked", key=value)
    assert len(lines(stream)) == 6
