"""What the file and the environment say: values by key with their origin, and what is wrong with them."""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, get_origin

from distributary.config.model import KEYS, PREFIX, SECTIONS, Key
from distributary.errors import Fault

#: What follows the variable of a secret when it names a file.
FILE_SUFFIX = "_FILE"

#: UTF-8, with or without the byte order mark that some editors put in front.
UTF8 = "utf-8-sig"


class Setting(NamedTuple):
    """A value that was given, and the file or variable that it came from."""

    value: Any
    origin: str


Settings = dict[Key, Setting]


@dataclass(frozen=True, slots=True)
class Reading:
    """What was given so far.

    `sections` are those that the file names, empty ones too; `unread` the keys whose value could not be had,
    which `faults` tells of already.
    """

    settings: Settings = field(default_factory=dict)
    sections: set[str] = field(default_factory=set)
    unread: set[Key] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)

    def fault(self, place: str, problem: str, cure: str) -> None:
        """Add a fault."""
        self.faults.append(Fault(place, problem, cure))

    def unknown(self, place: str, given: str, known: Iterable[str]) -> None:
        """Add the fault that nothing has this name, with the nearest one as its cure."""
        close = get_close_matches(given, list(known), n=1)
        cure = f"Did you mean {close[0]}?" if close else f"Known are: {', '.join(known)}."
        self.fault(place, "is unknown.", cure)


def read_file(file: Path, reading: Reading) -> bool:
    """Add what a TOML file says; False when it could not be read."""
    tables = _parsed(file, reading)
    for section, table in (tables or {}).items():
        if section not in SECTIONS:
            reading.unknown(f"[{section}] ({file})", f"[{section}]", [f"[{name}]" for name in SECTIONS])
        elif not isinstance(table, dict):
            reading.fault(
                f"{section} ({file})", "is not a table.", f"Write [{section}] on a line of its own."
            )
        else:
            _read_table(section, table, file, reading)
    return tables is not None


def _read_table(section: str, table: dict[str, Any], file: Path, reading: Reading) -> None:
    reading.sections.add(section)
    known = SECTIONS[section].model_fields
    for name, value in table.items():
        if name in known:
            reading.settings[Key(section, name)] = Setting(value, str(file))
        else:
            reading.unknown(f"{section}.{name} ({file})", name, known)


def _parsed(file: Path, reading: Reading) -> dict[str, Any] | None:
    try:
        return tomllib.loads(file.read_text(encoding=UTF8))
    except OSError as error:
        reading.fault(
            str(file), f"cannot be read: {error.strerror}.", "Name a file that exists and is readable."
        )
    except UnicodeDecodeError:
        reading.fault(str(file), "is not UTF-8.", "Save it as UTF-8.")
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        place = f"{file}:{line[1]}" if line else str(file)
        cure = 'Text stands in quotes and lists in brackets: key = ["text"].'
        reading.fault(place, f"is not TOML: {error}.", cure)
    return None


def read_environment(environ: Mapping[str, str], reading: Reading) -> None:
    """Add what the environment says, over what is there."""
    variables = {key.variable: key for key in KEYS}
    files = {key.variable + FILE_SUFFIX: key for key in KEYS if key.is_secret}
    for name in sorted(environ):
        if name in variables:
            _read_variable(variables[name], environ[name], reading)
        elif name in files:
            _read_secret(files[name], environ, reading)
        elif name.startswith(PREFIX) and "__" in name:
            reading.unknown(f"{name} (environment)", name, [*variables, *files])


def _read_variable(key: Key, text: str, reading: Reading) -> None:
    try:
        reading.settings[key] = Setting(_value_of(key, text), key.variable)
    except ValueError:
        reading.fault(f"{key} ({key.variable})", "is not a JSON list.", 'Write ["a", "b"], or a,b.')


def _value_of(key: Key, text: str) -> object:
    if get_origin(key.field.annotation) is not tuple:
        return text
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [part.strip() for part in text.split(",") if part.strip()]


def _read_secret(key: Key, environ: Mapping[str, str], reading: Reading) -> None:
    name = key.variable + FILE_SUFFIX
    if key.variable in environ:
        reading.fault(f"{key} ({name})", f"{key.variable} is set too.", "Set only one of the two.")
        return
    try:
        reading.settings[key] = Setting(Path(environ[name]).read_text(encoding=UTF8).strip(), name)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reading.unread.add(key)
        reason = error.strerror if isinstance(error, OSError) else "it is not a file of UTF-8 text"
        cure = "Name a readable file that holds the secret and nothing else."
        reading.fault(f"{key} ({name})", f"the file that it names cannot be read: {reason}.", cure)
