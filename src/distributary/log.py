"""The log: lines for people or JSON for machines, on stderr, in UTC, without credentials.

What quotes a document is a `Quoting`; the log shows its bare form, unless it was asked for the values.
"""

import json
import os
import re
import sys
from typing import Any, Literal, TextIO, cast

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from distributary.quoting import Quoting, bare

#: What stands between the scheme of a connection string and its hosts.
_CREDENTIALS = re.compile(r"(mongodb(?:\+srv)?://)[^\s\"'<>]*@")


def configure(
    format: Literal["text", "json"] = "text",  # noqa: A002 - the name of the key, `log.format`
    level: Literal["debug", "info", "warning", "error"] = "info",
    stream: TextIO | None = None,
    *,
    values: bool = False,
) -> None:
    """Send the log to a stream (default: stderr), for the whole process, from the next line on."""
    target = stream or sys.stderr
    _shown.values = values
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            _without_values,
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


class _Shown:
    """What the log shows, for the whole process."""

    values = False


_shown = _Shown()


def shown(text: str) -> str:
    """Give a text as the log shows it: with what it quotes of documents, or without."""
    return str(text) if _shown.values else bare(text)


def _without_values(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
    return {name: shown(value) if isinstance(value, Quoting) else value for name, value in line.items()}


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
