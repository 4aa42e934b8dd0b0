"""What the verbs share: options, answers, progress."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from bson import json_util
from bson.binary import UuidRepresentation
from rich.console import Console

from distributary import log
from distributary.cli.progress import Bar, Lines, Progress
from distributary.config import Config, load
from distributary.parts import is_parts, names_part, shared_of

__all__ = [
    "Progress",
    "config_option",
    "console",
    "emit_json",
    "json_option",
    "named",
    "one_line",
    "open_config",
    "progress",
    "publish_option",
]

#: The version of the form of every `--json` answer.
SCHEMA = 1

#: Columns of what is written to a file or a pipe, where no terminal says how many there are.
_PIPE_COLUMNS = 160

#: BSON values as relaxed Extended JSON.
_EXTENDED = json_util.JSONOptions(
    json_mode=json_util.JSONMode.RELAXED, uuid_representation=UuidRepresentation.STANDARD, tz_aware=True
)

_F = TypeVar("_F", bound=Callable[..., Any])


def config_option(function: _F) -> _F:
    """Add `-c/--config PATH`, given to the verb as `config_path: Path | None`, for `open_config`."""
    return click.option(
        "-c",
        "--config",
        "config_path",
        metavar="PATH",
        type=click.Path(path_type=Path),
        help="The configuration file; without it ./distributary.toml, if it exists.",
    )(function)


def json_option(function: _F) -> _F:
    """Add `--json`, given to the verb as `as_json: bool`, for `emit_json` and `progress`."""
    return click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for a program.")(function)


def publish_option(function: _F) -> _F:
    """Add `--publish`, given to the verb as `publish: bool`."""
    return click.option("--publish", is_flag=True, help="Publish all records that it comes to.")(function)


def open_config(path: Path | None) -> Config:
    """Load the configuration and set up the log as it says; raises `ConfigurationError`."""
    config = load(path)
    log.configure(config.log.format, config.log.level, values=config.log.values)
    return config


def emit_json(answer: Mapping[str, Any]) -> None:
    """Write an answer to stdout as one line of JSON, with `"schema": 1` before everything else."""
    click.echo(one_line({"schema": SCHEMA, **answer}))


def one_line(value: Any) -> str:
    """Give a BSON value as relaxed Extended JSON on one line, for people as well."""
    return json_util.dumps(value, json_options=_EXTENDED)


def console(*, stderr: bool = False) -> Console:
    """Give a console that shows text as it is: brackets are no markup, numbers have no colours."""
    stream = sys.stderr if stderr else sys.stdout
    columns = None if stream.isatty() else _PIPE_COLUMNS
    return Console(stderr=stderr, width=columns, markup=False, highlight=False, emoji=False)


def progress(
    label: str, total: int | None = None, unit: str = "documents", *, as_json: bool = False
) -> Progress:
    """Give the progress of a piece of work, on stderr, so that stdout holds the answer alone.

    A bar on a terminal, lines elsewhere, nothing for a program.
    """
    if as_json:
        return Progress(label, total, unit)
    if sys.stderr.isatty():
        return Bar(label, total, unit, console=console(stderr=True))
    return Lines(label, total, unit)


def named(collection: str, key: Any) -> str:
    """Name a record for people: `orders 42`, and a part as it is seen: `customer 42 policies 7`."""
    if not is_parts(collection) or not names_part(key):
        return f"{collection} {one_line(key)}"
    item = f" {one_line(key['i'])}" if "i" in key else ""
    return f"{shared_of(collection)} {one_line(key['k'])} {key['s']}{item}"
