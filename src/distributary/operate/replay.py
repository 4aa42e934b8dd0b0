"""Replaying a part of the history: the job for it, and what it would change."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pymongo.database import Database

from distributary.change import Identity, identity
from distributary.chunks import chunks
from distributary.derive.batch import is_storable
from distributary.derive.transform import Transform
from distributary.operate.comparison import Difference, Kind
from distributary.operate.positions import Mark, history, lean
from distributary.operate.sides import Sides
from distributary.parts import shared_of
from distributary.ports.source import Batch
from distributary.state import Checkpoint, Job, JobKind

#: Documents that are read and compared at once.
SLICE = 1000

#: Differences that the answer names of each kind; all of them are counted.
NAMED = 10

#: What a replay would do about a difference.
EFFECTS = {Kind.MISSING: "write", Kind.STALE: "change", Kind.ORPHANED: "remove"}


def replay(
    raw: Database[Any],
    transforms: Mapping[str, Transform],
    since: Mark,
    until: Mark,
    *,
    publish: bool = False,
) -> Job:
    """Give the job that derives again what changed from one mark to a later one; raises `PositionLost`."""
    sources = sorted({each.source for each in transforms.values()})
    stream = lean(raw, sources)
    try:
        position = stream.open(since.start)
        stream.read(0)  # only then the server looks for the token
    finally:
        stream.close()
    span = (since.time, max(until.time, since.time))
    names = tuple(sorted(transforms))
    return Job(
        None,
        JobKind.REPLAY,
        ", ".join(sources),
        names,
        "asked for",
        after=(position.token,),
        span=span,
        publish=publish,
    )


@dataclass(slots=True)
class Forecast:
    """What a replay would do: documents that changed, effects on records by collection, and the first of them.

    `failing` documents cannot be derived; `parked` ones are not looked at, since a replay tries them, too.
    """

    changes: int = 0
    documents: int = 0
    unchanged: int = 0
    failing: int = 0
    effects: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    samples: list[Difference] = field(default_factory=list)

    def note(self, difference: Difference) -> None:
        """Count a difference between what is stored and what would be."""
        if difference.kind is Kind.FAILING:
            self.failing += 1
        else:
            self.effects[shared_of(difference.collection)][EFFECTS[difference.kind]] += 1
        if sum(each.kind is difference.kind for each in self.samples) < NAMED:
            self.samples.append(difference)


class DryRun:
    """Reads a part of the history and compares what changed in it with what is stored; writes nothing."""

    def __init__(self, sides: Sides, transforms: Mapping[str, Transform], checkpoint: Checkpoint) -> None:
        self._sides = sides
        self._transforms = transforms
        self._collections = {
            name: each.collections | checkpoint.transforms[name].places for name, each in transforms.items()
        }
        self._seen: dict[tuple[str, Identity], None] = {}

    def run(self, since: Mark, until: Mark, progress: Callable[[int], None] = lambda _: None) -> Forecast:
        """Give what a replay would do; `progress` is told how many seconds of the history were read."""
        forecast = Forecast()
        sources = sorted({each.source for each in self._transforms.values()})
        for batch in history(self._sides.raw, sources, since, until):
            for source, keys in self._new(batch, until, forecast).items():
                for some in chunks(keys, SLICE):
                    self._compare(source, some, forecast)
            progress(max(0, min(batch.position.time.time, until.time.time) - since.time.time))
        return forecast

    def _new(self, batch: Batch, until: Mark, forecast: Forecast) -> Mapping[str, Sequence[Any]]:
        """Give the keys, by source, of documents that were not looked at yet."""
        keys: dict[str, list[Any]] = defaultdict(list)
        for change in batch.changes:
            place = (change.collection, identity(change.key))
            if not until.is_behind(change.token, change.time):
                continue
            forecast.changes += 1
            if place not in self._seen and is_storable(change.key):
                self._seen[place] = None
                keys[change.collection].append(change.key)
        return keys

    def _compare(self, source: str, keys: Sequence[Any], forecast: Forecast) -> None:
        """Compare documents as of the worker's position, if that can be, with what is stored then."""
        names = {
            name: self._collections[name] for name, each in self._transforms.items() if each.source == source
        }
        with self._sides.moment() as moment:
            snapshot = self._sides.documents.fetch(source, keys, moment.at)
            compared = self._sides.compare(moment, snapshot, names, (), keys)
        forecast.documents += len(keys)
        differences = [each for some in compared.differences.values() for each in some]
        forecast.unchanged += compared.records - len(list(_yielded(differences)))
        for each in differences:
            forecast.note(each)


def _yielded(differences: Iterable[Difference]) -> Iterator[Difference]:
    """Give the differences of records that are yielded."""
    return (each for each in differences if each.kind in {Kind.MISSING, Kind.STALE})
