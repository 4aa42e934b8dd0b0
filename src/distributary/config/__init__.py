"""The configuration: one TOML file, the environment over it, checked as a whole.

A key of the file is `key` in `[section]`; the variable over it is `DISTRIBUTARY_SECTION__KEY`. A secret may
also lie in a file of its own, named by `DISTRIBUTARY_SECTION__KEY_FILE`.
"""

from distributary.config.load import load, transformers
from distributary.config.model import (
    KEYS,
    SECTIONS,
    Config,
    DeadLetters,
    Derived,
    Http,
    Key,
    Log,
    PersonalData,
    PubSub,
    Source,
    State,
    Worker,
)
from distributary.config.uri import redact
from distributary.config.values import Point, point_of

__all__ = [
    "KEYS",
    "SECTIONS",
    "Config",
    "DeadLetters",
    "Derived",
    "Http",
    "Key",
    "Log",
    "PersonalData",
    "Point",
    "PubSub",
    "Source",
    "State",
    "Worker",
    "load",
    "point_of",
    "redact",
    "transformers",
]
