"""The log: lines for people or JSON for machines, on stderr, in UTC, without credentials."""

import json
import os
import re
import sys
from typing import Any, Literal, TextIO, cast

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

#: What stands between the scheme of a connection string and its hosts.
_CREDENTIALS = re.compile(r"(mongodb(?:\+srv)?://)[^\s\"'<>]*@")


def configure(
    format: Literal["text", "json"] = "text",  # noqa: A002 - the name of the key, `log.format`
    level: Literal["debug", "info", "warning", "error"] = "info",
    stream: TextIO | None = None,
) -> None:
    """Send the log to a stream (default: stderr), for the whole process, from the next line on."""
    target = stream or sys.stderr
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            *(_machine() if format == "json" else _people(target)),
            _scrubbed,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(target),
        cache_logger_on_first_use=False,
    )


def get_logger(**context: object) -> FilteringBoundLogger:
    """Give a logger; its first argument is the line's action: `log.info("batch committed", changes=12)`."""
    return cast("FilteringBoundLogger", structlog.get_logger(**context))


def without_credentials(text: str) -> str:
    """Take user and password out of every connection string in a text."""
    return _CREDENTIALS.sub(r"\1", text)


def _people(target: TextIO) -> list[Processor]:
    colours = target.isatty() and not os.environ.get("NO_COLOR")
    plain = structlog.dev.plain_traceback  # the default would show local variables
    return [structlog.dev.ConsoleRenderer(colors=colours, timestamp_key="at", exception_formatter=plain)]


def _machine() -> list[Processor]:
    return [
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("action"),
        structlog.processors.JSONRenderer(serializer=_json),
    ]


def _json(line: EventDict, **_: object) -> str:
    """Render any line: a value that JSON cannot hold becomes text rather than an exception in the caller."""
    try:
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:
        return json.dumps(line, default=str, skipkeys=True)


def _scrubbed(_: WrappedLogger, __: str, line: Any) -> str:
    return without_credentials(str(line))
