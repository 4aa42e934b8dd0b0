"""Dead letters: which documents are parked, why, what to do about each, and forgetting them."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from pymongo.database import Database

from distributary.errors import Failed
from distributary.operate.repair import JOB_KEYS
from distributary.operate.sides import chunks
from distributary.operate.status import iso
from distributary.parts import told
from distributary.state import Job, JobKind, Letter, LetterKind
from distributary.store.letters import (
    StoredLetter,
    count_letters,
    discard_letters,
    is_legible,
    stored_letters,
)

_NEXT = {
    LetterKind.FAILED: "Correct the document, or the transform and restart the worker."
    " Then run `distributary dead-letters retry`; a change of the document does it, too.",
    LetterKind.CONTESTED: "Let one document yield the record: change a key in the transform, or correct the"
    " document. It is derived again by itself as soon as the owner yields the record no longer.",
    LetterKind.REFUSED: "Make the record acceptable: correct the document or the transform, or remove the"
    " index or the validator that is in the way. Then run `distributary dead-letters retry`; a change of the"
    " document does it, too.",
    LetterKind.WAITING: "",
}

_AFTER = {
    LetterKind.FAILED: "left underived until the document changes or a backfill comes to it; `verify` counts it as"
    " failing from now on, as long as it cannot be derived.",
    LetterKind.CONTESTED: "no longer derived by itself when the key is free, only when the document changes or a"
    " backfill comes to it; `verify` counts its records as missing or stale from now on.",
    LetterKind.REFUSED: "left as it is stored until the document changes or a backfill comes to it; `verify` counts"
    " its records as missing or stale from now on.",
    LetterKind.WAITING: "",
}

_OF_CHANGE = {
    LetterKind.FAILED: "Correct the trigger and restart the worker. Then run `distributary dead-letters retry`.",
    LetterKind.CONTESTED: "",
    LetterKind.REFUSED: "Let the trigger yield what can be stored, and restart the worker; or remove the index or the"
    " validator that is in the way. Then run `distributary dead-letters retry`.",
    LetterKind.WAITING: "Nothing is wrong with this change: it is tried by itself when the one that it waits for is"
    " done or discarded.",
}

_CHANGE_KEPT = (
    "The change is kept here, since it cannot be read again; later ones of the document wait behind it."
)

_AFTER_CHANGE = {
    LetterKind.WAITING: "never seen by their trigger; no effect of these changes is ever committed.",
}

_NEVER_SEEN = (
    "gone for good: a change cannot be read again. Later changes of the same documents are tried then."
)

_KEPT = "The records that the document had before stay as they were until then."


class Listing(NamedTuple):
    """Some letters, and how many there are."""

    letters: list[StoredLetter]
    total: int


def listing(state: Database[Any], transform: str | None, kind: LetterKind | None, limit: int) -> Listing:
    """Give at most `limit` letters of all workers, those that failed last first."""
    asked = {"transform": transform, "kind": kind.value if kind else None}
    where = {name: value for name, value in asked.items() if value is not None}
    return Listing(stored_letters(state, where, limit), count_letters(state, where))


def one(state: Database[Any], short_id: str) -> StoredLetter:
    """Give the letter of this id; raises `Failed` when there is none, as when it was resolved meanwhile."""
    found = stored_letters(state, {"id": short_id}, 1, whole=True)
    if not found:
        raise Failed(
            f"There is no dead letter {short_id!r}: the document was derived meanwhile, or never parked.",
            "`distributary dead-letters list` shows the ids.",
        )
    return found[0]


def chosen(
    state: Database[Any], worker: str, ids: Sequence[str], transform: str | None, kind: LetterKind | None
) -> list[StoredLetter]:
    """Give the letters of these ids, or all that match; raises `Failed` for an id that is not one of the worker's."""
    found = [one(state, each) for each in ids]
    for each in found:
        if each.worker != worker:
            raise Failed(
                f"The dead letter {each.id} belongs to worker {each.worker!r}.",
                "Use the configuration of that worker, or set worker.name.",
            )
    return found or [each for each in listing(state, transform, kind, 0).letters if each.worker == worker]


def retries(letters: Sequence[StoredLetter], triggers: Collection[str] = ()) -> list[Job]:
    """Give the jobs that try again what is parked: documents from their current state, changes as they were kept.

    Changes wait for their trigger where it is not among the `triggers` that are plugged in.
    """
    keys: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for each in letters:
        possible = each.letter.change is None or each.letter.transform in triggers
        if possible and is_legible(each.letter.key):
            keys[each.letter.source, each.letter.transform].append(each.letter.key)
    return [
        Job(None, JobKind.DERIVE, source, (transform,), "dead letters retried", keys=some, total=len(some))
        for (source, transform), all_keys in sorted(keys.items())
        for some in chunks(all_keys, JOB_KEYS)
    ]


def remaining(state: Database[Any], letters: Sequence[StoredLetter]) -> list[StoredLetter]:
    """Give those of these letters that are still there, as they are now."""
    found = (stored_letters(state, {"id": each.id}, 1) for each in letters)
    return [letter for some in found for letter in some]


def cure(letter: Letter) -> str:
    """Say what to do about a letter."""
    if letter.change is not None:
        return f"{_OF_CHANGE[letter.kind]} {_CHANGE_KEPT}"
    return f"{_NEXT[letter.kind]} {_KEPT}"


def effects(letters: Iterable[StoredLetter]) -> list[str]:
    """Say what becomes of the documents and changes of these letters when they are discarded, a line for each kind."""
    counts = Counter((each.letter.kind, each.letter.change is not None) for each in letters)
    lines = [
        f"{counts[kind, False]:,} {kind.value}: {_AFTER[kind]}" for kind in LetterKind if counts[kind, False]
    ]
    changes = [(kind, counts[kind, True]) for kind in LetterKind if counts[kind, True]]
    return lines + [
        f"{count:,} {kind.value} {'change' if count == 1 else 'changes'}: {_AFTER_CHANGE.get(kind, _NEVER_SEEN)}"
        for kind, count in changes
    ]


def discard(state: Database[Any], worker: str, letters: Sequence[StoredLetter]) -> int:
    """Remove letters of a worker, running or not, and give how many of them were still there."""
    return discard_letters(state, worker, [each.id for each in letters])


def answer(stored: StoredLetter) -> dict[str, Any]:
    """Give a letter as JSON has it, with everything that is known of it; times are ISO-8601."""
    letter = stored.letter
    waits = letter.waits_for and told(*letter.waits_for)
    return {
        "id": stored.id,
        "worker": stored.worker,
        "transform": letter.transform,
        "source": letter.source,
        "key": letter.key,
        "kind": letter.kind.value,
        "reason": letter.reason,
        "traceback": letter.traceback,
        "position": {"token": letter.position.token, "time": iso(letter.position.time)},
        "attempts": stored.attempts,
        "fingerprint": letter.fingerprint,
        "first_at": stored.first_at.isoformat(),
        "last_at": stored.last_at.isoformat(),
        "waits_for": waits,
        "due": letter.due,
        "change": letter.change,
        "cure": cure(letter),
    }
