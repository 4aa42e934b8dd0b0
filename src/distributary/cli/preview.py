"""`distributary preview`: what a transform yields, and what that would change."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import click
from rich.text import Text

from distributary.assemble import Assembled, connect, registry
from distributary.cli.common import (
    config_option,
    console,
    emit_json,
    json_option,
    named,
    one_line,
    open_config,
)
from distributary.cli.difference import columns_of, field_lines, legible, signed
from distributary.cli.keys import KEY_FORMS, parse_key
from distributary.derive.purity import CHANGES, CHANGES_CURE, UNSTABLE, UNSTABLE_CURE
from distributary.derive.transform import Transform
from distributary.operate.preview import DocumentDiff, Preview, RecordDiff, State
from distributary.parts import shared_of

#: Documents that are drawn when nothing says which.
SAMPLE = 5


@click.command("preview")
@config_option
@json_option
@click.argument("name")
@click.option(
    "--id", "ids", metavar="ID", multiple=True, help=f"The key of a document: {KEY_FORMS}; repeatable."
)
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"N documents that are drawn at random; {SAMPLE} when nothing says which.",
)
def command(
    config_path: Path | None, name: str, ids: tuple[str, ...], sample: int | None, *, as_json: bool
) -> int:
    """Show what the transform NAME yields for some documents, as a diff against what is stored.

    The code is taken as it is plugged in, deployed or not. Nothing is written. Exits with 0 when every document
    could be derived, with 1 when one could not or is contested.
    """
    if ids and sample:
        raise click.UsageError("Give --id or --sample, not both.")
    asked = [parse_key(each) for each in ids]
    config = open_config(config_path)
    plugged = registry(config)
    plugged.only_transforms([name], "NAME")
    with connect(config) as databases:
        preview = Preview(Assembled(config, databases, plugged).sides(), name)
        found = preview.of_keys(asked) if asked else preview.of_sample(sample or SAMPLE)
        tally = _Tally()
        if as_json:
            _answer(preview.transform, list(tally.over(found)), tally)
        else:
            _print(preview.transform, tally.over(found), tally)
    return 1 if tally.failed or tally.contested else 0


class _Tally:
    """Counts what passes: documents, and records by collection and state."""

    def __init__(self) -> None:
        self.documents = self.failed = self.contested = 0
        self.unstable = self.mutates = False
        self.records: dict[str, Counter[str]] = {}

    def over(self, found: Iterable[DocumentDiff]) -> Iterator[DocumentDiff]:
        for each in found:
            self.documents += 1
            self.failed += each.failure is not None
            self.contested += each.contested
            self.unstable |= each.unstable
            self.mutates |= each.mutates
            for record in each.records:
                self.records.setdefault(shared_of(record.collection), Counter())[record.state.value] += 1
            yield each

    @property
    def totals(self) -> Mapping[str, Mapping[str, int]]:
        """The counts in an order that stays, without those that are nought."""
        return {
            name: {state.value: counts[state.value] for state in State if counts[state.value]}
            for name, counts in sorted(self.records.items())
        }


def _answer(transform: Transform, found: list[DocumentDiff], tally: _Tally) -> None:
    emit_json(
        {
            "transform": transform.name,
            "place": transform.place,
            "source": transform.source,
            "fingerprint": transform.fingerprint,
            "documents": [each.answer() for each in found],
            "totals": tally.totals,
            "failed": tally.failed,
            "contested": tally.contested,
        }
    )


# --- for people ---------------------------------------------------------------------------------------------


def _print(transform: Transform, found: Iterable[DocumentDiff], tally: _Tally) -> None:
    out = console()
    columns = columns_of(out)
    out.print(f"{transform.name} ({transform.place}), fingerprint {transform.fingerprint}", soft_wrap=True)
    for each in found:
        for line in _document(transform.source, each, columns):
            out.print(line, soft_wrap=True)
    if tally.unstable:
        out.print(Text(f"{transform.name} {UNSTABLE}. {UNSTABLE_CURE}", "red"), soft_wrap=True)
    if tally.mutates:
        out.print(Text(f"{transform.name} {CHANGES} {CHANGES_CURE}", "red"), soft_wrap=True)
    out.print(_summary(transform.source, tally), soft_wrap=True)


def _document(source: str, each: DocumentDiff, columns: int) -> Iterator[Text]:
    yield Text()
    yield Text(legible(f"{source} {one_line(each.key)}{_said(each)}"), "bold")
    if each.failure is not None:
        yield Text(legible(f"  {each.failure.reason!s}"), "red")
        yield from (Text(legible(f"  {line}")) for line in each.failure.traceback.rstrip().splitlines())
    for record in each.records:
        if record.state not in (State.UNCHANGED, State.KEPT):
            yield signed(record.state, _record(record))
            yield from field_lines(record, columns)
    if unchanged := len(each.of(State.UNCHANGED)):
        yield signed(State.UNCHANGED, f"{unchanged:,} unchanged")
    if each.unstable or each.mutates:
        faults = [UNSTABLE] * each.unstable + [CHANGES.rstrip(".")] * each.mutates
        yield Text(f"  ! the transform {' and '.join(faults)}", "red")


def _said(each: DocumentDiff) -> str:
    """Say what is to be known of a document before its records."""
    if not each.exists:
        there = "" if each.records else ", and nothing is stored for it"
        return f": there is no such document{there}"
    if each.failure is not None:
        records = f"{len(each.records):,} {'record' if len(each.records) == 1 else 'records'}"
        return ": it cannot be derived" + f", and keeps its {records}" * bool(each.records)
    if each.contested:
        return ": contested, so it would be parked and keep what it has"
    return "" if each.records else ": no records"


def _record(record: RecordDiff) -> str:
    holder = ""
    if record.holder is not None:
        transform, key = record.holder
        holder = f": contested, {transform} has it from {one_line(key)}"
    return f"{named(record.collection, record.key)}{holder}"


def _summary(source: str, tally: _Tally) -> str:
    """Say in one line what came of it, by collection."""
    if not tally.documents:
        return f"\n{source} has no documents."
    names = "document" if tally.documents == 1 else "documents"
    failed = [f"{tally.failed:,} cannot be derived"] * bool(tally.failed)
    contested = [f"{tally.contested:,} contested"] * bool(tally.contested)
    said = ", ".join([f"{tally.documents:,} {names}", *failed, *contested])
    totals = "; ".join(
        f"{name} " + ", ".join(f"{count:,} {state}" for state, count in counts.items())
        for name, counts in tally.totals.items()
    )
    return f"\n{said}: {totals or 'no records'}"
