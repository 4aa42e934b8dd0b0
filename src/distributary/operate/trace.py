"""Where a derived record comes from, and what a document became. Nothing is written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

from bson import decode
from pymongo.client_session import ClientSession

from distributary.change import CODEC, Position, Version, decoded, identity
from distributary.derive.plan import Stored
from distributary.derive.records import ENGINE_FIELD
from distributary.derive.rollup import Rollup
from distributary.derive.shared import is_shared, of_keys
from distributary.derive.transform import Transform
from distributary.derive.trigger import Trigger
from distributary.engine.retry import passes
from distributary.errors import ConfigurationError, Failed, Fault
from distributary.operate import dead_letters
from distributary.operate.comparison import Found
from distributary.operate.preview import DocumentDiff, Preview, RecordDiff, State, owned
from distributary.operate.rollups import differing
from distributary.operate.sides import Sides, Writers
from distributary.operate.status import TransformState, iso
from distributary.parts import is_parts, parts_of, told
from distributary.ports.rollups import Group
from distributary.sink.rollups import Server
from distributary.sink.stored import read_record, read_records
from distributary.source import deployment
from distributary.state import Built, Checkpoint
from distributary.store.checkpoints import Checkpoints
from distributary.store.letters import StoredLetter, stored_letter
from distributary.store.pending import Pending

#: Parts of one shared record that are traced; more have to be asked for by their documents.
PARTS = 100


class Role(StrEnum):
    """What a collection is to the worker."""

    DERIVED = "derived"
    SOURCE = "source"


class Agreement(StrEnum):
    """How a stored record stands to what its document yields through the code that is plugged in.

    `cannot be derived`: the code fails for the document, or the server for the group. `not known`: the code is not
    plugged in here. `an effect of a change`: a trigger wrote it, and nothing yields it again.
    """

    EQUAL = "equal"
    DIFFERS = "differs"
    NOT_YIELDED = "no longer yielded"
    FAILING = "cannot be derived"
    UNKNOWN = "not known"
    EFFECT = "an effect of a change"


_AGREEMENTS = {
    State.UNCHANGED: Agreement.EQUAL,
    State.CHANGED: Agreement.DIFFERS,
    State.REMOVED: Agreement.NOT_YIELDED,
    State.KEPT: Agreement.FAILING,
}


class Code(NamedTuple):
    """A transform as it is plugged in, with its place, and as the worker built its records; None: it is or has not.

    `position` is the worker's.
    """

    name: str
    source: str
    state: TransformState
    place: str | None
    plugged_in: str | None
    built: str | None
    worker: str | None
    position: Position | None

    def answer(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        position = self.position and {"token": self.position.token, "time": iso(self.position.time)}
        fingerprints = {"built": self.built, "plugged_in": self.plugged_in}
        place = {"source": self.source, "state": self.state.value, "place": self.place}
        return {
            "transform": self.name,
            **place,
            "fingerprints": fingerprints,
            "worker": self.worker,
            "position": position,
        }


class Held(NamedTuple):
    """A stored record; `fields` are the names of those in which it differs."""

    collection: str
    key: Any
    version: Version
    agreement: Agreement = Agreement.UNKNOWN
    fields: tuple[str, ...] = ()

    def answer(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        time = self.version.time
        return {
            **told(self.collection, self.key),
            "version": {"time": iso(time), "cluster_time": time, "epoch": self.version.epoch},
            "agreement": self.agreement.value,
            "fields": list(self.fields),
        }


@dataclass(frozen=True, slots=True)
class RecordTrace:
    """A derived record with its origin, or with why it is `nobodys`.

    `exists` says whether the document does; None where this configuration does not read its source.
    """

    held: Held
    nobodys: str = ""
    code: Code | None = None
    source_key: Any = None
    exists: bool | None = None
    failure: str = ""
    letter: StoredLetter | None = None

    def answer(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        code = self.code.answer() if self.code else {"transform": None}
        return {
            **self.held.answer(),
            "nobodys": self.nobodys or None,
            **code,
            "source_key": self.source_key,
            "document_exists": self.exists,
            "failure": self.failure or None,
            "dead_letter": self.letter and dead_letters.answer(self.letter),
        }


@dataclass(frozen=True, slots=True)
class SharedTrace:
    """A shared record with the first of its parts, each with its origin; `count` is the number of all."""

    held: Held
    count: int
    parts: tuple[RecordTrace, ...]

    def answer(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        held = self.held.answer()
        about = {name: held[name] for name in ("collection", "key", "version")}
        return {**about, "parts_count": self.count, "parts": [each.answer() for each in self.parts]}


@dataclass(frozen=True, slots=True)
class GroupTrace:
    """A group of a rollup with the number of records that it sums up; a `pending` one is still to be computed."""

    held: Held
    over: str
    by: tuple[str, ...]
    records: int
    pending: bool
    place: str

    def answer(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        about = {"over": self.over, "by": list(self.by), "records": self.records, "pending": self.pending}
        return {**self.held.answer(), **about, "place": self.place}


@dataclass(frozen=True, slots=True)
class Descent:
    """What one transform made of a document: what is stored, and what it yields that is not (`missing`).

    `nothing` says why nothing is stored; it is empty where something is.
    """

    code: Code
    records: tuple[Held, ...]
    missing: tuple[RecordDiff, ...]
    failure: str
    letter: StoredLetter | None
    nothing: str = ""

    def answer(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {
            **self.code.answer(),
            "records": [each.answer() for each in self.records],
            "missing": [told(each.collection, each.key) for each in self.missing],
            "failure": self.failure or None,
            "dead_letter": self.letter and dead_letters.answer(self.letter),
            "nothing": self.nothing or None,
        }


@dataclass(frozen=True, slots=True)
class DocumentTrace:
    """A document of the source with everything that is derived from it."""

    collection: str
    key: Any
    exists: bool
    descents: tuple[Descent, ...]

    def answer(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        place = {"collection": self.collection, "key": self.key, "exists": self.exists}
        return {**place, "transforms": [each.answer() for each in self.descents]}


class Tracer:
    """Traces through the databases of one configuration; of workers of other names it knows the checkpoints."""

    def __init__(self, sides: Sides) -> None:
        self._sides = sides
        self._checkpoints = {each.worker: each for each in Checkpoints(sides.state).all()}
        if sides.worker in self._checkpoints:
            sides.checked()

    @cached_property
    def _writers(self) -> Writers:
        return self._sides.writers()

    @cached_property
    def _here(self) -> Sequence[Checkpoint]:
        """The checkpoints of this source, the configured worker's first."""
        source = deployment.identify(self._sides.raw)
        here = [each for each in self._checkpoints.values() if not each.source.differs(source)]
        return sorted(here, key=lambda each: each.worker != self._sides.worker)

    def role(self, collection: str, wanted: Role | None) -> Role:
        """Tell what a collection is; raises `ConfigurationError` when it is nothing, or both without `wanted`."""
        derived = set(self._sides.registry.collections).union(*self._writers.values())
        derived = {name for name in derived if not is_parts(name)} | self._sides.registry.rollups.keys()
        sources = set(self._sides.registry.sources)
        sources |= {built.source for each in self._here for built in each.transforms.values()}
        known = {Role.DERIVED: derived, Role.SOURCE: sources}
        roles = [role for role, names in known.items() if collection in names and wanted in (None, role)]
        if len(roles) == 1:
            return roles[0]
        names = set[str]().union(*(some for role, some in known.items() if wanted in (None, role)))
        raise ConfigurationError([_both(collection) if roles else _unknown(collection, names, wanted)])

    # --- from a record to its document ------------------------------------------------------------------------

    def record(self, collection: str, candidates: Sequence[Any]) -> "RecordTrace | SharedTrace | GroupTrace":
        """Trace the record with one of these keys, the first that exists; raises `Failed` without any.

        Of a shared record, every part is traced, up to `PARTS`; of a group, what it is computed from.
        """
        if rollup := self._sides.registry.rollups.get(collection):
            with self._sides.derived.client.start_session(snapshot=True) as session:
                return self._group(rollup, self._stored(collection, candidates, session), session)
        stored = self._stored(collection, candidates)
        if is_shared(decoded(stored.raw)):
            return self._shared(collection, stored)
        return self._owned(stored, collection)

    def _group(self, rollup: Rollup, stored: Stored, session: ClientSession) -> GroupTrace:
        """Compute a group anew, and hold what is stored against it, both as of one moment."""
        group, server = identity(stored.key), Server(self._sides.holding(rollup.name), passes)
        computed = server.compute_apart(rollup, [stored.key], session)
        found = computed.groups.get(group)
        fields = differing(decoded(stored.raw), found.document if found else {})
        agreement = Agreement.DIFFERS if fields else Agreement.EQUAL
        held = Held(rollup.name, stored.key, stored.version, agreement, fields)
        if group in computed.errors:
            held = held._replace(agreement=Agreement.FAILING, fields=())
        pending = Pending(self._sides.state, self._sides.worker)
        is_pending = bool(pending.known([Group(rollup.name, stored.key)], session))
        place, records = self._sides.registry.places[rollup.name], found.records if found else 0
        return GroupTrace(held, rollup.over.name, rollup.paths, records, is_pending, place)

    def _shared(self, collection: str, stored: Stored) -> "SharedTrace":
        parts = parts_of(collection)
        found = self._sides.holding(parts)[parts].find(of_keys([stored.key])).sort("_id", 1)
        first = [read_record(parts, each) for each in found.limit(PARTS)]
        count = self._sides.holding(parts)[parts].count_documents(of_keys([stored.key]))
        held = Held(collection, stored.key, stored.version)
        return SharedTrace(held, count, tuple(self._owned(each, parts) for each in first))

    def _owned(self, stored: Stored, collection: str) -> RecordTrace:
        held = Held(collection, stored.key, stored.version)
        holder = Found.of(stored, self._writers).holder
        if holder is None:
            return RecordTrace(held, nobodys=_why_nobodys(stored))
        name, key = holder
        if name in self._sides.registry.triggers:
            return self._effect(held, self._sides.registry.triggers[name], key)
        code = self._code(name)
        letter = stored_letter(self._sides.state, code.worker or self._sides.worker, name, key)
        diff = self._diff(name, key)
        if diff is None:
            exists = self._exists(code, key)
            return RecordTrace(held, code=code, source_key=key, exists=exists, letter=letter)
        found = next((each for each in diff.records if each.place == stored.place), None)
        return RecordTrace(
            _held(found) if found else held,
            code=code,
            source_key=key,
            exists=diff.exists,
            failure=_failure(diff),
            letter=letter,
        )

    def _effect(self, held: Held, trigger: Trigger, change: Any) -> RecordTrace:
        """Trace a record that a trigger wrote for a change, to the document that changed."""
        checkpoint = self._checkpoints.get(self._sides.worker)
        stream = checkpoint.triggers if checkpoint else None
        code = Code(
            trigger.name,
            trigger.source,
            TransformState.BUILT,
            trigger.place,
            trigger.fingerprint,
            None,
            checkpoint.worker if checkpoint else None,
            stream.position if stream else None,
        )
        key = change["key"] if isinstance(change, dict) and "key" in change else change
        held = held._replace(agreement=Agreement.EFFECT)
        return RecordTrace(held, code=code, source_key=key, exists=self._exists(code, key))

    def _stored(
        self, collection: str, candidates: Sequence[Any], session: ClientSession | None = None
    ) -> Stored:
        derived, query = self._sides.holding(collection), {"_id": {"$in": list(candidates)}}
        found = {identity(each.key): each for each in read_records(derived, collection, query, session)}
        for key in candidates:
            if identity(key) in found:
                return found[identity(key)]
        raise _nowhere(f"{derived.name}.{collection}", "record", candidates)

    def _exists(self, code: Code, key: Any) -> bool | None:
        if all(each.worker != code.worker for each in self._here):
            return None
        return bool(self._sides.documents.existing(code.source, [key]).documents)

    # --- from a document to its records -----------------------------------------------------------------------

    def document(self, collection: str, candidates: Sequence[Any]) -> DocumentTrace:
        """Trace the document with one of these keys, the first that exists, or of which something is left.

        Raises `Failed` when there is neither.
        """
        there = self._sides.documents.existing(collection, candidates).documents
        existing = {identity(each["_id"]) for each in there}
        first = next((key for key in candidates if identity(key) in existing), None)
        if existing:
            return DocumentTrace(collection, first, exists=True, descents=self._descents(collection, first))
        for key in candidates:
            left = self._descents(collection, key)
            if any(each.records or each.letter for each in left):
                return DocumentTrace(collection, key, exists=False, descents=left)
        raise _nowhere(f"{self._sides.raw.name}.{collection}", "document", candidates)

    def _descents(self, collection: str, key: Any) -> tuple[Descent, ...]:
        plugged = {each.name for each in self._sides.registry.by_source.get(collection, ())}
        known = {
            name
            for each in self._here
            for name, built in each.transforms.items()
            if built.source == collection and name not in self._sides.registry.transforms
        }
        return tuple(self._descent(name, key) for name in sorted(plugged | known))

    def _descent(self, name: str, key: Any) -> Descent:
        code, diff = self._code(name), self._diff(name, key)
        letter = stored_letter(self._sides.state, code.worker or self._sides.worker, name, key)
        missing: tuple[RecordDiff, ...] = ()
        if diff is None:
            found = owned(self._sides, sorted(self._writers[name]), name, key)
            records = tuple(Held(each.collection, each.key, each.version) for each in found)
        else:
            records = tuple(_held(each) for each in diff.records if each.version)
            missing = tuple(each for each in diff.records if not each.version)
        nothing = "" if records else _why_nothing(code, diff, letter, missing)
        return Descent(code, records, missing, _failure(diff), letter, nothing)

    # --- both -------------------------------------------------------------------------------------------------

    def _diff(self, name: str, key: Any) -> DocumentDiff | None:
        """Hold what a document yields against what is stored; None when the transform is not plugged in."""
        if name not in self._sides.registry.transforms:
            return None
        return next(Preview(self._sides, name).of_keys([[key]]))

    def _code(self, name: str) -> Code:
        transform = self._sides.registry.transforms.get(name)
        checkpoint = self._checkpoint_of(name)
        built = checkpoint.transforms[name] if checkpoint else None
        source = transform.source if transform else built.source if built else ""
        ours = checkpoint is None or checkpoint.worker == self._sides.worker
        return Code(
            name,
            source,
            _state(built, transform, ours=ours),
            transform.place if transform else None,
            transform.fingerprint if transform else None,
            built.fingerprint if built else None,
            checkpoint.worker if checkpoint else None,
            checkpoint.position if checkpoint else None,
        )

    def _checkpoint_of(self, name: str) -> Checkpoint | None:
        """Give the checkpoint of the worker that writes a transform's records: the configured one's, if it does."""
        known = [each for each in self._checkpoints.values() if name in each.transforms]
        own = self._sides.worker
        return min(
            known, key=lambda each: (each.worker != own, each.transforms[name].unplugged), default=None
        )


def _state(built: Built | None, plugged: Transform | None, *, ours: bool) -> TransformState:
    """Judge a transform; what workers of other names plug in is known by their checkpoints alone."""
    if built is not None and (plugged is None if ours else built.unplugged):
        return TransformState.LEFT_BEHIND
    if built is None or built.unplugged or not built.built:
        return TransformState.NOT_BUILT
    differs = plugged is not None and plugged.fingerprint != built.fingerprint
    return TransformState.OUTDATED if differs else TransformState.BUILT


def _held(diff: RecordDiff) -> Held:
    assert diff.version
    fields = tuple(each.name for each in diff.fields) if diff.state is State.CHANGED else ()
    return Held(diff.collection, diff.key, diff.version, _AGREEMENTS[diff.state], fields)


def _failure(diff: DocumentDiff | None) -> str:
    return diff.failure.reason if diff and diff.failure else ""


def _why_nobodys(stored: Stored) -> str:
    """Say why a record has no owner that anything would derive it for."""
    if stored.owner is None:
        return f"it has no usable {ENGINE_FIELD}"
    origin: Mapping[str, Any] = decode(stored.raw, CODEC)[ENGINE_FIELD]
    return f"its {ENGINE_FIELD} names {origin['by']!r} and a key for which nothing is known to write it"


def _why_nothing(
    code: Code, diff: DocumentDiff | None, letter: StoredLetter | None, missing: Sequence[RecordDiff]
) -> str:
    return next(_reasons(code, diff, letter, missing))


def _reasons(
    code: Code, diff: DocumentDiff | None, letter: StoredLetter | None, missing: Sequence[RecordDiff]
) -> Iterator[str]:
    if diff is not None and not diff.exists:
        yield "the document does not exist"
    if letter is not None:
        yield "the document is parked"
    if diff is None:
        yield "the transform is not plugged in"
    elif diff.failure is not None:
        yield "the document cannot be derived, and is not parked yet"
    if not missing:
        yield "the transform yields nothing for the document"
    if code.state is TransformState.NOT_BUILT:
        yield "the transform is not built yet"
    yield "the worker has not come to it yet, or it is contested or was removed by hand"


def _nowhere(place: str, what: str, candidates: Sequence[Any]) -> Failed:
    tried = ", ".join(f"{type(key).__name__} {key!r:.80}" for key in candidates)
    left = "" if what == "record" else ", and nothing is left of it"
    return Failed(
        f"{place} has no {what} with this key{left}; looked for: {tried}.",
        'Give the key as it is stored, in relaxed Extended JSON: 42, "42", {"order": 1, "line": 2}.',
    )


def _both(collection: str) -> Fault:
    return Fault(
        "COLLECTION", f"{collection!r} is a derived and a source collection.", "Give --derived or --source."
    )


def _unknown(collection: str, names: set[str], wanted: Role | None) -> Fault:
    kind = f"{wanted.value} collection" if wanted else "derived or source collection"
    close = get_close_matches(collection, sorted(names), n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return Fault(
        "COLLECTION",
        f"no {kind} is called {collection!r}.",
        f"{hint}There are: {', '.join(sorted(names)) or 'none'}.",
    )
