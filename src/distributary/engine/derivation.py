"""From a batch of changes to what its documents yield: collapse, read, derive."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from math import inf
from threading import Event
from time import perf_counter
from typing import Any, NamedTuple

from bson import Timestamp

from distributary.change import Change, Position, identity
from distributary.derive.batch import Derived, Failed, Times, derive_all, is_storable
from distributary.derive.collapse import Latest, Place, collapse
from distributary.derive.plan import Desired
from distributary.derive.transform import Transform
from distributary.engine.handing import until
from distributary.engine.horizon import Horizon
from distributary.engine.observer import SILENT, Observer
from distributary.ports.records import TooMuch
from distributary.ports.source import Batch, Documents, Snapshot, Stretch
from distributary.state import BEGINNING, Letter, LetterKind

#: A token and time for letters of documents that were scanned: they belong to no change.
NOWHERE = Position("", BEGINNING)


class Prepared(NamedTuple):
    """A batch that is ready to be committed; its changes carry no documents any more.

    `states` are its documents with the cluster time as of which they are shown, `read` those of them that were
    read rather than carried; `version` is that of the horizon that it was prepared with. `rest` is what did not
    fit, to be prepared next. `derived` is when it was prepared, where that is known.
    """

    batch: Batch
    desired: list[Desired]
    letters: list[Letter]
    states: list[tuple[Place, Timestamp]]
    read: list[tuple[Place, Timestamp]]
    version: int
    rest: Batch | None = None
    derived: Stretch | None = None

    @property
    def sources(self) -> frozenset[str]:
        """The source collections in which something changed."""
        return frozenset(collection for (collection, _), _ in self.states)

    @property
    def shown(self) -> Timestamp:
        """The newest cluster time that its records may show."""
        return max(
            [each.time for each in self.batch.changes[-1:]] + [time for _, time in self.read],
            default=BEGINNING,
        )

    @property
    def late(self) -> list[Place]:
        """The documents of which changes that come behind it may be older than what it shows."""
        if not self.batch.changes:
            return []
        end = self.batch.changes[-1].time
        if self.batch.torn:
            return [place for place, time in self.states if time >= end]
        return [place for place, time in self.read if time > end]

    def outdated(self, horizon: Horizon) -> bool:
        """Whether something newer than a document of this batch was committed since it was prepared."""
        if self.version == horizon.version:
            return False
        return horizon.overtook(self.states)


#: Documents that are read at once, at most.
KEYS = 5000


@dataclass(slots=True)
class Appetite:
    """How many documents are read at once: as many as fitted lately, and more again where there was room."""

    keys: int = KEYS

    def less(self, fit: int) -> None:
        """Learn that only so many fit."""
        self.keys = fit

    def more(self) -> None:
        """Learn that twice as many would have fitted."""
        self.keys = min(KEYS, 2 * self.keys)


@dataclass(frozen=True, slots=True)
class Derivation:
    """Derives documents of the source.

    `told` passes on the documents while they are derived, one by one. `most` bounds memory, in bytes: of documents
    that are read ahead in BSON, and again of what is yielded before it is handed on. Only one document at a time
    is decoded. A document is never cut, so that one may exceed both bounds.
    """

    documents: Documents
    transforms: Mapping[str, Sequence[Transform]]
    epoch: int
    max_records: int
    told: Callable[[Iterable[Latest]], Iterable[Latest]] = iter
    most: float = inf
    appetite: Appetite = field(default_factory=Appetite)
    observer: Observer = SILENT

    def stopped_by(self, stop: Event) -> "Derivation":
        """Give one that raises `Interrupted` between two documents once `stop` is set."""
        return replace(self, told=lambda documents: until(stop, self.told(documents)))

    def prepare(self, batch: Batch, horizon: Horizon) -> Prepared:
        """Derive every document that changed in the batch, or those that fit.

        Documents that the changes do not carry, or that may be shown as of a later time already, are read: as
        of the batch's end where the server still has that state, and those that are shown as of a later time
        as of the newest one. What is read as of the newest time is all read as of the same.
        """
        version = horizon.version
        first, end = (
            (batch.changes[0].time, batch.changes[-1].time) if batch.changes else (BEGINNING, BEGINNING)
        )
        latest = collapse(batch.changes, None if horizon.is_behind(first) else horizon.shown)
        reading = _Reading(self, latest, end, horizon)
        derived = self._derive(reading.items(), self.transforms, self.most)
        prepared = Prepared(
            _bare(batch), derived.desired, letters(derived.failed), reading.states, reading.read, version
        )
        if reading.done == len(latest):
            return prepared
        return self._cut(batch, prepared, {_place(item) for item in latest[: reading.done]}, horizon)

    def _cut(self, batch: Batch, prepared: Prepared, shown: Collection[Place], horizon: Horizon) -> Prepared:
        """Cut off what does not fit into memory; only the documents at the places `shown` were derived.

        The cut is in front of the first change of a document that was not derived, and between two cluster times.
        Documents in front of the cut are shown as of the cut: where one of them changes behind it too, all in front is
        derived once more for itself. Only the changes of one cluster time that do not fit together are torn. Then those
        of documents in front of the cut show all of that time, and what is behind the cut comes without them; a worker
        that starts again at the cut gets them once more, and reads them, since the checkpoint says as of when records
        may be shown (`ahead`).
        """
        cut = next(index for index, each in enumerate(batch.changes) if _changed(each) not in shown)
        whole = _beginning(batch.changes, cut)
        if whole and (whole < cut or any(_changed(each) in shown for each in batch.changes[cut:])):
            return self._whole(batch, whole, horizon)
        head, rest = _halves(batch, cut, shown)
        return prepared._replace(batch=_bare(head), rest=rest)

    def _whole(self, batch: Batch, cut: int, horizon: Horizon) -> Prepared:
        """Derive what is in front of a cut between two cluster times, as of the cut."""
        head, behind = _halves(batch, cut, frozenset())
        prepared = self.prepare(head, horizon)
        changes = (prepared.rest.changes if prepared.rest else []) + behind.changes
        return prepared._replace(rest=behind._replace(changes=changes))

    def again(self, batch: Batch) -> Prepared:
        """Derive a batch once more, every document from the newest state."""
        return self.prepare(batch, Horizon(batch.position.time))

    def of_snapshot(
        self, collection: str, snapshot: Snapshot, names: Sequence[str], keys: Iterable[Any] = ()
    ) -> Derived:
        """Derive documents that were read for a job; those of `keys` that are missing are gone."""
        present = {identity(key) for key in snapshot.keys} if keys else set()
        found = _found(collection, snapshot)
        missing = (
            _latest(collection, key, snapshot.time, None) for key in keys if identity(key) not in present
        )
        return self._derived(collection, chain(found, missing), names)

    def parts(
        self, collection: str, snapshot: Snapshot, names: Sequence[str]
    ) -> Iterator[tuple[int, Derived]]:
        """Derive documents of a scan in their order: how many, and what they yield, until all are derived."""
        done = 0
        while done < len(snapshot.documents):
            count = _Count()
            found = _found(collection, Snapshot(snapshot.time, snapshot.documents[done:]))
            derived = self._derived(collection, count.over(found), names, self.most)
            done += count.seen
            yield done, derived

    def _derived(
        self, collection: str, found: Iterable[Latest], names: Sequence[str], most: float = inf
    ) -> Derived:
        wanted = [each for each in self.transforms.get(collection, ()) if each.name in names]
        return self._derive(found, {collection: wanted}, most)

    def _derive(
        self, documents: Iterable[Latest], transforms: Mapping[str, Sequence[Transform]], most: float
    ) -> Derived:
        times = Times(perf_counter)
        derived = derive_all(self.told(documents), transforms, self.epoch, self.max_records, most, times)
        self.observer.derived(times.seconds, times.documents)
        return derived

    def gone(self, collection: str, keys: Iterable[Any], time: Timestamp, name: str) -> list[Desired]:
        """Give what documents yield that no longer exist: nothing, so that what is stored is removed."""
        missing = [_latest(collection, key, time, None) for key in keys]
        only = [each for each in self.transforms.get(collection, ()) if each.name == name]
        return derive_all(missing, {collection: only}, self.epoch, self.max_records).desired


class _Reading:
    """The documents of one batch, in its order, of which as many are read ahead as fit.

    Those that are shown at the batch's end or later (late) are read as of the newest time, the others as of the end,
    as far as the server has that; all of one kind as of the same time. `done` are those that were given, or left
    as they are, `states` as of when each of them is, and `read` the same of those that were read.
    """

    def __init__(
        self, derivation: Derivation, latest: Sequence[Latest], end: Timestamp, horizon: Horizon
    ) -> None:
        self._documents = derivation.documents
        self._most = derivation.most
        self._appetite = derivation.appetite
        self._latest = latest
        self._end = end
        self._horizon = horizon
        self._at: dict[bool, Timestamp | None] = {False: end, True: None}
        self._read: dict[Place, tuple[Snapshot, int | None] | None] = {}
        self.done = 0
        self.states: list[tuple[Place, Timestamp]] = []
        self.read: list[tuple[Place, Timestamp]] = []

    def items(self) -> Iterator[Latest]:
        """Give each document with its state; what is gone is None."""
        for item in self._latest:
            unread = _is_unread(item)
            state = self._state(item) if unread else item
            self.done += 1
            if state is not None:
                shown = (_place(item), state.time)
                self.states.append(shown)
                if unread:
                    self.read.append(shown)
                yield state
            del state  # before the next one is decoded

    def _state(self, item: Latest) -> Latest | None:
        """Give a document that has to be read; none when its collection was dropped: it is left as it is."""
        place = _place(item)
        if place not in self._read:
            self._read_ahead()
        read = self._read.pop(place)
        if read is None:
            return None
        snapshot, index = read
        document = None if index is None else snapshot.documents[index]
        return item._replace(document=document, gone=document is None, time=snapshot.time)

    def _read_ahead(self) -> None:
        """Read the next documents, fewer when they turn out to be too large."""
        unread = [item for item in islice(self._latest, self.done, None) if _is_unread(item)]
        while True:
            some = unread[: self._appetite.keys]
            self._read = {}
            try:
                size = self._fetch(some)
            except TooMuch as error:
                self._appetite.less(error.fit)
            else:
                if len(some) == self._appetite.keys and 2 * size <= self._most:
                    self._appetite.more()
                return

    def _fetch(self, items: Sequence[Latest]) -> int:
        """Read documents, and give their size."""
        size = 0
        for (late, collection), some in self._grouped(items):
            snapshot = self._documents.fetch(collection, [item.key for item in some], self._at[late])
            self._at[late] = snapshot.time
            size += snapshot.size
            if size > self._most and len(items) > 1:
                raise TooMuch(len(items) // 2)
            self._keep(collection, some, snapshot)
        return size

    def _grouped(self, items: Iterable[Latest]) -> Iterable[tuple[tuple[bool, str], list[Latest]]]:
        grouped: dict[tuple[bool, str], list[Latest]] = defaultdict(list)
        for item in items:
            late = self._horizon.shown(_place(item)) >= self._end
            grouped[late, item.collection].append(item)
        return grouped.items()

    def _keep(self, collection: str, items: Sequence[Latest], snapshot: Snapshot) -> None:
        found = {identity(key): index for index, key in enumerate(snapshot.keys)}
        dropped = len(found) < len(items) and not self._documents.exists(collection)
        for item in items:
            self._read[_place(item)] = None if dropped else (snapshot, found.get(item.identity))


class _Count:
    """Counts what passes."""

    seen = 0

    def over(self, items: Iterable[Latest]) -> Iterator[Latest]:
        for item in items:
            self.seen += 1
            yield item
            del item  # before the next one is decoded


def _is_unread(item: Latest) -> bool:
    return item.unread and is_storable(item.key)


def _place(item: Latest) -> Place:
    return (item.collection, item.identity)


def _bare(batch: Batch) -> Batch:
    """Give a batch that holds no documents; they are derived, and read when they have to be derived again."""
    changes = [each if each.document is None else each._replace(document=None) for each in batch.changes]
    return batch._replace(changes=changes)


def _changed(change: Change) -> Place:
    return (change.collection, identity(change.key))


def _beginning(changes: Sequence[Change], cut: int) -> int:
    """Give the index of the first change of the cluster time that a cut falls into."""
    while cut and changes[cut - 1].time == changes[cut].time:
        cut -= 1
    return cut


def _halves(batch: Batch, cut: int, without: Collection[Place]) -> tuple[Batch, Batch]:
    """Cut a batch in two, the second one without the changes of some documents."""
    changes = batch.changes
    torn = changes[cut - 1].time == changes[cut].time
    position = Position.of_token(changes[cut - 1].token)
    head = Batch(changes[:cut], position, 0, torn=torn, read=batch.read)
    return head, batch._replace(changes=[each for each in changes[cut:] if _changed(each) not in without])


def _found(collection: str, snapshot: Snapshot) -> Iterator[Latest]:
    """Give documents that were read, each decoded when it is asked for."""
    for index, key in enumerate(snapshot.keys):
        yield _latest(collection, key, snapshot.time, snapshot.documents[index])


def _latest(collection: str, key: Any, time: Timestamp, document: dict[str, Any] | None) -> Latest:
    return Latest(collection, key, identity(key), time, document, document is None, fresh=False, token="")


def letters(failed: Iterable[Failed]) -> list[Letter]:
    """Give the dead letters of documents whose transform failed."""
    return [
        Letter(
            transform=transform.name,
            key=item.key,
            source=item.collection,
            kind=LetterKind.FAILED,
            reason=failure.reason,
            traceback=failure.traceback,
            position=Position(item.token, item.time),
            fingerprint=transform.fingerprint,
        )
        for transform, item, failure in failed
    ]
