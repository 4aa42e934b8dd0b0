"""Documents that are parked: which ones there are, and whose letters a transaction writes and resolves."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from pymongo.client_session import ClientSession

from distributary.change import Position, identity
from distributary.derive.plan import Desired, Owner
from distributary.derive.transform import Transform
from distributary.engine.work import Work
from distributary.parts import called
from distributary.ports.sink import Outcome
from distributary.ports.stores import LetterStore
from distributary.state import Letter, LetterKey, LetterKind, ParkedLetter


class Parked:
    """The documents that were parked when the last transaction was committed."""

    def __init__(self, letters: LetterStore, transforms: Mapping[str, Transform]) -> None:
        self._letters = letters
        self._transforms = transforms
        self._known = {owner_of(each.key): each for each in letters.parked()}

    def __len__(self) -> int:
        return len(self._known)

    def of(self, transform: str) -> list[ParkedLetter]:
        """Give those of a transform."""
        return [each for each in self._known.values() if each.key.transform == transform]

    @property
    def contested(self) -> list[LetterKey]:
        """The keys of those whose records another document holds."""
        return [each.key for each in self._known.values() if each.kind is LetterKind.CONTESTED]

    def is_contested(self, owner: Owner) -> bool:
        """Whether a document is parked because another one holds its records."""
        known = self._known.get(owner)
        return known is not None and known.kind is LetterKind.CONTESTED

    def note(self, letters: Iterable[Letter], resolved: Iterable[LetterKey]) -> None:
        """Note what a transaction parked and resolved, once it is committed."""
        for key in resolved:
            self._known.pop(owner_of(key), None)
        for letter in letters:
            key = LetterKey(letter.transform, letter.key)
            self._known[owner_of(key)] = ParkedLetter(key, letter.kind)

    # --- inside the transaction -----------------------------------------------------------------------------

    def write(
        self, work: Work, outcome: Outcome, at: Position, session: ClientSession
    ) -> tuple[list[Letter], list[LetterKey]]:
        """Write the letters that a transaction causes, and give them and the keys of those that it resolves.

        `at` is the position that the worker was at. Those that may succeed now are made due.
        """
        rivals = self._rivals(work, outcome, session)
        placed = (each if each.position.token else replace(each, position=at) for each in work.letters)
        letters = [*placed, *self._contested(work, outcome, rivals, at), *self._refused(outcome, at)]
        resolved = [] if work.alone else self._resolved(work.desired, letters)
        self._letters.resolve(resolved, session)
        self._letters.put(letters, session)
        rivalling = [self._known[each].key for each in set(rivals.values())]
        self._letters.make_due([*work.due, *rivalling], session)
        if outcome.released and self.contested:
            self._letters.release(outcome.released, session)
        return letters, resolved

    def _resolved(self, desired: Iterable[Desired], letters: Iterable[Letter]) -> list[LetterKey]:
        if not self._known:
            return []
        lost = {Owner(letter.transform, identity(letter.key)) for letter in letters}
        return [
            LetterKey(item.transform, item.key)
            for item in desired
            if item.owner in self._known and item.owner not in lost
        ]

    def _rivals(self, work: Work, outcome: Outcome, session: ClientSession) -> Mapping[Owner, Owner]:
        """Give the contested documents outside this work that hold what documents in it are contested for.

        Each with who is contested for its key, by itself or by way of others in this work: all of them together
        may only need to swap. One whose letter was discarded is not tried again, so that nobody may wait for it.
        """
        members = {item.owner for item in work.desired}
        holders = {each.desired.owner: each.holder for each in outcome.contests}
        ends = {owner: _end(owner, holders) for owner in holders}
        rivals = {owner: end for owner, end in ends.items() if end not in members and self.is_contested(end)}
        keys: Sequence[LetterKey] = [self._known[each].key for each in set(rivals.values())]
        still = {owner_of(key) for key in self._letters.still_parked(keys, session)} if keys else set()
        return {owner: end for owner, end in rivals.items() if end in still}

    def _contested(
        self, work: Work, outcome: Outcome, rivals: Mapping[Owner, Owner], at: Position
    ) -> Iterator[Letter]:
        """Give the letters of contested documents; a retry that finds a rival is done again with all and it."""
        for contest in outcome.contests:
            place = (contest.place[0], contest.key)
            reason = f"yields {called(*place)}, which source document {contest.holder.identity!r:.80} owns"
            reason += f" ({contest.holder.transform})"
            due = contest.free or contest.desired.owner in rivals or (work.retry and bool(rivals))
            letter = self._letter(contest.desired, LetterKind.CONTESTED, reason, at)
            yield replace(letter, waits_for=place, due=due)

    def _refused(self, outcome: Outcome, at: Position) -> Iterator[Letter]:
        for desired, reason in outcome.refused:
            yield self._letter(desired, LetterKind.REFUSED, reason, at)

    def _letter(self, desired: Desired, kind: LetterKind, reason: str, at: Position) -> Letter:
        transform = self._transforms[desired.transform]
        position = Position(at.token, desired.version.time)
        return Letter(
            transform.name, desired.key, transform.source, kind, reason, "", position, transform.fingerprint
        )


def owner_of(key: LetterKey) -> Owner:
    """Give the owner that a letter is about."""
    return Owner(key.transform, identity(key.key))


def _end(owner: Owner, holders: Mapping[Owner, Owner]) -> Owner:
    """Follow who holds what who is contested for, as far as it goes."""
    seen = set()
    while owner in holders and owner not in seen:
        seen.add(owner)
        owner = holders[owner]
    return owner
