"""The triggers' change stream: one per worker, with images, filtered by what each trigger matches.

What a trigger matches and projects is decided by the server alone: in the stream where that is enough, else by a
database-level aggregation over the changes that were read (`$documents`), with the same semantics.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

from bson import Timestamp, encode
from bson.raw_bson import RawBSONDocument
from pymongo.database import Database
from pymongo.errors import DocumentTooLarge, OperationFailure, PyMongoError

from distributary.change import CODEC, RAW, Identity, Position, decoded, identity
from distributary.derive.batch import is_storable
from distributary.derive.records import RawDocument
from distributary.derive.trigger import Seen, Trigger
from distributary.errors import ConfigurationError, Fault
from distributary.ports.records import TooMuch
from distributary.ports.source import Encoded, SeenBatch, Start
from distributary.source.documents import Document, Documents, run_raw
from distributary.source.stream import FULL_REPLY, LOST, judged, opening

#: The field in which the engine's own part of a change survives a projection.
_OWN = "_distributary"

#: Bytes of images and updates that a change may have; a larger one is reported without some of them, so that it
#: fits into a reply, and into a dead letter.
MOST_BYTES = 14 * 1024 * 1024

#: Bytes of a change with the document that was read for it; a dead letter has 16 MB, and more to hold.
KEPT_BYTES = 15 * 1024 * 1024

#: Bytes of changes that one aggregation is asked about, unless it is one change.
ASKED_BYTES = 8 * 1024 * 1024

#: Bytes that the stream asks for in one reply, at most, going by the reply before.
REPLY_BYTES = 4 * 1024 * 1024

#: Fields of an event, and the names under which a trigger has them.
_PARTS = {"document": "fullDocument", "before": "fullDocumentBeforeChange", "updated": "updateDescription"}

_ENDS = ["dropDatabase", "invalidate"]
_OPERATIONS = frozenset({"insert", "update", "replace", "delete"})


def pipeline(triggers: Iterable[Trigger]) -> list[Document]:
    """Give the stages behind `$changeStream`: what no trigger wants does not pass.

    An update whose document the server does not keep passes as well where a trigger's match looks at that: it is
    decided once the document was read.
    """
    triggers = list(triggers)
    sources = sorted({each.source for each in triggers})
    ends = {"operationType": {"$in": _ENDS}}
    named = {"$or": [{"ns.coll": {"$in": sources}}, ends]}
    wanted = {"$or": [*(_branch(each) for each in triggers), *_undecided(triggers), ends]}
    return [{"$match": named}, {"$match": wanted}, *_shape(_common_projection(triggers))]


def _branch(trigger: Trigger) -> Document:
    place = {"ns.coll": trigger.source, "operationType": {"$in": list(trigger.operations)}}
    return {"$and": [place, trigger.match]} if trigger.match else place


def _undecided(triggers: Iterable[Trigger]) -> Iterator[Document]:
    sources = {
        each.source for each in triggers if "update" in each.operations and _looks_at_document(each.match)
    }
    for source in sorted(sources):
        yield {"ns.coll": source, "operationType": "update", "fullDocument": None}


def _looks_at_document(match: Any) -> bool:
    """Whether a match may look at `fullDocument`; when in doubt it does."""
    if isinstance(match, Mapping):
        return any(_looks_at_document(part) for pair in match.items() for part in pair)
    if isinstance(match, list | tuple):
        return any(map(_looks_at_document, match))
    if not isinstance(match, str):
        return False
    head = match.lstrip("$").partition(".")[0]
    return head in {"fullDocument", "ROOT", "CURRENT", "jsonSchema", "getField"}


def _common_projection(triggers: Sequence[Trigger]) -> Mapping[str, Any] | None:
    """Give the projection that all triggers have; None when they differ, or something is asked behind the stream."""
    first = triggers[0].project if triggers else None
    updates = any("update" in each.operations for each in triggers)
    if updates or any(each.project != first for each in triggers) or _ambiguous(triggers):
        return None
    return first


def _ambiguous(triggers: Sequence[Trigger]) -> bool:
    """Whether the stream's filter does not say which triggers a change is for."""
    places = [(each.source, operation) for each in triggers for operation in each.operations]
    shared = {place for place in places if places.count(place) > 1}
    return any(
        each.match and (each.source, operation) in shared
        for each in triggers
        for operation in each.operations
    )


def _shape(project: Mapping[str, Any] | None) -> list[Document]:
    """Give the stages that project, keep the engine's own part, and leave out what is too large."""
    own = {
        "coll": "$ns.coll",
        "key": "$documentKey._id",
        "operation": "$operationType",
        "time": "$clusterTime",
    }
    stages: list[Document] = [{"$set": {_OWN: own}}]
    if project is not None:
        stages.append({"$project": projection(project)})
    sizes = {name: _size(f"${field}") for name, field in _PARTS.items()}
    return [
        *stages,
        {"$set": {f"{_OWN}.size": sizes}},
        {"$set": {f"{_OWN}.left_out": _left_out()}},
        {"$set": {field: _unless_left_out(name, field) for name, field in _PARTS.items()}},
    ]


def _size(field: str) -> Document:
    return {"$cond": [{"$eq": [{"$type": field}, "object"]}, {"$bsonSize": field}, 0]}


def _left_out() -> Document:
    """Give the parts that are too large: what an update changed goes last, and the document in front of it first."""
    updated, document, before = (f"${_OWN}.size.{name}" for name in ("updated", "document", "before"))
    without_updated = {"$gt": [updated, MOST_BYTES]}
    kept: Document = {"$cond": [without_updated, 0, updated]}
    without_document = {"$gt": [{"$add": [kept, document]}, MOST_BYTES]}
    kept = {"$add": [kept, {"$cond": [without_document, 0, document]}]}
    without_before = {"$gt": [{"$add": [kept, before]}, MOST_BYTES]}
    parts = {"updated": without_updated, "document": without_document, "before": without_before}
    return {"$concatArrays": [{"$cond": [too_large, [name], []]} for name, too_large in parts.items()]}


def _unless_left_out(name: str, field: str) -> Document:
    return {"$cond": [{"$in": [name, f"${_OWN}.left_out"]}, "$$REMOVE", f"${field}"]}


def projection(project: Mapping[str, Any]) -> Document:
    """Give a projection that keeps the token and the engine's own part."""
    rest = {name: value for name, value in project.items() if name != "_id"}
    if _excludes(rest) or not rest:
        return rest or {"_distributary_nothing": 0}
    return {**rest, "_id": 1, _OWN: 1}


def _excludes(project: Mapping[str, Any]) -> bool:
    """Whether a projection says what to leave out, rather than what to keep."""
    for value in project.values():
        if isinstance(value, Mapping) and value and not next(iter(value)).startswith("$"):
            return _excludes(value)
        return isinstance(value, bool | int | float) and not value
    return False


class _Event(NamedTuple):
    """A change as the stream reports it: its own part decoded, all of it raw."""

    token: str
    source: str
    key: Any
    operation: str
    time: Timestamp
    left_out: Sequence[str]
    raw: RawBSONDocument

    @property
    def size(self) -> int:
        return len(self.raw.raw)


@dataclass(frozen=True, slots=True)
class _Rule:
    """How a change is decided on for one trigger: by asking the server with these stages, or without (none)."""

    trigger: Trigger
    stages: list[Document]


class _Answers(NamedTuple):
    """What the server reports of changes to a trigger, by token, and which of them it could not be asked about."""

    reported: dict[str, RawBSONDocument]
    undecided: set[str]


class ChangeStream:
    """Tails the changes that triggers want, one server reply at a time."""

    def __init__(
        self, database: Database[Any], triggers: Sequence[Trigger], *, batch_changes: int, batch_bytes: int
    ) -> None:
        self._database = database
        self._triggers = triggers
        self._stages = pipeline(triggers)
        self._rules = _rules(triggers)
        self._documents = Documents(database, batch_bytes)
        self._most = self._count = batch_changes
        self._session = database.client.start_session()
        self._cursor_id = 0
        self._after = ""

    @property
    def filter(self) -> str:
        """What names the filter: a token is good for the same filter only."""
        return sha256(encode({"pipeline": self._stages}, codec_options=CODEC)).hexdigest()[:16]

    def open(self, start: Start, after: str = "") -> Position:
        """Open at `start` and give the position there, leaving out what is not behind the token `after`.

        Raises `PositionLost`, and `ConfigurationError` for what a trigger may not ask of a change stream.
        """
        command = {
            "aggregate": 1,
            "pipeline": [self._opening(start), *self._stages],
            "cursor": {"batchSize": 0},
        }
        try:
            cursor = decoded(bytes(run_raw(self._database, command, self._session).raw))["cursor"]
        except OperationFailure as error:
            self._refuse_stages(error)
            raise judged(error) from error
        self._cursor_id, self._after = cursor["id"], after
        position = Position.of_token(max(cursor["postBatchResumeToken"]["_data"], after))
        self._documents.not_before(position.time)
        return position

    def _opening(self, start: Start) -> Document:
        images = {"fullDocument": "whenAvailable", "fullDocumentBeforeChange": "whenAvailable"}
        return {"$changeStream": {**opening(start), **images}}

    def _refuse_stages(self, error: OperationFailure) -> None:
        """Raise for each trigger whose match or projection is what the server refuses."""
        if error.code in LOST:
            return
        faults = [fault for each in self._triggers for fault in self._faults(each)]
        if faults:
            raise ConfigurationError(faults) from error

    def _faults(self, trigger: Trigger) -> Iterator[Fault]:
        """Try a trigger alone, at the present."""
        alone = {
            "aggregate": 1,
            "pipeline": [self._opening(Start()), *_alone(trigger)],
            "cursor": {"batchSize": 0},
        }
        try:
            cursor = decoded(bytes(run_raw(self._database, alone).raw))["cursor"]
        except OperationFailure as error:
            told = error.details.get("errmsg") if error.details else error
            yield Fault(
                trigger.place,
                f"trigger {trigger.name!r}: MongoDB refuses its match or project: {told}",
                "Use what a change stream takes: no $where, no $text, no geometry.",
            )
        else:
            self._kill(cursor["id"])

    def read(self, wait_ms: int) -> Iterator[SeenBatch]:
        """Give the next changes, waiting up to `wait_ms` for one; without any, a position only.

        They come in parts where the documents that have to be read for them are large.
        """
        command = {
            "getMore": self._cursor_id,
            "collection": "$cmd.aggregate",
            "batchSize": self._count,
            "maxTimeMS": wait_ms,
        }
        try:
            reply = run_raw(self._database, command, self._session)
        except OperationFailure as error:
            raise judged(error) from error
        cursor = reply["cursor"]
        self._cursor_id = cursor["id"]
        token = max(cursor["postBatchResumeToken"]["_data"], self._after)
        events = [_event(each) for each in cursor["nextBatch"]]
        cut_short = len(events) >= self._count or len(reply.raw) > FULL_REPLY
        self._expect(len(events), len(reply.raw))
        wanted = [each for each in events if each.token > self._after and each.operation in _OPERATIONS]
        yield from self._parts(wanted)
        yield SeenBatch([], 0, Position.of_token(token), torn=cut_short)

    def _parts(self, events: Sequence[_Event]) -> Iterator[SeenBatch]:
        """Give what is seen of these changes, in halves where it is too much at once."""
        if not events:
            return
        try:
            seen = list(self._seen(events))
        except TooMuch:
            half = len(events) // 2
            yield from self._parts(events[:half])
            yield from self._parts(events[half:])
        else:
            yield SeenBatch(seen, len(events), Position.of_token(events[-1].token), torn=True)

    def _expect(self, changes: int, size: int) -> None:
        if changes:
            self._count = min(self._most, max(1, changes * REPLY_BYTES // size))

    @property
    def ended(self) -> bool:
        """Whether the server closed the stream (after an `invalidate`); open it again at the last position."""
        return not self._cursor_id

    def close(self) -> None:
        """Free the server's cursor; an unreachable server frees it by itself."""
        with suppress(PyMongoError):
            self._kill(self._cursor_id)
        self._cursor_id = 0
        self._session.end_session()

    def _kill(self, cursor_id: int) -> None:
        if cursor_id:
            self._database.command("killCursors", "$cmd.aggregate", cursors=[cursor_id])

    # --- which triggers a change is for -------------------------------------------------------------------

    def _seen(self, events: Sequence[_Event]) -> Iterator[Seen]:
        """Give each change for each trigger that it is for, in the order of the changes."""
        events = self._completed(events)
        asked = [self._answers(rule, events) if rule.stages else None for rule in self._rules]
        for event in events:
            for rule, answers in zip(self._rules, asked, strict=True):
                if not _concerns(rule.trigger, event):
                    continue
                reported = event.raw if answers is None else answers.reported.get(event.token)
                if reported is not None:
                    decided = answers is None or event.token not in answers.undecided
                    yield _seen(rule.trigger, event, reported, decided=decided)

    def _completed(self, events: Sequence[_Event]) -> Sequence[_Event]:
        """Give updates the latest document where the server keeps no post-image; it is read now."""
        without = [
            each for each in events if each.operation == "update" and each.raw.get("fullDocument") is None
        ]
        without = [each for each in without if "document" not in each.left_out]
        if not without:
            return events
        self._documents.not_before(max(each.time for each in without))
        latest: dict[tuple[str, Identity], bytes] = {}
        for source in {each.source for each in without}:
            keys = {identity(each.key): each.key for each in without if each.source == source}
            latest |= {(source, key): raw for key, raw in self._latest(source, list(keys.values()))}
        tokens = {each.token for each in without}
        return [
            _with_document(each, latest.get((each.source, identity(each.key))))
            if each.token in tokens
            else each
            for each in events
        ]

    def _latest(self, source: str, keys: Sequence[Any]) -> Iterator[tuple[Identity, bytes]]:
        """Read documents as they are now; raises `TooMuch`, never for one of them."""
        documents = self._documents.fetch(source, keys).documents
        assert isinstance(documents, Encoded)
        for key, raw in zip(documents.keys(), documents.raw, strict=True):
            yield identity(key), raw

    def _answers(self, rule: _Rule, events: Sequence[_Event]) -> _Answers:
        """Ask the server which changes a trigger matches, and how it projects them."""
        answers = _Answers({}, set())
        for some in _by_size([each for each in events if _concerns(rule.trigger, each)]):
            try:
                found = {
                    each["_id"]["_data"]: each for each in self._asked(rule, [each.raw for each in some])
                }
            except DocumentTooLarge:
                found = {each.token: each.raw for each in some}
                answers.undecided.update(found)
            answers.reported.update(found)
        return answers

    def _asked(self, rule: _Rule, events: Sequence[RawBSONDocument]) -> Iterator[RawBSONDocument]:
        command = {
            "aggregate": 1,
            "pipeline": [{"$documents": {"$literal": list(events)}}, *rule.stages],
            "cursor": {},
        }
        cursor = run_raw(self._database, command, self._session)["cursor"]
        yield from cursor["firstBatch"]
        while cursor["id"]:
            more = {"getMore": cursor["id"], "collection": "$cmd.aggregate"}
            cursor = run_raw(self._database, more, self._session)["cursor"]
            yield from cursor["nextBatch"]


def _alone(trigger: Trigger) -> list[Document]:
    match = [{"$match": trigger.match}] if trigger.match else []
    return [*match, *([{"$project": projection(trigger.project)}] if trigger.project else [])]


def _rules(triggers: Sequence[Trigger]) -> list[_Rule]:
    """Say for each trigger what is still to be asked behind the stream's filter and projection."""
    undecided = {each["ns.coll"] for each in _undecided(triggers)}
    projected = _common_projection(triggers) is not None
    ambiguous = _ambiguous(triggers)
    rules = []
    for each in triggers:
        matched = not each.match or not (ambiguous or each.source in undecided)
        stages: list[Document] = [] if matched else [{"$match": each.match}]
        if each.project and not projected:
            stages.append({"$project": projection(each.project)})
        rules.append(_Rule(each, stages))
    return rules


def _concerns(trigger: Trigger, event: _Event) -> bool:
    return event.source == trigger.source and event.operation in trigger.operations


def _event(raw: RawBSONDocument) -> _Event:
    own = decoded(bytes(raw[_OWN].raw))
    token, left_out = raw["_id"]["_data"], own["left_out"]
    return _Event(token, own.get("coll", ""), own.get("key"), own["operation"], own["time"], left_out, raw)


def _with_document(event: _Event, document: bytes | None) -> _Event:
    found = RawDocument(document) if document is not None else None
    raw = RawBSONDocument(encode({**event.raw, "fullDocument": found}), RAW)
    return event._replace(raw=raw)


#: How what is made here is read again.


def _seen(trigger: Trigger, event: _Event, reported: RawBSONDocument, *, decided: bool) -> Seen:
    update = reported.get("updateDescription") or {}
    content = {
        "operation": event.operation,
        "key": event.key if is_storable(event.key) else None,
        "document": reported.get("fullDocument"),
        "before": reported.get("fullDocumentBeforeChange"),
        "updated": update.get("updatedFields") or {},
        "removed": [_legible(name) for name in update.get("removedFields") or []],
        "left_out": [*event.left_out, *([] if decided else ["match"])],
    }
    return Seen(trigger.name, event.source, event.key, event.time, event.token, _fitting(content))


def _fitting(content: Document) -> bytes:
    """Give a change in BSON, without what a dead letter has no room for: the document may have been read later."""
    encoded = encode(content, codec_options=CODEC)
    for name, nothing in (("before", None), ("document", None), ("updated", {})):
        if len(encoded) > KEPT_BYTES:
            content = {**content, name: nothing, "left_out": [*content["left_out"], name]}
            encoded = encode(content, codec_options=CODEC)
    return encoded


def _legible(name: str) -> str:
    """Give a field's name, with what of it is no UTF-8 as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _by_size(events: Sequence[_Event]) -> Iterator[list[_Event]]:
    some: list[_Event] = []
    size = 0
    for event in events:
        if some and size + event.size > ASKED_BYTES:
            yield some
            some, size = [], 0
        some.append(event)
        size += event.size
    if some:
        yield some
