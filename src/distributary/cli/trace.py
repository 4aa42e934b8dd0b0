"""`distributary trace`: from a derived record to its document, and from a document to its records."""

from collections.abc import Iterator
from pathlib import Path

import click

from distributary.assemble import Assembled, connect, registry
from distributary.cli.common import config_option, emit_json, json_option, named, one_line, open_config
from distributary.cli.difference import legible
from distributary.cli.keys import KEY_FORMS, parse_key
from distributary.derive.plan import UNKNOWN_VERSION
from distributary.operate.status import TransformState, iso
from distributary.operate.trace import (
    Agreement,
    Code,
    Descent,
    DocumentTrace,
    GroupTrace,
    Held,
    RecordTrace,
    Role,
    SharedTrace,
    Tracer,
)
from distributary.store.letters import StoredLetter

#: Columns of what the lines begin with.
_LABEL_COLUMNS = 12

_BUILT = {
    TransformState.BUILT: "built by the code that is plugged in",
    TransformState.OUTDATED: "outdated, since other code built it",
    TransformState.NOT_BUILT: "not built yet",
    TransformState.LEFT_BEHIND: "left behind, since it is not plugged in",
}

_AGREES = {
    Agreement.EQUAL: "equal to what the document yields now",
    Agreement.DIFFERS: "differs from what the document yields now",
    Agreement.NOT_YIELDED: "no longer yielded",
    Agreement.FAILING: "kept, since the document cannot be derived now",
    Agreement.UNKNOWN: "not compared, since the transform is not plugged in here",
    Agreement.EFFECT: "an effect of the change at that time, which nothing yields again",
}

_COMES_TO = {
    Agreement.EQUAL: "equal to what its records come to now",
    Agreement.DIFFERS: "differs from what its records come to now",
    Agreement.FAILING: "kept, since it cannot be computed now",
}


@click.command("trace", epilog=f"KEY is {KEY_FORMS}.")
@config_option
@json_option
@click.argument("collection")
@click.argument("key")
@click.option("--derived", "role", flag_value=Role.DERIVED.value, help="COLLECTION is a derived one.")
@click.option("--source", "role", flag_value=Role.SOURCE.value, help="COLLECTION is a source collection.")
def command(config_path: Path | None, collection: str, key: str, role: str | None, *, as_json: bool) -> None:
    """Show where a derived record comes from, or what is derived from a document.

    COLLECTION is a derived or a source collection; only when its name is both an option has to say which.
    """
    candidates = parse_key(key)
    config = open_config(config_path)
    plugged = registry(config)
    with connect(config) as databases:
        tracer = Tracer(Assembled(config, databases, plugged).sides())
        if tracer.role(collection, Role(role) if role else None) is Role.DERIVED:
            record = tracer.record(collection, candidates)
            answer, lines = {"record": record.answer()}, _any(record)
        else:
            document = tracer.document(collection, candidates)
            answer, lines = {"document": document.answer()}, _document(document)
    if as_json:
        emit_json(answer)
    else:
        click.echo(legible("\n".join(lines)))


# --- from a record to its document ----------------------------------------------------------------------------


def _any(trace: RecordTrace | SharedTrace | GroupTrace) -> Iterator[str]:
    if isinstance(trace, GroupTrace):
        return _group(trace)
    return _shared(trace) if isinstance(trace, SharedTrace) else _record(trace)


def _group(trace: GroupTrace) -> Iterator[str]:
    yield named(trace.held.collection, trace.held.key)
    said = "still to be computed" if trace.pending else "computed with the records that it is over"
    facts = {
        "rollup": f"{trace.held.collection} ({trace.place}), over {trace.over} by {', '.join(trace.by)}",
        "records": f"{trace.records:,} now",
        "version": _version(trace.held),
        "state": said,
        "now": _COMES_TO[trace.held.agreement]
        + (f" in {', '.join(trace.held.fields)}" if trace.held.fields else ""),
    }
    yield from (f"  {name + ':':<{_LABEL_COLUMNS}} {told}" for name, told in facts.items())


def _shared(trace: SharedTrace) -> Iterator[str]:
    parts = "part" if trace.count == 1 else "parts"
    yield f"{named(trace.held.collection, trace.held.key)}: a shared record of {trace.count:,} {parts}"
    for each in trace.parts:
        yield ""
        yield from _record(each)
    if trace.count > len(trace.parts):
        yield ""
        yield f"… and {trace.count - len(trace.parts):,} more"


def _record(trace: RecordTrace) -> Iterator[str]:
    yield named(trace.held.collection, trace.held.key)
    yield from (f"  {name + ':':<{_LABEL_COLUMNS}} {said}" for name, said in _facts(trace))


def _facts(trace: RecordTrace) -> Iterator[tuple[str, str]]:
    if trace.code is None:
        yield "owner", f"nobody: {trace.nobodys}"
        yield (
            "cure",
            (
                "`distributary verify --repair` removes the record, or puts in its place what a document yields"
            ),
        )
        return
    yield "document", f"{trace.code.source} {one_line(trace.source_key)}, {_there(trace)}"
    if trace.held.agreement is Agreement.EFFECT:
        yield "trigger", _transform(trace.code)
    else:
        yield "transform", _transform(trace.code)
        yield "fingerprint", _fingerprint(trace.code)
    yield "version", _version(trace.held)
    if trace.code.worker is not None:
        yield "worker", _worker(trace.code)
    yield "now", _agreement(trace.held, trace.failure)
    if trace.letter is not None:
        yield "dead letter", _letter(trace.letter)


def _there(trace: RecordTrace) -> str:
    if trace.exists is None:
        worker = trace.code.worker if trace.code else None
        return f"not looked at: use the configuration of worker {worker!r}"
    return "which exists" if trace.exists else "which does not exist any more"


def _transform(code: Code) -> str:
    place = f" ({code.place})" if code.place else ""
    return f"{code.name}{place}"


def _fingerprint(code: Code) -> str:
    plugged = f", {code.plugged_in} is plugged in" if code.plugged_in not in (None, code.built) else ""
    return f"{code.built or 'none'}{plugged}: {_BUILT[code.state]}"


def _version(held: Held) -> str:
    if held.version == UNKNOWN_VERSION:
        return "none that can be read"
    time = held.version.time
    return f"{iso(time)} ({time.time}, {time.inc}), epoch {held.version.epoch}"


def _worker(code: Code) -> str:
    return f"{code.worker}, at {iso(code.position.time)} {code.position.token}" if code.position else ""


def _agreement(held: Held, failure: str = "") -> str:
    fields = f" in {', '.join(held.fields) or 'the order of its fields'}"
    said = _AGREES[held.agreement] + fields * (held.agreement is Agreement.DIFFERS)
    return f"{said}: {failure}" if failure else said


def _letter(stored: StoredLetter) -> str:
    reason = stored.letter.reason.partition("\n")[0]
    return f"{stored.id} ({stored.letter.kind.value}): {reason}"


# --- from a document to its records ---------------------------------------------------------------------------


def _document(trace: DocumentTrace) -> Iterator[str]:
    there = "which exists" if trace.exists else "which does not exist any more"
    yield f"{trace.collection} {one_line(trace.key)}, {there}"
    for each in trace.descents:
        yield ""
        yield from _descent(each)


def _descent(each: Descent) -> Iterator[str]:
    yield f"{_transform(each.code)}, {_BUILT[each.code.state]}"
    if each.nothing:
        yield f"  nothing is derived: {each.nothing}"
    if each.failure:
        yield f"  it cannot be derived now: {each.failure}"
    if each.letter is not None:
        yield f"  dead letter: {_letter(each.letter)}"
    for held in each.records:
        yield f"  {named(held.collection, held.key)}, version {_version(held)}: {_agreement(held)}"
    for missing in each.missing:
        holder = f": {missing.holder[0]} has it from {one_line(missing.holder[1])}" if missing.holder else ""
        yield f"  {named(missing.collection, missing.key)}: yielded now, and not stored for it{holder}"
