"""What can be wrong with a function that is marked as a transform or a trigger."""

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bson import encode
from bson.errors import BSONError

from distributary.change import CODEC
from distributary.derive.found import Marked, MarkedFunction, MarkedTrigger
from distributary.derive.naming import is_text, source_name_problem
from distributary.derive.trigger import OPERATIONS
from distributary.errors import Fault

_TRANSFORM_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")

#: The fields of a change as MongoDB reports it.
_REPORTED = frozenset(
    {
        "_id",
        "operationType",
        "fullDocument",
        "fullDocumentBeforeChange",
        "updateDescription",
        "ns",
        "documentKey",
        "clusterTime",
        "wallTime",
        "lsid",
        "txnNumber",
    }
)


def transform_faults(marked: Marked) -> Iterator[Fault]:
    """Check the name, the source and the signature of a transform."""
    yield from _function_faults(marked, "transform", "document")


def trigger_faults(marked: MarkedTrigger) -> Iterator[Fault]:
    """Check the same of a trigger, and which changes it is called for."""
    yield from _function_faults(marked, "trigger", "change")
    place, name = marked.place, f"trigger {marked.mark.name!r:.80}"
    operations = marked.mark.operations
    unknown = [each for each in operations if each not in OPERATIONS]
    if unknown or not operations:
        named = f"{unknown[0]!r:.80} is no operation" if unknown else "it has no operations"
        yield Fault(place, f"{name}: {named}.", f"Name some of {', '.join(OPERATIONS)}, as a list.")
    for option in ("match", "project"):
        value = getattr(marked.mark, option)
        if value is not None and not (isinstance(value, Mapping) and value):
            yield Fault(
                place,
                f"{name}: {option} is {value!r:.80}, not a dict with something in it.",
                'Write it over the change as MongoDB reports it: {"fullDocument.state": ...}, or leave it out.',
            )
        elif value is not None and (problem := _encoding_problem(value)):
            yield Fault(
                place, f"{name}: {option} cannot be written as BSON: {problem}.", "Use BSON values only."
            )
    yield from _projection_faults(place, name, marked.mark.project)


def _function_faults(marked: MarkedFunction, kind: str, argument: str) -> Iterator[Fault]:
    """Give what is wrong with a marked function, whose kind is transform or trigger."""
    name, place = marked.mark.name, marked.place
    if not is_text(name) or not _TRANSFORM_NAME.fullmatch(name):
        yield Fault(
            place,
            f"{name!r:.80} cannot name a {kind}.",
            f"Use letters, digits, `_` and `-`, with a letter or `_` first: @{kind}(..., name=...).",
        )
    if problem := source_name_problem(marked.mark.source):
        yield Fault(
            place,
            f"{kind} {name!r:.80}: {marked.mark.source!r:.80} cannot name a source collection: {problem}.",
            "Write the name of a collection of the source database.",
        )
    yield from _signature_faults(marked, kind, argument)
    for line in marked.code.inline:
        yield Fault(
            f"{place.rpartition(':')[0]}:{line}",
            f"{kind} {name!r:.80} makes a derived collection while it derives.",
            "Declare the DerivedCollection at the module's top level and use it here by its name.",
        )


def _signature_faults(marked: MarkedFunction, kind: str, argument: str) -> Iterator[Fault]:
    function, name = marked.function, marked.mark.name
    inner = inspect.unwrap(function)
    if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
        yield Fault(
            marked.place,
            f"{kind} {name!r:.80} is async.",
            f"Write it with a plain `def`: a {kind} is a pure function and has nothing to wait for.",
        )
    if isinstance(function, type) or not _takes_one_argument(function):
        yield Fault(
            marked.place,
            f"{kind} {name!r:.80} must be a function of exactly one positional argument, the {argument}.",
            f"Write it as `def name({argument}):`.",
        )


def _encoding_problem(value: Mapping[str, Any]) -> str:
    """Say why this cannot be sent to a server; empty if it can."""
    try:
        encode(value, codec_options=CODEC)
    except (BSONError, UnicodeError, TypeError, OverflowError, RecursionError) as error:
        return str(error) or type(error).__name__
    return ""


def _projection_faults(place: str, name: str, project: object) -> Iterator[Fault]:
    fields = [each for each in project if isinstance(each, str)] if isinstance(project, Mapping) else []
    for field in fields:
        if field.split(".")[0] not in _REPORTED:
            yield Fault(
                place,
                f"{name}: project names {field!r:.80}, which is no field of a change.",
                f"A change has {', '.join(sorted(_REPORTED))}; what is made of them, the trigger makes.",
            )


def _takes_one_argument(function: Callable[[Any], Any]) -> bool:
    try:
        parameters = _parameters(function)
    except (ValueError, TypeError):
        return False
    positional = [
        item for item in parameters if item.kind in {item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD}
    ]
    starred = any(item.kind is item.VAR_POSITIONAL for item in parameters)
    required = [item for item in parameters if item.kind is item.KEYWORD_ONLY and item.default is item.empty]
    return not required and (len(positional) == 1 or (starred and not positional))


def _parameters(function: Callable[[Any], Any]) -> list[inspect.Parameter]:
    """Give a function's parameters without evaluating its annotations, which Python 3.14 would do."""
    options: dict[str, Any] = {}
    if sys.version_info >= (3, 14):
        from annotationlib import Format  # noqa: PLC0415 - new in Python 3.14

        options["annotation_format"] = Format.FORWARDREF
    return list(inspect.signature(function, **options).parameters.values())
