"""The kinds of values: what a URI, a name, a place to start or an amount may be."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, SecretStr
from pydantic_core import PydanticCustomError

from distributary.config.uri import fault_of


def wrong(problem: str, cure: str) -> PydanticCustomError:
    """Give the error by which a validator refuses a value."""
    return PydanticCustomError("fault", "{problem}", {"problem": problem, "cure": cure})


def _checked_uri(uri: SecretStr) -> SecretStr:
    fault = fault_of(uri.get_secret_value())
    if fault:
        raise wrong(*fault)
    return uri


_OWN_DATABASES = frozenset({"admin", "local", "config"})
_MAX_DATABASE_BYTES = 63


def _checked_database(name: str) -> str:
    """Check MongoDB's rules (manual, 'Naming Restrictions'), those of Windows too."""
    cure = "Use letters, digits, '-' and '_'."
    if not name:
        raise wrong("is empty.", cure)
    if len(name.encode(errors="replace")) > _MAX_DATABASE_BYTES:
        raise wrong(f"is longer than {_MAX_DATABASE_BYTES} bytes.", "Use a shorter name.")
    bad = sorted(set(name) & set('/\\. "$*<>:|?\0'))
    if bad:
        raise wrong(f"has characters that no database name may have: {' '.join(map(repr, bad))}.", cure)
    if name.lower() in _OWN_DATABASES:
        raise wrong(f"{name!r} is a database of MongoDB itself.", "Use another database.")
    return name


_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def _checked_name(name: str) -> str:
    if not _SLUG.fullmatch(name):
        raise wrong(
            "is not a simple name.",
            "Use up to 63 lower-case letters, digits, '-' and '_', the first a letter or a digit.",
        )
    return name


#: Shorter keys could be found by trying.
_MIN_KEY_CHARACTERS = 16


def _checked_key(key: SecretStr) -> SecretStr:
    """Leave out white space around a key, as what writes files puts a line's end behind it."""
    text = key.get_secret_value().strip()
    if len(text) < _MIN_KEY_CHARACTERS:
        raise wrong(f"is shorter than {_MIN_KEY_CHARACTERS} characters.", "Make one: `openssl rand -hex 32`.")
    return SecretStr(text)


#: Where to begin: a word, a resume token in hex, a time, or how far back from now.
Point = str | datetime | timedelta

_WORDS = frozenset({"backfill", "now", "oldest"})
_TOKEN = re.compile(r"82(?:[0-9A-Fa-f]{2}){8,}")
_BACK = re.compile(r"-(?:\d+[smhdw])+")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def point_of(text: str) -> Point:
    """Read `worker.start` or a POSITION.

    `backfill`, `now`, `oldest` and resume tokens come back as they are, an ISO-8601 time as a datetime
    (UTC when it names no zone), a duration back such as `-2h` or `-1d12h` as a positive timedelta.
    Raises `ValueError` for anything else.
    """
    if text in _WORDS or _TOKEN.fullmatch(text):
        return text
    try:
        return _duration(text) if _BACK.fullmatch(text) else _time(text)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text!r} is no position") from error


def _duration(text: str) -> timedelta:
    parts = re.findall(r"(\d+)([smhdw])", text)
    return sum((timedelta(**{_UNITS[unit]: int(number)}) for number, unit in parts), timedelta())


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _checked_start(text: str) -> str:
    try:
        point_of(text)
    except ValueError:
        raise wrong(
            "is no place to start.",
            "Use backfill, now, oldest, a resume token in hex, a time such as 2026-01-31T12:00:00Z,"
            " or a duration back such as -2h.",
        ) from None
    return text


_HOST_AND_PORT = re.compile(r"[A-Za-z0-9.-]+:[0-9]{1,5}")


def _checked_endpoint(text: str) -> str:
    if text and not _HOST_AND_PORT.fullmatch(text):
        raise wrong(
            "is no host with a port.",
            "Write it like europe-west1-pubsub.googleapis.com:443, without https://, or leave it empty.",
        )
    return text


def _time_as_text(value: object) -> object:
    """Take TOML's own date and time as the text that it was."""
    return value.isoformat() if isinstance(value, datetime) else value


Uri = Annotated[SecretStr, AfterValidator(_checked_uri)]
HashKey = Annotated[SecretStr, AfterValidator(_checked_key)]
Database = Annotated[str, AfterValidator(_checked_database)]
Name = Annotated[str, AfterValidator(_checked_name)]
Start = Annotated[str, BeforeValidator(_time_as_text), AfterValidator(_checked_start)]
Endpoint = Annotated[str, AfterValidator(_checked_endpoint)]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Bytes = Annotated[ByteSize, Field(ge=1)]
Duration = Annotated[float, Field(gt=0, allow_inf_nan=False)]
