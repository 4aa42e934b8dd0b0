"""Names of collections and fields of indexes, by MongoDB's rules and the engine's."""

import re
from collections.abc import Iterator, Mapping, Sequence

from distributary.derive.records import ENGINE_FIELD
from distributary.parts import PARTS

#: What stands between a collection's name and some hex digits in the name of what is built to take its place.
SHADOW = "__rebuild_"
DIGITS = 8

#: What the name of a collection ends with that a rebuild kept.
PREVIOUS = "__previous"

_SHADOW_NAME = re.compile(rf"(.+){SHADOW}[0-9a-f]{{{DIGITS}}}", re.DOTALL)

#: MongoDB's limit on `database.collection` is 255 bytes. A database name takes up to 63 of them; beside a derived
#: collection lie its parts, and what is built to take the place of these.
MAX_DERIVED_NAME_BYTES = 255 - 63 - 1 - len(PARTS) - len(SHADOW) - DIGITS
MAX_SOURCE_NAME_BYTES = 255 - 1 - 1

#: MongoDB's limit on the fields of one index.
MAX_INDEX_FIELDS = 32

#: MongoDB allows 64 indexes on a collection; the one on `_id` and the engine's own are among them.
MAX_INDEXES = 60


def source_name_problem(name: object) -> str:
    """Say which of MongoDB's rules for collection names this one breaks; empty if it is fine."""
    return _problem(name, MAX_SOURCE_NAME_BYTES)


def derived_name_problem(name: object) -> str:
    """Say which rule for names of derived collections this one breaks, MongoDB's or ours; empty if it is fine."""
    text = name if isinstance(name, str) else ""
    rules = {
        f"names with {PARTS!r} in front are the engine's": text.startswith(PARTS),
        f"names with {SHADOW!r} in them are those of rebuilds": SHADOW in text,
        f"names with {PREVIOUS!r} at the end are those of rebuilds": text.endswith(PREVIOUS),
    }
    return _first(rules) or _problem(name, MAX_DERIVED_NAME_BYTES)


def _problem(name: object, limit: int) -> str:
    if not isinstance(name, str):
        return "it is no string"
    rules = {
        "it is empty": not name,
        "it has a dollar sign": "$" in name,
        "it has a null character": "\0" in name,
        "it starts with 'system.'": name.startswith("system."),
        "it starts or ends with a dot, or has two in a row": "" in name.split("."),
        "it cannot be written as UTF-8": any("\ud800" <= letter <= "\udfff" for letter in name),
        f"it has more than {limit} bytes": len(name.encode(errors="replace")) > limit,
    }
    return _first(rules)


def _first(rules: Mapping[str, bool]) -> str:
    return next((rule for rule, broken in rules.items() if broken), "")


def shadowed(name: str) -> str:
    """Give the collection whose place a shadow is to take, going by its name; nothing for another collection."""
    found = _SHADOW_NAME.fullmatch(name)
    return found[1] if found else ""


def index_keys(spec: str | Sequence[str]) -> list[tuple[str, int]]:
    """Give an index specification as MongoDB's driver takes it: `["a", "-b"]` is `[("a", 1), ("b", -1)]`.

    Raises `ValueError` that says what is wrong with it.
    """
    fields = [spec] if isinstance(spec, str) else spec
    if not isinstance(fields, list | tuple) or not all(isinstance(field, str) for field in fields):
        raise ValueError(f"{spec!r:.80} is neither a field name nor a list of field names")
    keys = [(field[1:], -1) if field.startswith("-") else (field, 1) for field in fields]
    if problem := next(_index_problems([name for name, _ in keys]), ""):
        raise ValueError(f"{spec!r:.80} {problem}")
    return keys


def _index_problems(names: list[str]) -> Iterator[str]:
    if not names:
        yield "has no fields"
    if len(names) > MAX_INDEX_FIELDS:
        yield f"has {len(names)} fields; MongoDB's limit is {MAX_INDEX_FIELDS}"
    for name in names:
        yield from _field_problems(name)
    if len(set(names)) < len(names):
        yield "names a field twice"
    if names == ["_id"]:
        yield "is the index on the key, which MongoDB keeps by itself"


def _field_problems(name: str) -> Iterator[str]:
    parts = name.split(".")
    if not all(parts):
        yield "has an empty field name"
    if any(part.startswith("$") for part in parts):
        yield f"has the field {name!r}, and no field may start with a dollar sign"
    if "\0" in name:
        yield "has a field name with a null character"
    if parts[0] == ENGINE_FIELD:
        yield f"has the field {ENGINE_FIELD!r}, which is the engine's and indexed by it"


def indexes_problems(indexes: object) -> Iterator[str]:
    """Say what is wrong with the indexes of a derived collection or rollup, behind its name."""
    if not isinstance(indexes, list | tuple):
        yield f"has indexes that are no list: {indexes!r:.80}"
        return
    if len(indexes) > MAX_INDEXES:
        yield f"has {len(indexes)} indexes; there is room for {MAX_INDEXES} beside the engine's"
    seen: list[list[tuple[str, int]]] = []
    for spec in indexes:
        try:
            keys = index_keys(spec)
        except ValueError as error:
            yield f"has a bad index: {error}"
            continue
        if keys in seen:
            yield f"has the index {spec!r:.80} twice"
        seen.append(keys)


def is_text(value: object) -> bool:
    """Whether it is a string: what an author wrote may be anything, whatever its type says."""
    return isinstance(value, str)
