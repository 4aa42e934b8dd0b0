"""`distributary verify`: compare derived collections with a recomputation."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from distributary.assemble import Assembled, connect, registry
from distributary.cli.common import (
    config_option,
    emit_json,
    json_option,
    named,
    one_line,
    open_config,
    progress,
)
from distributary.operate.comparison import Difference, Kind
from distributary.operate.jobs import carry_out
from distributary.operate.verify import Verification, Verifier
from distributary.parts import told
from distributary.state import Job

#: What the counts of differences are called, in the order in which they are told.
_KINDS = ("missing", "stale", "orphaned", "failing")


@click.command("verify")
@config_option
@json_option
@click.option("--transform", "names", metavar="NAME", multiple=True, help="Only this transform; repeatable.")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only N random documents of each source collection, and N random records of each derived one.",
)
@click.option("--repair", is_flag=True, help="Derive again what differs, as jobs of the worker.")
def command(
    config_path: Path | None, names: tuple[str, ...], sample: int | None, *, repair: bool, as_json: bool
) -> int:
    """Compare derived collections with a recomputation, and name what is missing, stale or orphaned.

    Beside a running worker a difference counts only if it is still there once the worker has passed the time
    of the read. Without one everything is compared with the source as it is now. Exits with 0 when all is
    equal or was repaired, with 1 when differences remain.
    """
    config = open_config(config_path)
    plugged = registry(config)
    chosen = plugged.only_transforms(names).transforms
    with connect(config) as databases:
        assembled = Assembled(config, databases, plugged)
        with progress("Comparing", unit="documents and records", as_json=as_json) as bar:
            verifier = Verifier(
                assembled.sides(),
                chosen,
                assembled.watch(),
                sample=sample or 0,
                repair=_repairing(assembled) if repair else None,
                progress=bar.update,
            )
            result = verifier.run()
    if as_json:
        emit_json(_answer(result))
    else:
        click.echo("\n".join(_lines(result)))
    return 0 if result.equal else 1


def _repairing(assembled: Assembled) -> Callable[[Sequence[Job]], object]:
    return lambda jobs: carry_out(assembled, jobs)


# --- the answer ---------------------------------------------------------------------------------------------


def _answer(result: Verification) -> dict[str, Any]:
    counts = ("documents", "records", "collections", *_KINDS, "repaired", "unsettled", "parked", "contested")
    apart = ("detached", "outdated", "not_built", "left_behind", "audited")
    return {
        "equal": result.equal,
        **{name: getattr(result, name) for name in counts},
        **{name: list(getattr(result, name)) for name in apart},
        "sampled": result.sampled,
        "worker_alive": result.alive,
        "behind_seconds": result.behind_seconds,
        "differences": [_difference(each) for each in result.differences],
    }


def _difference(each: Difference) -> dict[str, Any]:
    return {
        "kind": each.kind.value,
        **told(each.collection, each.key),
        "transform": each.transform,
        "source_key": each.source_key,
        "fields": list(each.fields),
        "repaired": each.repaired,
    }


def _lines(result: Verification) -> Iterator[str]:
    yield _summary(result)
    yield from (f"  {_line(each)}" for each in result.differences)
    unnamed = result.remaining + result.repaired - len(result.differences)
    if unnamed > 0:
        yield f"  … and {unnamed:,} more"
    yield from _apart(result)
    yield from _next(result)


def _summary(result: Verification) -> str:
    """Say in one line what was compared, and with what outcome."""
    sample = "a sample: " if result.sampled else ""
    kinds = ", ".join(f"{getattr(result, kind):,} {kind}" for kind in _KINDS if getattr(result, kind))
    done = f"{result.repaired:,} repaired" if result.repaired else ""
    if not result.collections:
        return "nothing compared: no transform has been built by the code that is plugged in"
    records = f"{_count(result.records, 'derived record')} in {_count(result.collections, 'collection')}"
    documents = _count(result.documents, "document")
    if result.equal:
        now = f"{done}, now " if done else ""
        verb = "equals" if result.records == 1 else "equal"
        return f"equal: {now}{sample}{records} {verb} a recomputation from {documents}"
    found = ", ".join(filter(None, [kinds, done]))
    return f"different: {found} ({sample}{records} compared with a recomputation from {documents})"


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"


def _line(each: Difference) -> str:
    repaired = "repaired: " if each.repaired else ""
    owner = f" from {each.transform} {one_line(each.source_key)}" if each.transform else " from nobody"
    if each.kind is not Kind.ORPHANED and not each.transform:
        owner = " from its parts"
    what = f": {', '.join(each.fields)}" if each.fields else ""
    if not each.collection:
        return f"{repaired}{each.kind}{owner}: it cannot be derived and is not parked"
    return f"{repaired}{each.kind} {named(each.collection, each.key)}{owner}{what}"


def _apart(result: Verification) -> Iterator[str]:
    """Tell what the comparison says nothing about."""
    names = {
        "detached source collections, whose records are kept": result.detached,
        "outdated, built by other code than is plugged in": result.outdated,
        "not built yet": result.not_built,
        "left behind, not plugged in": result.left_behind,
        "filled by triggers, which cannot be recomputed": result.audited,
    }
    yield from (f"not compared: {what}: {', '.join(some)}" for what, some in names.items() if some)
    if result.parked or result.contested:
        both = f"{result.parked:,} parked, {result.contested:,} contested"
        yield f"not compared: dead letters: {both}; see `distributary dead-letters list`"
    if result.unsettled:
        yield f"not compared: unsettled: {_count(result.unsettled, 'document')} that kept changing"


def _next(result: Verification) -> Iterator[str]:
    """Say what to do about it."""
    if result.behind_seconds and not result.equal:
        yield (
            f"No worker is running, and the position is {result.behind_seconds:,} s behind the source: what changed"
            " since counts as a difference. Run `distributary run --until-caught-up` first."
        )
    if not result.equal:
        yield "Run `distributary verify --repair` to derive again what differs."
    if result.outdated:
        yield f"Run `distributary rebuild {' '.join(result.outdated)}` to build anew what is outdated."
