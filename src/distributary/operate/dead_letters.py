"""Dead letters: what is parked or cannot be published, why, what to do about each, and forgetting them."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pymongo.database import Database

from distributary.chunks import chunks
from distributary.errors import Failed
from distributary.operate.repair import JOB_KEYS
from distributary.operate.status import iso
from distributary.operate.watch import LOOK_SECONDS
from distributary.parts import told
from distributary.state import EVENTS, Job, JobKind, LetterKind
from distributary.store.letters import (
    StoredLetter,
    count_letters,
    discard_letters,
    is_legible,
    stored_letters,
)
from distributary.store.refusals import order
from distributary.store.unpublished import (
    count_unpublished,
    discard_unpublished,
    newest_waiting,
    oldest_waiting,
    unpublished_letters,
)

#: How long a retry waits at most for what it lets be published, in seconds.
SENDING_SECONDS = 15.0

_NEXT = {
    LetterKind.FAILED: "Correct the document, or the transform and restart the worker."
    " Then run `distributary dead-letters retry`; a change of the document does it, too.",
    LetterKind.CONTESTED: "Let one document yield the record: change a key in the transform, or correct the"
    " document. It is derived again by itself as soon as the owner yields the record no longer.",
    LetterKind.REFUSED: "Make the record acceptable: correct the document or the transform, or remove the"
    " index or the validator that is in the way. Then run `distributary dead-letters retry`; a change of the"
    " document does it, too.",
    LetterKind.WAITING: "",
    LetterKind.UNPUBLISHED: "Make the record acceptable: correct the document or the transform, or what the topic"
    ' takes; of one that is too large, pubsub.too_large = "reference" tells where it is. Then run `distributary'
    " dead-letters retry`, which publishes the record as it is then; a change of the record does it, too.",
}

_AFTER = {
    LetterKind.FAILED: "left underived until the document changes or a backfill comes to it; `verify` counts it as"
    " failing from now on, as long as it cannot be derived.",
    LetterKind.CONTESTED: "no longer derived by itself when the key is free, only when the document changes or a"
    " backfill comes to it; `verify` counts its records as missing or stale from now on.",
    LetterKind.REFUSED: "left as it is stored until the document changes or a backfill comes to it; `verify` counts"
    " its records as missing or stale from now on.",
    LetterKind.WAITING: "",
    LetterKind.UNPUBLISHED: "not published until the record changes, or all are published by `backfill --publish`.",
}

_OF_CHANGE = {
    LetterKind.FAILED: "Correct the trigger and restart the worker. Then run `distributary dead-letters retry`.",
    LetterKind.CONTESTED: "",
    LetterKind.REFUSED: "Let the trigger yield what can be stored, and restart the worker; or remove the index or the"
    " validator that is in the way. Then run `distributary dead-letters retry`.",
    LetterKind.WAITING: "Nothing is wrong with this change: it is tried by itself when the one that it waits for is"
    " done or discarded.",
    LetterKind.UNPUBLISHED: "Let the topic take it. Then run `distributary dead-letters retry`, which sends it again as"
    " it was yielded, behind later ones of its ordering key that were published meanwhile.",
}

_CHANGE_KEPT = (
    "The change is kept here, since it cannot be read again; later ones of the document wait behind it."
)

_AFTER_CHANGE = {
    LetterKind.WAITING: "never seen by their trigger; no effect of these changes is ever committed.",
    LetterKind.UNPUBLISHED: "gone for good: the changes that they tell of cannot be read again.",
}

_NEVER_SEEN = (
    "gone for good: a change cannot be read again. Later changes of the same documents are tried then."
)

_KEPT = "The records that the document had before stay as they were until then."

_STORED = "The record itself is stored as it should be; those who subscribe have it as it was before, or not at all."

_YIELDED = "What the trigger yielded is kept here, since the change cannot be read again."


class Listing(NamedTuple):
    """Some letters, and how many there are."""

    letters: list[StoredLetter]
    total: int


def listing(state: Database[Any], transform: str | None, kind: LetterKind | None, limit: int) -> Listing:
    """Give at most `limit` letters of all workers, those that failed last first."""
    asked = {"transform": transform, "kind": kind.value if kind else None}
    where = {name: value for name, value in asked.items() if value is not None}
    if kind is not None and kind is not LetterKind.UNPUBLISHED:
        return Listing(stored_letters(state, where, limit), count_letters(state, where))
    where.pop("kind", None)
    found, total = unpublished_letters(state, where, limit), count_unpublished(state, where)
    if kind is None:
        found = sorted([*stored_letters(state, where, limit), *found], key=_last, reverse=True)
        total += count_letters(state, where)
    return Listing(found[:limit] if limit else found, total)


def _last(stored: StoredLetter) -> Any:
    return stored.last_at


def one(state: Database[Any], short_id: str) -> StoredLetter:
    """Give the letter of this id; raises `Failed` when there is none, as when it was resolved meanwhile."""
    found = _of_id(state, short_id, whole=True)
    if not found:
        raise Failed(
            f"There is no dead letter {short_id!r}: it was resolved meanwhile, or never was.",
            "`distributary dead-letters list` shows the ids.",
        )
    return found[0]


def _of_id(state: Database[Any], short_id: str, *, whole: bool = False) -> list[StoredLetter]:
    where = {"id": short_id}
    return stored_letters(state, where, 1, whole=whole) or unpublished_letters(state, where, 1, whole=whole)


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


def retries(
    letters: Sequence[StoredLetter], triggers: Collection[str] = (), published: Collection[str] | None = None
) -> list[Job]:
    """Give the jobs that try again what is parked: documents from their current state, changes as they were kept.

    Changes wait for their trigger where it is not among the `triggers` that are plugged in, records for a topic where
    their collection is not among the `published` ones, and events too where nothing is published at all: None.
    """
    keys: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for each in letters:
        if each.message is not None:
            continue
        possible = each.letter.change is None or each.letter.transform in triggers
        if possible and is_legible(each.letter.key):
            keys[each.letter.source, each.letter.transform].append(each.letter.key)
    return [
        Job(None, JobKind.DERIVE, source, (transform,), "dead letters retried", keys=some, total=len(some))
        for (source, transform), all_keys in sorted(keys.items())
        for some in chunks(all_keys, JOB_KEYS)
    ] + list(_sending(letters, published) if published is not None else ())


def _sending(letters: Sequence[StoredLetter], published: Collection[str]) -> Iterator[Job]:
    """Give the jobs that publish records as they are now, and that send events of triggers again."""
    records: dict[str, list[Any]] = defaultdict(list)
    events: dict[str, list[Any]] = defaultdict(list)
    for each in letters:
        if each.message is not None and each.message.is_event:
            events[each.letter.transform].append(each.id)
        elif each.message is not None and each.letter.transform in published:
            records[each.letter.transform].append(each.letter.key)
    for stage, by_teller in (("", records), (EVENTS, events)):
        for teller, keys in sorted(by_teller.items()):
            for some in chunks(keys, JOB_KEYS):
                reason = "dead letters retried"
                yield Job(None, JobKind.PUBLISH, teller, (), reason, keys=some, total=len(some), stage=stage)


def sent(
    state: Database[Any],
    worker: str,
    seconds: float = SENDING_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait until all that waits to be published now is published or refused; False when it takes too long."""
    last, end = newest_waiting(state, worker), time.monotonic() + seconds
    while last is not None and (first := oldest_waiting(state, worker)) is not None:
        if order(first) > order(last):
            break
        if time.monotonic() > end:
            return False
        sleep(LOOK_SECONDS)
    return True


def remaining(state: Database[Any], letters: Sequence[StoredLetter]) -> list[StoredLetter]:
    """Give those of these letters that are still there, as they are now."""
    found = (_of_id(state, each.id) for each in letters)
    return [letter for some in found for letter in some]


def cure(stored: StoredLetter) -> str:
    """Say what to do about a letter."""
    letter = stored.letter
    if stored.message is not None:
        is_event = stored.message.is_event
        return f"{_OF_CHANGE[letter.kind]} {_YIELDED}" if is_event else f"{_NEXT[letter.kind]} {_STORED}"
    if letter.change is not None:
        return f"{_OF_CHANGE[letter.kind]} {_CHANGE_KEPT}"
    return f"{_NEXT[letter.kind]} {_KEPT}"


def effects(letters: Iterable[StoredLetter]) -> list[str]:
    """Say what becomes of the documents and changes of these letters when they are discarded, a line for each kind."""
    counts = Counter((each.letter.kind, _is_of_change(each)) for each in letters)
    lines = [
        f"{counts[kind, False]:,} {kind.value}: {_AFTER[kind]}" for kind in LetterKind if counts[kind, False]
    ]
    changes = [(kind, counts[kind, True]) for kind in LetterKind if counts[kind, True]]
    return lines + [
        f"{count:,} {kind.value} {_noun(kind)}{'' if count == 1 else 's'}: {_AFTER_CHANGE.get(kind, _NEVER_SEEN)}"
        for kind, count in changes
    ]


def _is_of_change(stored: StoredLetter) -> bool:
    return stored.letter.change is not None or (stored.message is not None and stored.message.is_event)


def _noun(kind: LetterKind) -> str:
    return "event" if kind is LetterKind.UNPUBLISHED else "change"


def discard(state: Database[Any], worker: str, letters: Sequence[StoredLetter]) -> int:
    """Remove letters of a worker, running or not, and give how many of them were still there."""
    messages = [each.id for each in letters if each.message is not None]
    parked = [each.id for each in letters if each.message is None]
    return discard_letters(state, worker, parked) + discard_unpublished(state, worker, messages)


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
        "cure": cure(stored),
    } | _answer_of_message(stored)


def _answer_of_message(stored: StoredLetter) -> dict[str, Any]:
    """Give what the answer has besides, or instead, of a message that cannot be published."""
    message = stored.message
    if message is None:
        return {}
    teller = stored.letter.transform
    own = {"of": teller, "topic": message.topic, "ordering_key": message.ordering_key}
    if message.is_event:
        return own | {"source": None, "fingerprint": None} | ({"data": message.data} if message.data else {})
    return own | {"transform": None, "source": None, "fingerprint": None}
