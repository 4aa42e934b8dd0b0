"""Loading the configuration: everything that is given, checked as a whole."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from distributary.config.model import DEFAULT_FOLDER, Config, Key
from distributary.config.reading import FILE_SUFFIX, Reading, Setting, Settings, read_environment, read_file
from distributary.config.uri import hosts
from distributary.errors import ConfigurationError, Fault

#: The file that is read from the working directory when none is named.
DEFAULT_FILE = Path("distributary.toml")

_SOURCE_URI, _DERIVED_URI = Key("source", "uri"), Key("derived", "uri")
_SOURCE, _DERIVED, _STATE = (Key(section, "database") for section in ("source", "derived", "state"))
_TRANSFORMERS = Key("worker", "transformers")


def load(path: Path | None, environ: Mapping[str, str] | None = None) -> Config:
    """Read the configuration from a file and the environment, which wins.

    Without a path `./distributary.toml` is read if it exists. Raises `ConfigurationError` with every fault
    that was found; a fault names the key and where its value came from, and never shows a secret.
    """
    reading = Reading()
    file = path or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    readable = file is None or read_file(file, reading)
    read_environment(os.environ if environ is None else environ, reading)
    if not readable:
        raise ConfigurationError(reading.faults)
    _resolve_transformers(reading.settings, file)
    return _checked(reading, file or DEFAULT_FILE)


def transformers(path: Path | None, environ: Mapping[str, str] | None = None) -> list[str]:
    """Give `worker.transformers` alone, whatever else is wrong or missing; folders are absolute.

    Without a path `./distributary.toml` is read if it exists. Raises `ConfigurationError` for a file that cannot
    be read.
    """
    reading = Reading()
    file = path or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    if file is not None and not read_file(file, reading):
        raise ConfigurationError(reading.faults)
    read_environment(os.environ if environ is None else environ, reading)
    _resolve_transformers(reading.settings, file)
    given = reading.settings[_TRANSFORMERS].value
    return [entry for entry in given if isinstance(entry, str)] if isinstance(given, list) else []


def _checked(reading: Reading, file: Path) -> Config:
    faults = [*reading.faults, *_shared_databases(reading.settings)]
    try:
        config = Config.model_validate(_tables(reading))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        faults += [fault for details in found for fault in _faults_of(details, reading, file)]
    if faults:
        raise ConfigurationError(faults)
    return config


def _tables(reading: Reading) -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = {name: {} for name in ("source", "derived", *reading.sections)}
    for key, setting in reading.settings.items():
        tables.setdefault(key.section, {})[key.name] = setting.value
    if "uri" in tables["source"]:
        tables["derived"].setdefault("uri", tables["source"]["uri"])
    return tables


def _resolve_transformers(settings: Settings, file: Path | None) -> None:
    given = settings.get(_TRANSFORMERS, Setting([DEFAULT_FOLDER], "default"))
    if isinstance(given.value, list):
        base = (file.parent if file else Path()).absolute()
        entries = [_resolved(base, entry) for entry in given.value]
        settings[_TRANSFORMERS] = Setting(entries, given.origin)


def _resolved(base: Path, entry: object) -> object:
    """Give a folder or file as an absolute path, a module as its name; what is both means the folder."""
    if not isinstance(entry, str) or not entry:
        return entry
    folder = base / Path(entry).expanduser()
    is_module = all(part.isidentifier() for part in entry.split("."))
    if is_module and entry != DEFAULT_FOLDER and not folder.exists():
        return entry
    return os.path.normpath(folder)


def _shared_databases(settings: Settings) -> Iterator[Fault]:
    """Find databases with two uses: a worker that writes what it reads would never come to rest."""
    pairs = [(_DERIVED, _STATE)]
    if _is_one_deployment(settings):
        pairs += [(_SOURCE, _DERIVED), (_SOURCE, _STATE)]
    for one, other in pairs:
        name = _database(settings, other)
        if name is not None and name == _database(settings, one):
            place = _place(other, settings)
            yield Fault(place, f"is the same database as {one}.", "Give each its own database.")


def _database(settings: Settings, key: Key) -> str | None:
    """Give a database's name in lower case: MongoDB refuses two that differ in case only."""
    value = settings[key].value if key in settings else key.field.default
    return value.lower() if isinstance(value, str) else None


def _is_one_deployment(settings: Settings) -> bool:
    if _DERIVED_URI not in settings:
        return True
    source, derived = (settings.get(key, Setting(None, "")).value for key in (_SOURCE_URI, _DERIVED_URI))
    return not _hosts(source).isdisjoint(_hosts(derived))


def _hosts(uri: object) -> set[str]:
    return hosts(uri) if isinstance(uri, str) else set()


def _faults_of(details: ErrorDetails, reading: Reading, file: Path) -> Iterator[Fault]:
    """Tell of what pydantic found, unless it was told already or follows from another fault."""
    section, *within = details["loc"]
    if not within:
        yield Fault(f"[{section}]", *_problem(details, ""))
        return
    key = Key(str(section), str(within.pop(0)))
    if key in reading.unread:
        return
    if key in reading.settings:
        yield Fault(_place(key, reading.settings, within), *_problem(details, key.field.description or ""))
    elif key != _DERIVED_URI:
        yield Fault(str(key), "is missing.", _how_to_set(key, file))


def _how_to_set(key: Key, file: Path) -> str:
    or_file = f" (or {key.variable}{FILE_SUFFIX})" if key.is_secret else ""
    return f"Set {key.name} in [{key.section}] of {file}, or {key.variable}{or_file}."


def _place(key: Key, settings: Settings, within: list[int | str] | None = None) -> str:
    """Name a key, the position in its list, and where its value came from."""
    position = "".join(f"[{index}]" for index in within or ())
    origin = settings[key].origin if key in settings else "default"
    return f"{key}{position} ({origin})"


def _problem(details: ErrorDetails, description: str) -> tuple[str, str]:
    context = details.get("ctx", {})
    if details["type"] == "fault":
        return context["problem"], context["cure"]
    message = details["msg"]
    return f"{message[0].lower()}{message[1:]}.", f"It is: {description}"
