"""Triggers: what is about a change itself rather than about the state that it leads to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

#: The attribute that `@trigger` leaves on a function for the loader to find.
TRIGGER_MARK = "__distributary_trigger__"

OPERATIONS = ("insert", "update", "replace", "delete")


class Publish(NamedTuple):
    """An event for a topic, which a trigger yields; those with one `ordering_key` arrive in order."""

    topic: str
    data: Mapping[str, Any]
    ordering_key: str | None = None
    attributes: Mapping[str, str] = {}


class TriggerMark(NamedTuple):
    """What the decorator was told."""

    source: str
    name: str
    operations: tuple[str, ...]
    match: Mapping[str, Any] | None
    project: Mapping[str, Any] | None


def trigger(
    source: str,
    *,
    operations: Sequence[str] = OPERATIONS,
    match: Mapping[str, Any] | None = None,
    project: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Callable[[F], F]:
    """Mark a function as a trigger on the changes of one source collection.

    The function gets a change and yields effects: `Publish`, and records that are keyed by the change. `operations` are
    those that it is called for; `match` and `project` are a query and a projection over the change as MongoDB reports
    it (`fullDocument.state`), which the server evaluates.
    """
    if not isinstance(source, str):
        raise TypeError('name the source collection: @trigger("forms", ...), not @trigger')

    def mark(function: F) -> F:
        own_name: str = getattr(function, "__name__", "")
        found = TriggerMark(source, name or own_name, tuple(operations), match, project)
        setattr(function, TRIGGER_MARK, found)
        return function

    return mark
