"""Pre- and post-images: which source collections have to keep them for the triggers, and switching them on."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pymongo.database import Database

from distributary.derive.trigger import Trigger

#: The option of a collection that keeps both, and the fields of a change that show them.
OPTION = "changeStreamPreAndPostImages"
_BEFORE, _AFTER = "fullDocumentBeforeChange", "fullDocument"

_CHANGED = frozenset({"update", "replace", "delete"})


class Lacking(NamedTuple):
    """A source collection that keeps no images although triggers want them; `exists` is False for one to come."""

    source: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    exists: bool

    @property
    def names(self) -> list[str]:
        """The triggers that want images."""
        return sorted({*self.before, *self.after})

    @property
    def said(self) -> str:
        """Say which triggers want what, and what they get instead."""
        before = f"{_named(self.before)} what was before a change, and gets None" if self.before else ""
        after = (
            f"{_named(self.after)} the document behind an update, and gets the latest" if self.after else ""
        )
        return "; ".join(filter(None, [before, after]))


def lacking(raw: Database[Any], triggers: Mapping[str, Trigger]) -> Iterator[Lacking]:
    """Give the source collections that keep no images although triggers want them."""
    there = {each["name"]: each.get("options", {}) for each in raw.list_collections()}
    for source in sorted({each.source for each in triggers.values()}):
        mine = [each for each in triggers.values() if each.source == source]
        before = tuple(sorted(each.name for each in mine if wants_before(each)))
        after = tuple(sorted(each.name for each in mine if wants_after(each)))
        kept = there.get(source, {}).get(OPTION, {}).get("enabled", False)
        if (before or after) and not kept:
            yield Lacking(source, before, after, source in there)


def switch_on(raw: Database[Any], source: str) -> None:
    """Let a collection keep images from now on; raises the server's error when that is not allowed."""
    raw.command({"collMod": source, OPTION: {"enabled": True}})


def wants_before(trigger: Trigger) -> bool:
    """Whether a trigger looks at the document in front of a change, as far as its code and its options show."""
    possible = not _CHANGED.isdisjoint(trigger.operations)
    return possible and (
        "before" in trigger.reads or _names(trigger.match, _BEFORE) or _names(trigger.project, _BEFORE)
    )


def wants_after(trigger: Trigger) -> bool:
    """Whether a trigger looks at the document behind an update, as far as its code and its options show."""
    return "update" in trigger.operations and ("document" in trigger.reads or _names(trigger.match, _AFTER))


def _names(stage: Any, field: str) -> bool:
    """Whether a query or a projection names a field of the change."""
    if isinstance(stage, Mapping):
        return any(_names(part, field) for pair in stage.items() for part in pair)
    if isinstance(stage, list | tuple):
        return any(_names(part, field) for part in stage)
    return isinstance(stage, str) and stage.lstrip("$").partition(".")[0] == field


def _named(names: tuple[str, ...]) -> str:
    listed = ", ".join(map(repr, names))
    return f"trigger {listed} reads" if len(names) == 1 else f"each of the triggers {listed} reads"
