"""Committing what triggers yield: records, events and dead letters with the position of their stream."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pymongo.client_session import ClientSession
from pymongo.errors import OperationFailure

from distributary.change import Identity, Position
from distributary.derive.plan import Owner
from distributary.derive.records import RawDocument
from distributary.derive.transform import Failure
from distributary.derive.trigger import Effects, Event, Reacted, Seen, Trigger
from distributary.engine.commit import TOO_LARGE, Committer
from distributary.engine.work import Finished
from distributary.ports.events import Put
from distributary.ports.records import TooMuch
from distributary.ports.sink import ManyRefused, Outcome
from distributary.quoting import Quoting, of_error, together
from distributary.state import Checkpoint, Letter, LetterKey, LetterKind

#: The trigger and the document of a change: what is done for both is done in order.
Queue = tuple[str, Identity]


@dataclass(slots=True)
class _Sorted:
    """What is committed together: effects, and letters of the changes that have none."""

    effects: list[Effects] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    parked: list[tuple[Queue, str]] = field(default_factory=list)

    @property
    def events(self) -> list[Event]:
        """All events, in order."""
        return [event for each in self.effects for event in each.events]

    def owners(self, refused: Iterable[tuple[Event, str]]) -> dict[Owner, str]:
        """Give whose events these are, with the reasons."""
        reasons = {(event.trigger, event.position): reason for event, reason in refused}
        owners = {
            (event.trigger, event.position): each.desired.owner
            for each in self.effects
            for event in each.events
        }
        return {owners[place]: reason for place, reason in reasons.items()}


class _Spoiled(Exception):
    """What some changes yield cannot be stored: nothing was committed, and it goes on without them."""

    def __init__(self, reasons: Mapping[Owner, str]) -> None:
        super().__init__(reasons)
        self.reasons = reasons


class Reactions:
    """The one writer of what triggers yield, under the committer's fence.

    What one trigger yields for one document is committed in the order of the changes: behind a change that is parked,
    the later ones are parked as well.
    """

    def __init__(self, committer: Committer, triggers: Mapping[str, Trigger]) -> None:
        self._committer = committer
        self._triggers = triggers
        self._collections = {name: each.collections for name, each in triggers.items()}
        self._queues: dict[Queue, set[str]] = defaultdict(set)
        for name in triggers:
            for document, tokens in committer.stores.letters.tokens(name).items():
                self._queues[name, document] = tokens

    @property
    def parked(self) -> bool:
        """Whether some change may be parked."""
        return any(self._queues.values())

    def commit(self, reacted: Sequence[Reacted], changes: int, position: Position) -> None:
        """Commit what came of so many changes of the stream, and move its position behind them."""
        self._look_again(reacted)
        failed = [
            self._failed(each.seen, each.result) for each in reacted if isinstance(each.result, Failure)
        ]
        self._committer.check(changes, failed)
        self._divided(reacted, position, ())

    def again(self, reacted: Reacted) -> bool:
        """Commit what came of a parked change at the head of its queue; False when it stays parked."""
        key = LetterKey(reacted.seen.trigger, reacted.seen.of)
        if isinstance(reacted.result, Failure):
            self._divided([reacted], None, ())
            return False
        self._queues[reacted.seen.queue].discard(reacted.seen.token)
        self._divided([reacted], None, [key])
        return reacted.seen.token not in self._queues[reacted.seen.queue]

    def forget(self, seen: Seen) -> None:
        """Forget a change whose letter an operator discarded."""
        self._queues[seen.queue].discard(seen.token)

    def _look_again(self, reacted: Sequence[Reacted]) -> None:
        """Forget changes whose letters an operator discarded, of the documents that these changes are of."""
        touched: dict[str, dict[Identity, Any]] = defaultdict(dict)
        for seen, _ in reacted:
            if self._queues.get(seen.queue):
                trigger, document = seen.queue
                touched[trigger][document] = seen.key
        for trigger, keys in touched.items():
            left = self._committer.stores.letters.tokens(trigger, list(keys.values()))
            for document in keys:
                self._queues[trigger, document] = left.get(document, set())

    # --- the transaction ------------------------------------------------------------------------------------

    def _divided(
        self, reacted: Sequence[Reacted], position: Position | None, resolved: Sequence[LetterKey]
    ) -> None:
        """Commit in one transaction, or in several where that is too large."""
        spoiled: dict[Owner, str] = {}
        while True:
            try:
                self._transact(self._sorted(reacted, spoiled), position, resolved)
            except _Spoiled as error:
                spoiled |= error.reasons
            except (ManyRefused, TooMuch, OperationFailure) as error:
                if isinstance(error, OperationFailure) and error.code not in TOO_LARGE:
                    raise
                if len(reacted) == 1:
                    spoiled[reacted[0].seen.owner] = _refused(error)
                    continue
                self._halved(reacted, position, resolved)
                return
            else:
                return

    def _halved(
        self, reacted: Sequence[Reacted], position: Position | None, resolved: Sequence[LetterKey]
    ) -> None:
        half = len(reacted) // 2
        last, following = reacted[half - 1].seen, reacted[half].seen
        between = None if last.token == following.token else Position(last.token, last.time)
        self._divided(reacted[:half], position and between, resolved)
        self._divided(reacted[half:], position, ())

    def _sorted(self, reacted: Iterable[Reacted], spoiled: Mapping[Owner, str]) -> _Sorted:
        """Tell what is committed from what is parked: what fails, and what is behind something parked."""
        result = _Sorted()
        queues = {queue: min(tokens) for queue, tokens in self._queues.items() if tokens}
        for seen, outcome in reacted:
            first = queues.get(seen.queue, seen.token)
            if first < seen.token:
                result.letters.append(self._waiting(seen, first))
            elif isinstance(outcome, Failure):
                result.letters.append(self._failed(seen, outcome))
            elif seen.owner in spoiled:
                result.letters.append(self._refused(seen, spoiled[seen.owner]))
            else:
                result.effects.append(outcome)
                continue
            queues.setdefault(seen.queue, seen.token)
            result.parked.append((seen.queue, seen.token))
        return result

    def _transact(self, work: _Sorted, position: Position | None, resolved: Sequence[LetterKey]) -> None:
        checkpoint = self._moved(position)
        saved, put = checkpoint, Put()
        stores = self._committer.stores

        def finish(session: ClientSession, outcome: Outcome) -> None:
            nonlocal saved, put
            if reasons := _reasons(outcome):
                raise _Spoiled(reasons)
            stores.letters.resolve(resolved, session)
            stores.letters.put(work.letters, session)
            put = self._committer.put(work.events, outcome.states, checkpoint, session)
            if put.refused:
                raise _Spoiled(work.owners(put.refused))
            saved = stores.checkpoints.save(checkpoint, self._committer.fence, session)

        spans = self._committer.observer.spans
        with spans.transaction():
            outcome = stores.sink.write([each.desired for each in work.effects], self._collections, finish)
            spans.wrote(outcome)
        self._committer.marks += outcome.pending
        self._committer.committed(Finished([], [], saved, put))
        self._committer.observer.wrote(outcome, work.letters)
        for queue, token in work.parked:
            self._queues[queue].add(token)

    def _moved(self, position: Position | None) -> Checkpoint:
        """Give the checkpoint with the stream's position."""
        checkpoint = self._committer.checkpoint
        assert checkpoint.triggers is not None
        if position is None:
            return checkpoint
        return replace(checkpoint, triggers=replace(checkpoint.triggers, position=position))

    def save(self, position: Position) -> None:
        """Save a position behind which no trigger was called."""
        self._committer.save(self._moved(position))

    # --- letters --------------------------------------------------------------------------------------------

    def _waiting(self, seen: Seen, first: str) -> Letter:
        return self._letter(
            seen, LetterKind.WAITING, f"waits for an earlier change of the document, at position {first}"
        )

    def _refused(self, seen: Seen, reason: str) -> Letter:
        return self._letter(seen, LetterKind.REFUSED, reason)

    def _failed(self, seen: Seen, failure: Failure) -> Letter:
        return self._letter(seen, LetterKind.FAILED, failure.reason, failure.traceback)

    def _letter(self, seen: Seen, kind: LetterKind, reason: str, traceback: str = "") -> Letter:
        return Letter(
            seen.trigger,
            seen.of,
            seen.source,
            kind,
            reason,
            traceback,
            Position(seen.token, seen.time),
            self._triggers[seen.trigger].fingerprint,
            change=RawDocument(seen.content),
        )


def _refused(error: ManyRefused | TooMuch | OperationFailure) -> Quoting:
    return together("MongoDB refuses what the change yields: ", of_error(error, None)[0])


def _reasons(outcome: Outcome) -> dict[Owner, str]:
    """Say of whom something cannot be stored, and why."""
    reasons = {desired.owner: reason for desired, reason in outcome.refused}
    for contest in outcome.contests:
        holder = f"{contest.holder.transform!r} for another change"
        reasons[contest.desired.owner] = (
            f"yields {contest.place[0]}[{contest.key!r:.80}], which {holder} has written: "
            "key records by the change, as by change.position"
        )
    return reasons
