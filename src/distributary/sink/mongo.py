"""Writing plans to MongoDB: one transaction per batch, learning what is stored only where it can matter."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

from bson import MaxKey, MinKey
from pymongo import IndexModel
from pymongo.client_session import ClientSession
from pymongo.database import Database

from distributary.change import Version
from distributary.derive.plan import UNKNOWN_VERSION, Desired, Plan, Write, reconcile
from distributary.derive.shadows import shadowed, written
from distributary.derive.touched import Changed, Touched
from distributary.parts import parts_of
from distributary.ports.records import Behind, Shown
from distributary.ports.rollups import Drained, Group, Marked, RollupRefused
from distributary.ports.sink import Finish, FinishCopy, FinishMarking, FinishShowing, ManyRefused, Outcome
from distributary.sink.attempt import Attempt, Damaged, Refused, Taken, judged
from distributary.sink.databases import AS_NEW, AS_REPLACED, Databases, Form, by_bytes
from distributary.sink.learning import Learning
from distributary.sink.rollups import Rollups
from distributary.sink.shadows import Shadows
from distributary.sink.shared import SharedRecords
from distributary.sink.showing import Showing
from distributary.sink.stored import (
    OWNER_INDEX,
    Document,
    is_foreign,
    read_record,
    within_bounds,
)
from distributary.sink.transaction import transact

#: Documents that are taken out of one transaction one by one; with more it is better halved.
REFUSALS = 4


class MongoSink:
    """Writes derived collections of one database, in one session, as the holder of the lease.

    `first` is entered for what keeps the server waiting, without reading from it. `rollups` are kept along. Of changes
    in `published` collections the outcome tells what is stored then.
    """

    def __init__(
        self,
        derived: Database[Any],
        state: Database[Any],
        session: ClientSession,
        first: AbstractContextManager[None] | None = None,
        rollups: Rollups | None = None,
        published: Collection[str] = (),
    ) -> None:
        self._session = session
        self._databases = Databases(derived, state, session)
        self._shared = SharedRecords(self._databases)
        self._shadows = Shadows(self._databases, self._shared)
        self._showing = Showing(self._databases)
        self._first = first or nullcontext()
        self._learning = Learning(self._databases, self._first)
        self._rollups = rollups
        self._published = frozenset(published)

    def share(self, collections: Iterable[str]) -> None:
        """Make ready for the parts of these collections' shared records; what is there stays."""
        for name in collections:
            index = IndexModel(OWNER_INDEX, name="distributary_owner")
            self._databases[parts_of(name)].create_indexes([index])

    def suspend(self, rollups: Collection[str]) -> None:
        """Leave these rollups alone, and no other ones, until a job builds them from all records."""
        if self._rollups is not None:
            self._rollups.suspend(rollups)

    def write(
        self,
        desired: Sequence[Desired],
        collections: Mapping[str, Collection[str]],
        finish: Finish,
        foreign: Sequence[tuple[str, Any]] = (),
        unplugged: Collection[str] = (),
        shadows: Mapping[str, str] = MappingProxyType({}),
        *,
        alone: bool = False,
        defer: bool = False,
        states: bool = False,
    ) -> Outcome:
        """Make what is stored for these owners equal to what they yield; durable on return.

        The same is done in the shadows of collections, or there alone; each side is planned for itself.

        A document whose records MongoDB refuses (too large, a unique index of the user's, a validator) is
        taken out and the batch repeated, until those documents stand alone in the outcome.
        `foreign` are records that nobody may have written, or only in a future that is none; those that
        still are such are removed first. Groups of rollups that are touched become pending with `defer`, and where they
        are too much for a transaction. With `states`, the outcome tells of published records that did not change, too.
        Raises `TooMuch` when what is stored for several documents is more than may be held, and `ManyRefused`.
        """
        attempt = Attempt(list(desired), foreign, unplugged, shadows, alone, states)
        if defer and self._rollups is not None:
            attempt.deferred.update(self._rollups.names)
        while True:
            try:
                return transact(self._session, lambda: self._transact(attempt, collections, finish))
            except Taken:
                attempt.look()
            except Damaged as damaged:
                attempt.heal(damaged)
            except RollupRefused as refusal:
                assert self._rollups is not None
                attempt.without(refusal.rollup, self._rollups.culprits(refusal.rollup, attempt.desired))
            except Refused as refusal:
                attempt.after(refusal)
                if len(attempt.refused) >= REFUSALS and len(attempt.desired) > REFUSALS:
                    raise ManyRefused from refusal

    def swept(self, collection: str, transform: str, after: tuple[Any, ...], limit: int) -> list[Any]:
        """Give source keys of a transform's records in key order, none at the end.

        `min` and `max` bound the index whatever the type of the keys.
        """
        low: list[Any] = [("_src.by", transform), ("_src.key", after[0] if after else MinKey())]
        high: list[Any] = [("_src.by", transform), ("_src.key", MaxKey())]
        query = {"_src.key": {"$ne": after[0]}} if after else {}
        found = self._databases[collection].find(query, {"_src.key": 1, "_id": 0}, limit=limit)
        return [each["_src"]["key"] for each in found.hint(OWNER_INDEX).min(low).max(high)]

    def carry(
        self,
        transform: str,
        keys: Callable[[ClientSession], Sequence[Any]],
        shadows: Mapping[str, str],
        finish: Finish,
        *,
        missing: bool = False,
    ) -> None:
        """Let documents have in the shadows what they have in the collections that are shadowed, in one transaction.

        What another document has under a key stays. With `missing`, only those that have nothing in the shadows.
        Raises `TooMuch` when the records of several documents are more than may be held.
        """

        def work() -> None:
            self._shadows.carry(transform, keys(self._session), shadows, missing=missing)
            finish(self._session, Outcome())

        transact(self._session, work)

    def copy(
        self,
        name: str,
        onto: str,
        after: Behind,
        limit: int,
        finish: FinishCopy,
        shared: str | None = None,
    ) -> Behind:
        """Copy the next records in key order into another collection, in one transaction with `finish`.

        What lies under their keys already stays. Fewer than `limit` are copied where they are large. Of parts that are
        copied, the records in `shared` are put together anew.
        """

        def work() -> Behind:
            behind = self._shadows.copy(name, onto, after, limit, shared)
            finish(self._session, behind)
            return behind

        return transact(self._session, work)

    def assemble(self, collection: str, after: Behind, limit: int, finish: Finish) -> Behind:
        """Put the next shared records in key order together anew from their parts, in one transaction with `finish`.

        The groups of rollups that they were or are in become pending.
        """

        def work() -> Behind:
            keys = self._shared.next(collection, after, limit)
            touched = self._rollups.touched() if self._rollups else None
            changed = Changed(self._published)
            self._shared.assemble(collection, keys, touched, changed)
            if self._rollups is not None and touched is not None:
                self._rollups.write(touched, UNKNOWN_VERSION, self._rollups.names)
            finish(self._session, Outcome(states=self._showing.changed(changed)))
            return (keys[-1],) if len(keys) == limit else ()

        return transact(self._session, work)

    def show(
        self,
        collection: str,
        after: Behind,
        limit: int,
        finish: FinishShowing,
        keys: Sequence[Any] = (),
    ) -> Shown:
        """Tell of the next records in key order, in one transaction with `finish`; or of the first of `keys`.

        A key that no record has is told of, too: its record is gone.
        """

        def work() -> Shown:
            showing = self._showing
            shown = showing.some(collection, keys, limit) if keys else showing.next(collection, after, limit)
            finish(self._session, shown)
            return shown

        return transact(self._session, work)

    def settle(self, drained: Sequence[Drained], version: Version, finish: Finish) -> Outcome:
        """Store pending groups that were computed, in one transaction; see `Sink.settle`."""

        def work() -> Outcome:
            outcome = Outcome()
            if self._rollups is not None:
                outcome.rollups = self._rollups.settle(drained, version)
            finish(self._session, outcome)
            return outcome

        return transact(self._session, work)

    def mark(self, groups: Sequence[Group], finish: Finish) -> None:
        """Let groups be pending, in one transaction."""

        def work() -> None:
            marked = self._rollups.mark(groups) if self._rollups else 0
            finish(self._session, Outcome(pending=marked))

        transact(self._session, work)

    def mark_next(
        self, rollup: str, after: Behind, limit: int, finish: FinishMarking, *, stored: bool
    ) -> Marked:
        """Let groups be pending of the next records that a rollup is over, or of those that it has stored."""

        def work() -> Marked:
            marked = Marked(0, ())
            if self._rollups is not None:
                marked = self._rollups.mark_next(rollup, after, limit, stored=stored)
            finish(self._session, marked)
            return marked

        return transact(self._session, work)

    # --- one attempt, inside the transaction ----------------------------------------------------------------

    def _transact(
        self, attempt: Attempt, collections: Mapping[str, Collection[str]], finish: Finish
    ) -> Outcome:
        touched = self._rollups.touched() if self._rollups else None
        changed = Changed(self._published)
        removed = self._remove_foreign(attempt, collections, touched, changed)
        live = Plan()
        if not attempt.alone:
            live = self._planned(attempt, attempt.desired, collections, touched=touched)
            changed.note_plan(live)
        if attempt.states:
            changed.note_desired(attempt.desired)
        outcome = _outcome(live, removed, attempt.refused)
        if attempt.shadows:
            contested = {each.desired.owner for each in live.contests}
            free = [item for item in attempt.desired if item.owner not in contested]
            places = written(collections, attempt.shadows)
            plan = self._planned(attempt, shadowed(free, attempt.shadows), places, attempt.shadows)
            outcome += _shadow_outcome(plan, attempt.shadows)
        if self._rollups is not None and touched is not None:
            outcome.rollups, outcome.pending = self._rollups.write(touched, attempt.version, attempt.deferred)
        outcome.states = self._showing.changed(changed, len(attempt.desired))
        finish(self._session, outcome)
        return outcome

    def _planned(
        self,
        attempt: Attempt,
        desired: Sequence[Desired],
        collections: Mapping[str, Collection[str]],
        shadows: Mapping[str, str] = MappingProxyType({}),
        touched: Touched | None = None,
    ) -> Plan:
        """Plan what makes some collections equal to what documents yield, and write it."""
        known = within_bounds(self._learning.owned(desired, collections), len(desired))
        if attempt.by_key:
            known += within_bounds(self._learning.under_keys(desired), len(desired))
        with self._first:
            plan = reconcile(desired, known, attempt.unplugged)
            if touched is not None:
                touched.note_plan(plan, known)
        self._remove(plan)
        self._shared.follow(plan, shadows, touched)
        self._apply(plan, apart=attempt.apart, by_key=attempt.by_key)
        return plan

    def _remove(self, plan: Plan) -> None:
        """Send the deletes; they come first, so that a key or a unique value that moves is free."""
        for collection, keys in plan.deletes.items():
            self._databases.delete(collection, keys)

    def _apply(self, plan: Plan, *, apart: bool, by_key: bool) -> None:
        """Send the other writes."""
        if apart:
            for collection, writes in plan.replaces.items():
                self._databases.delete(collection, [record.key for record, _ in writes])
        for collection, writes in plan.replaces.items():
            self._send(collection, AS_NEW if apart else AS_REPLACED, writes, by_key=by_key)
        for collection, writes in plan.inserts.items():
            self._send(collection, AS_NEW, writes, by_key=by_key)

    def _remove_foreign(
        self,
        attempt: Attempt,
        collections: Mapping[str, Collection[str]],
        touched: Touched | None,
        changed: Changed,
    ) -> list[tuple[str, Any]]:
        """Remove those of the foreign records that still are foreign or frozen, before anything is learned.

        Frozen is a record with a version that is newer than what its owner yields in this very batch: a hand
        set it, and the engine would leave it alone for ever. Shared records are put together anew instead.
        """
        places = {name for some in collections.values() for name in some}
        removed: list[tuple[str, Any]] = []
        for collection, keys in _grouped(attempt.foreign):
            if parts_of(collection) in places:
                self._shared.assemble(collection, keys, touched, changed)
                continue
            for key, document in self._foreign(attempt, collection, keys, collections):
                removed.append((collection, key))
                changed.note(collection, key)
                if touched is not None:
                    touched.note(collection, document)
        for collection, keys in _grouped(removed):
            self._databases.delete(collection, keys)
        return removed

    def _foreign(
        self,
        attempt: Attempt,
        collection: str,
        keys: Sequence[Any],
        collections: Mapping[str, Collection[str]],
    ) -> Iterator[tuple[Any, Document]]:
        versions = {item.owner: item.version for item in attempt.desired}
        for document in self._databases[collection].find({"_id": {"$in": keys}}, session=self._session):
            record = read_record(collection, document)
            newest = versions.get(record.owner) if record.owner else None
            frozen = newest is not None and record.version > newest
            if frozen or is_foreign(collection, document, collections):
                yield record.key, document

    def _send(self, collection: str, form: Form, writes: Sequence[Write], *, by_key: bool) -> None:
        for some in by_bytes(writes, _size):
            if error := self._databases.send(collection, form, [record for record, _ in some]):
                raise judged(error, some, by_key=by_key)


def _size(write: Write) -> int:
    return len(write[0].document)


def _outcome(plan: Plan, foreign: list[tuple[str, Any]], refused: list[tuple[Desired, str]]) -> Outcome:
    deleted = [(collection, key) for collection, keys in plan.deletes.items() for key in keys]
    return Outcome(
        inserted=Counter({collection: len(writes) for collection, writes in plan.inserts.items()}),
        replaced=Counter({collection: len(writes) for collection, writes in plan.replaces.items()}),
        removed=Counter(collection for collection, _ in deleted + foreign),
        unchanged=plan.unchanged,
        overtaken=plan.overtaken,
        contests=plan.contests,
        refused=list(refused),
        released=deleted + foreign,
    )


def _shadow_outcome(plan: Plan, shadows: Mapping[str, str]) -> Outcome:
    """Give what was done in shadows, whose contests are told of the collections that they belong to."""
    outcome = _outcome(plan, [], [])
    lives = {shadow: name for name, shadow in shadows.items()}
    contests = [each._replace(place=(lives[each.place[0]], each.place[1])) for each in outcome.contests]
    released = [(lives[shadow], key) for shadow, key in outcome.released]
    return Outcome(outcome.inserted, outcome.replaced, outcome.removed, contests=contests, released=released)


def _grouped(places: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, list[Any]]]:
    grouped: dict[str, list[Any]] = defaultdict(list)
    for collection, key in places:
        grouped[collection].append(key)
    return grouped.items()
