"""From a batch of changes to what its documents yield: collapse, read, derive."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bson import Timestamp

from distributary.change import Position, identity
from distributary.derive.batch import Derived, Failed, derive_all, is_storable
from distributary.derive.collapse import Latest, collapse
from distributary.derive.plan import Desired
from distributary.derive.transform import Transform
from distributary.ports import Batch, Documents, Snapshot
from distributary.state import BEGINNING, Letter, LetterKind

#: A token and time for letters of documents that were scanned: they belong to no change.
NOWHERE = Position("", BEGINNING)


class Prepared(NamedTuple):
    """A batch that is ready to be committed.

    `ahead` is the checkpoint's `ahead` that it was prepared with; `shown` the newest cluster time that its
    records show.
    """

    batch: Batch
    desired: list[Desired]
    letters: list[Letter]
    sources: frozenset[str]
    ahead: Timestamp
    shown: Timestamp

    def outdated(self, ahead: Timestamp) -> bool:
        """Whether something newer than a change of this batch was committed since it was prepared."""
        return ahead > self.ahead and any(change.time <= ahead for change in self.batch.changes[:1])


@dataclass(frozen=True, slots=True)
class Derivation:
    """Derives documents of the source; holds no state between calls."""

    documents: Documents
    transforms: Mapping[str, Sequence[Transform]]
    epoch: int
    max_records: int

    def prepare(self, batch: Batch, ahead: Timestamp) -> Prepared:
        """Derive every document that changed in the batch.

        Documents that the changes do not carry are read as of the batch's end, unless records that show
        something newer (up to `ahead`) were committed already: then as of the newest time.
        """
        latest = collapse(batch.changes, ahead)
        end = batch.changes[-1].time if batch.changes else BEGINNING
        read, shown = self._read(latest, end if end > ahead else None)
        derived = derive_all(read, self.transforms, self.epoch, self.max_records)
        sources = frozenset(item.collection for item in latest)
        return Prepared(
            batch, derived.desired, letters(derived.failed), sources, ahead, max(shown, BEGINNING)
        )

    def again(self, batch: Batch, ahead: Timestamp) -> Prepared:
        """Derive a batch once more, every document from the newest state."""
        return self.prepare(batch, max(ahead, batch.position.time))

    def of_snapshot(
        self, collection: str, snapshot: Snapshot, names: Sequence[str], keys: Iterable[Any] = ()
    ) -> Derived:
        """Derive documents that were read for a job; those of `keys` that are missing are gone."""
        found = [_latest(collection, each["_id"], snapshot.time, each) for each in snapshot.documents]
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

    def _read(self, latest: list[Latest], at: Timestamp | None) -> tuple[list[Latest], Timestamp]:
        unread: dict[str, list[Latest]] = defaultdict(list)
        for item in latest:
            if item.unread and is_storable(item.key):
                unread[item.collection].append(item)
        read = [item for item in latest if not item.unread or not is_storable(item.key)]
        shown = BEGINNING
        for collection, items in unread.items():
            snapshot = self.documents.fetch(collection, [item.key for item in items], at)
            read += self._filled(collection, items, snapshot)
            shown = max(shown, snapshot.time)
        return read, shown

    def _filled(self, collection: str, items: list[Latest], snapshot: Snapshot) -> Iterator[Latest]:
        """Give the items with their documents; of a collection that was dropped they are left as they are."""
        found = {identity(each["_id"]): each for each in snapshot.documents}
        if len(found) < len(items) and not self.documents.exists(collection):
            return
        for item in items:
            document = found.get(item.identity)
            yield item._replace(document=document, gone=document is None, time=snapshot.time)


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
