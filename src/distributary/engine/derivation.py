"""From a batch of changes to what its documents yield: collapse, read, derive."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

from bson import Timestamp

from distributary.change import Position, identity
from distributary.derive.batch import Derived, Failed, derive_all, is_storable
from distributary.derive.collapse import Latest, Place, collapse
from distributary.derive.plan import Desired
from distributary.derive.transform import Transform
from distributary.engine.horizon import Horizon
from distributary.ports import Batch, Documents, Snapshot
from distributary.state import BEGINNING, Letter, LetterKind

#: A token and time for letters of documents that were scanned: they belong to no change.
NOWHERE = Position("", BEGINNING)


class Prepared(NamedTuple):
    """A batch that is ready to be committed.

    `states` are its documents with the cluster time as of which they are shown; `version` is that of the
    horizon that it was prepared with.
    """

    batch: Batch
    desired: list[Desired]
    letters: list[Letter]
    states: list[tuple[Place, Timestamp]]
    version: int

    @property
    def sources(self) -> frozenset[str]:
        """The source collections in which something changed."""
        return frozenset(collection for (collection, _), _ in self.states)

    @property
    def shown(self) -> Timestamp:
        """The newest cluster time that its records show."""
        return max((time for _, time in self.states), default=BEGINNING)

    def outdated(self, horizon: Horizon) -> bool:
        """Whether something newer than a document of this batch was committed since it was prepared."""
        if self.version == horizon.version:
            return False
        return any(horizon.shown(place) > time for place, time in self.states)


@dataclass(frozen=True, slots=True)
class Derivation:
    """Derives documents of the source; holds no state between calls."""

    documents: Documents
    transforms: Mapping[str, Sequence[Transform]]
    epoch: int
    max_records: int

    def prepare(self, batch: Batch, horizon: Horizon) -> Prepared:
        """Derive every document that changed in the batch.

        Documents that the changes do not carry, or that may be shown as of a later time already, are read: as
        of the batch's end where the server still has that state and nothing newer is shown, else as of the
        newest time.
        """
        version = horizon.version
        first, end = (
            (batch.changes[0].time, batch.changes[-1].time) if batch.changes else (BEGINNING, BEGINNING)
        )
        latest = collapse(batch.changes, None if horizon.is_behind(first) else horizon.shown)
        late = any(horizon.shown((item.collection, item.identity)) >= end for item in latest if item.unread)
        read = self._read(latest, None if late else end)
        derived = derive_all(read, self.transforms, self.epoch, self.max_records)
        states = [((item.collection, item.identity), item.time) for item in read]
        return Prepared(batch, derived.desired, letters(derived.failed), states, version)

    def again(self, batch: Batch) -> Prepared:
        """Derive a batch once more, every document from the newest state."""
        return self.prepare(batch, Horizon(batch.position.time))

    def of_snapshot(
        self, collection: str, snapshot: Snapshot, names: Sequence[str], keys: Iterable[Any] = ()
    ) -> Derived:
        """Derive documents that were read for a job; those of `keys` that are missing are gone."""
        found = [_latest(collection, key_of(each), snapshot.time, each) for each in snapshot.documents]
        present = {item.identity for item in found}
        found += [
            _latest(collection, key, snapshot.time, None) for key in keys if identity(key) not in present
        ]
        wanted = [each for each in self.transforms.get(collection, ()) if each.name in names]
        return derive_all(found, {collection: wanted}, self.epoch, self.max_records)

    def gone(self, collection: str, keys: Iterable[Any], time: Timestamp, name: str) -> list[Desired]:
        """Give what documents yield that no longer exist: nothing, so that what is stored is removed."""
        missing = [_latest(collection, key, time, None) for key in keys]
        only = [each for each in self.transforms.get(collection, ()) if each.name == name]
        return derive_all(missing, {collection: only}, self.epoch, self.max_records).desired

    def _read(self, latest: list[Latest], at: Timestamp | None) -> list[Latest]:
        unread: dict[str, list[Latest]] = defaultdict(list)
        for item in latest:
            if item.unread and is_storable(item.key):
                unread[item.collection].append(item)
        read = [item for item in latest if not item.unread or not is_storable(item.key)]
        for collection, items in unread.items():
            snapshot = self.documents.fetch(collection, [item.key for item in items], at)
            read += self._filled(collection, items, snapshot)
        return read

    def _filled(self, collection: str, items: list[Latest], snapshot: Snapshot) -> Iterator[Latest]:
        """Give the items with their documents; of a collection that was dropped they are left as they are."""
        found = {identity(each["_id"]): each for each in snapshot.documents}
        if len(found) < len(items) and not self.documents.exists(collection):
            return
        for item in items:
            document = found.get(item.identity)
            yield item._replace(document=document, gone=document is None, time=snapshot.time)


def key_of(document: dict[str, Any]) -> Any:
    """Give a document's key, out of reach of a transform that changes the document."""
    key = document["_id"]
    return deepcopy(key) if isinstance(key, dict) else key


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
