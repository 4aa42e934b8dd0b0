"""What every worker in a state database is doing, how far it is, and what it left undone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from bson import Timestamp
from pymongo.database import Database
from pymongo.errors import OperationFailure, PyMongoError

from distributary.change import Position
from distributary.derive.registry import Registry
from distributary.engine.publishing import UNBOUNDED, Bounds
from distributary.engine.retry import reason
from distributary.errors import DistributaryError
from distributary.operate.condition import FINE, Judgement, judged
from distributary.source import deployment
from distributary.state import Built, Checkpoint, Job, JobKind, SlowTransform, SourceIdentity, TriggerStream
from distributary.store.checkpoints import CHECKPOINTS, Checkpoints, from_document, lag_seconds
from distributary.store.jobs import Jobs
from distributary.store.lease import LEASES, Lease
from distributary.store.letters import LETTERS
from distributary.store.outbox import Unpublished, unpublished
from distributary.store.pending import PendingGroups, count_pending
from distributary.store.processes import Process, heard


class WorkerState(StrEnum):
    """`active`: a process holds the lease; `stopped`: none does; `never started`: nor any checkpoint."""

    ACTIVE = "active"
    STOPPED = "stopped"
    NEVER = "never started"


class TransformState(StrEnum):
    """How what a transform yielded relates to the code that is plugged in.

    `outdated`: other code built it. `not built`: existing documents are still to go through it.
    `left behind`: the worker runs without it, so that its records go stale.
    """

    BUILT = "built"
    OUTDATED = "outdated"
    NOT_BUILT = "not built"
    LEFT_BEHIND = "left behind"


@dataclass(frozen=True, slots=True)
class TransformStatus:
    """One transform of one worker; `collections` are all that it ever wrote."""

    source: str
    state: TransformState
    collections: tuple[str, ...]


class JobStatus(NamedTuple):
    """An open job; `total` is the estimated number of documents of its source, None where it is not known."""

    job: Job
    total: int | None


class TriggersStatus(NamedTuple):
    """How far the stream of the triggers is, of which `names` are plugged in, and the changes that none has seen."""

    names: tuple[str, ...]
    stream: TriggerStream
    lag_seconds: int | None
    headroom_seconds: int | None

    def answer(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        position = self.stream.position
        return {
            "names": list(self.names),
            "position": {"token": position.token, "time": iso(position.time)},
            "lag_seconds": self.lag_seconds,
            "headroom_seconds": self.headroom_seconds,
            "unseen": [{"since": iso(gap.since), "until": iso(gap.until)} for gap in self.stream.gaps],
        }


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker's name.

    `saved_at` is when the position was saved; an idle worker saves it only now and then. `lag_seconds` is the
    source's head minus the position, `headroom_seconds` what is left until the position falls out of the
    source's history; each is None where `unknown` says why. `left_behind` are the derived collections that no transform
    names any more, `pending` the groups of rollups that are still to be computed. `waits` tells that so much is not
    published that the worker waits. `judgement` says how it is, and `processes` are those that were heard of lately.
    """

    name: str
    state: WorkerState
    holder: str | None
    position: Position | None
    saved_at: datetime | None
    lag_seconds: int | None
    headroom_seconds: int | None
    unknown: str
    transforms: Mapping[str, TransformStatus]
    jobs: tuple[JobStatus, ...]
    detached: Mapping[str, Timestamp]
    dead_letters: Mapping[str, Mapping[str, int]]
    slow: tuple[SlowTransform, ...] = ()
    left_behind: tuple[str, ...] = ()
    pending: PendingGroups = field(default_factory=PendingGroups)
    outbox: Unpublished = field(default_factory=Unpublished)
    triggers: TriggersStatus | None = None
    waits: bool = False
    judgement: Judgement = FINE
    processes: tuple[Process, ...] = ()

    def answer(self) -> dict[str, Any]:
        """Give it as JSON has it; times are ISO-8601."""
        place = self.position and {"token": self.position.token, "time": iso(self.position.time)}
        return {
            "name": self.name,
            "state": self.state.value,
            "condition": self.judgement.condition.value,
            "why": self.judgement.why or None,
            "next": self.judgement.cure or None,
            "processes": [process_answer(each) for each in self.processes],
            "holder": self.holder,
            "position": place,
            "saved_at": self.saved_at and self.saved_at.isoformat(),
            "lag_seconds": self.lag_seconds,
            "headroom_seconds": self.headroom_seconds,
            "unknown": self.unknown or None,
            "transforms": {name: _transform_answer(each) for name, each in self.transforms.items()},
            "jobs": [job_answer(each) for each in self.jobs],
            "detached": {name: iso(time) for name, time in self.detached.items()},
            "dead_letters": self.dead_letters,
            "slow_transforms": [each._asdict() for each in self.slow],
            "left_behind": list(self.left_behind),
            "pending_groups": self.pending._asdict(),
            "outbox": self.outbox.waiting,
            "outbox_bytes": self.outbox.bytes,
            "outbox_since": self.outbox.since and iso(self.outbox.since),
            "outbox_full": self.waits,
            "outbox_topics": {
                name: {"events": each.waiting, "since": each.since and iso(each.since)}
                for name, each in self.outbox.topics.items()
                if each.waiting
            },
            "unpublishable": self.outbox.refused,
            "triggers": self.triggers and self.triggers.answer(),
        }


def iso(time: Timestamp) -> str:
    """Give a cluster time in ISO-8601, to the second."""
    return datetime.fromtimestamp(time.time, UTC).isoformat()


def process_answer(process: Process) -> dict[str, Any]:
    """Give a process as JSON has it, with what its endpoint answered when it was heard of last."""
    return {
        "name": process.name,
        "silent": process.is_silent,
        "silent_seconds": round(process.silent_seconds, 1),
        "healthz": process.healthz,
        "readyz": process.readyz,
    }


def _transform_answer(status: TransformStatus) -> dict[str, Any]:
    return {"source": status.source, "state": status.state.value, "collections": list(status.collections)}


def job_answer(status: JobStatus) -> dict[str, Any]:
    """Give an open job as JSON has it."""
    job = status.job
    return {
        "id": str(job.id),
        "kind": job.kind.value,
        "source": job.source,
        "transforms": list(job.transforms),
        "reason": job.reason,
        "stage": job.stage,
        "paused": job.paused,
        "documents": job.documents,
        "total": status.total,
    }


class History(NamedTuple):
    """The source's head and its oldest operation; None where `unknown` says why."""

    head: Timestamp | None
    oldest: Timestamp | None
    source: SourceIdentity | None
    unknown: str = ""


def workers(
    raw: Database[Any], state: Database[Any], name: str, registry: Registry | None, bounds: Bounds = UNBOUNDED
) -> list[WorkerStatus]:
    """Give every worker that left something in the state database, and the one called `name` in any case.

    `registry` is what worker `name` plugs in; None when it cannot be loaded. `bounds` are those of its outbox. Nothing
    is written.
    """
    stored = {each["_id"]: each for each in state[CHECKPOINTS].find({"position": {"$exists": True}})}
    letters = _dead_letters(state)
    history, outbox = _history(raw), unpublished(state)
    pending, processes = count_pending(state), heard(state)
    names = sorted({name, *stored, *state[LEASES].distinct("_id"), *processes})
    return [
        _Look(
            each,
            raw,
            state,
            registry if each == name else None,
            history,
            outbox.get(each, Unpublished()),
            bounds if each == name else UNBOUNDED,
            processes.get(each, []),
        ).status(stored.get(each), letters.get(each, {}), pending.get(each, PendingGroups()))
        for each in names
    ]


def _history(raw: Database[Any]) -> History:
    try:
        source, head = deployment.identify(raw), deployment.head(raw.client)
    except (PyMongoError, DistributaryError) as error:
        return History(None, None, None, f"the source does not tell: {error}")
    try:
        return History(head, deployment.oldest(raw.client), source)
    except (PyMongoError, DistributaryError) as error:
        return History(head, None, source, f"headroom: {_unread(error)}")


def _unread(error: PyMongoError | DistributaryError) -> str:
    if isinstance(error, OperationFailure) and deployment.is_denied(error):
        return "the user may not read local.oplog.rs"
    return reason(error)


def _dead_letters(state: Database[Any]) -> dict[str, dict[str, dict[str, int]]]:
    """Count dead letters by worker, transform and kind."""
    group = {"worker": "$worker", "transform": "$transform", "kind": "$kind"}
    found = state[LETTERS].aggregate(
        [{"$group": {"_id": group, "count": {"$sum": 1}}}, {"$sort": {"_id": 1}}]
    )
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for each in found:
        by_transform = counts.setdefault(each["_id"]["worker"], {})
        by_transform.setdefault(each["_id"]["transform"], {})[each["_id"]["kind"]] = each["count"]
    return counts


@dataclass(frozen=True, slots=True)
class _Look:
    """One worker, looked at from all sides."""

    name: str
    raw: Database[Any]
    state: Database[Any]
    registry: Registry | None
    history: History
    outbox: Unpublished
    bounds: Bounds
    processes: Sequence[Process]

    def status(
        self,
        document: Mapping[str, Any] | None,
        letters: Mapping[str, Mapping[str, int]],
        pending: PendingGroups,
    ) -> WorkerStatus:
        checkpoint = from_document(document) if document else None
        holder = Lease(self.state, self.name, 1).holder()
        alive = holder is not None and holder.alive
        lag, headroom, unknown = self._distance(checkpoint)
        return WorkerStatus(
            name=self.name,
            state=_worker_state(checkpoint, alive=alive),
            holder=holder.name if holder is not None and alive else None,
            position=checkpoint.position if checkpoint else None,
            saved_at=document["saved_at"] if document else None,
            lag_seconds=lag,
            headroom_seconds=headroom,
            unknown=unknown,
            transforms=_transforms(checkpoint.transforms if checkpoint else {}, self.registry),
            jobs=tuple(JobStatus(job, self._total(job)) for job in Jobs(self.state, self.name).open()),
            detached=checkpoint.detached if checkpoint else {},
            dead_letters=letters,
            slow=holder.slow if holder is not None and alive else (),
            left_behind=self._left_behind(checkpoint),
            pending=pending,
            outbox=self.outbox,
            triggers=self._triggers(checkpoint),
            waits=alive and self.bounds.are_reached(self.outbox.waiting, self.outbox.bytes),
            judgement=judged(holder, self.processes, begun=checkpoint is not None),
            processes=tuple(self.processes),
        )

    def _triggers(self, checkpoint: Checkpoint | None) -> TriggersStatus | None:
        """Give how far the triggers' stream is; None of a worker that never had triggers."""
        if checkpoint is None or checkpoint.triggers is None:
            return None
        moved = checkpoint.moved(checkpoint.triggers.position)
        lag, headroom, _ = self._distance(moved)
        names = tuple(sorted(self.registry.triggers)) if self.registry else ()
        return TriggersStatus(names, checkpoint.triggers, lag, headroom)

    def _left_behind(self, checkpoint: Checkpoint | None) -> tuple[str, ...]:
        """Give the collections that are there, and that no transform names any more; none without the modules."""
        if checkpoint is None or self.registry is None:
            return ()
        others = Checkpoints(self.state).claimed(self.name)
        return tuple(checkpoint.left_behind(self.registry.declared | others.keys()))

    def _distance(self, checkpoint: Checkpoint | None) -> tuple[int | None, int | None, str]:
        """Give lag, headroom and why one of them is not known."""
        head, oldest, source, unknown = self.history
        if checkpoint is None:
            return None, None, ""
        if source is not None and checkpoint.source.differs(source):
            other = f"{checkpoint.source.set_name}/{checkpoint.source.database}"
            return None, None, f"the worker reads {other}, not the source of this configuration"
        lag = None if head is None else lag_seconds(head, checkpoint.position)
        headroom = None if oldest is None else _headroom(checkpoint.position.time, oldest)
        return lag, headroom, unknown

    def _total(self, job: Job) -> int | None:
        if job.kind is JobKind.ROLLUP and not job.keys:
            return None
        if job.total or job.keys:
            return job.total or job.documents + len(job.keys)
        try:
            return self.raw[job.source].estimated_document_count()
        except PyMongoError:
            return None


def _headroom(position: Timestamp, oldest: Timestamp) -> int:
    """Give the seconds from the oldest operation to a position; negative for one that is lost, by however little."""
    seconds: int = position.time - oldest.time
    return min(seconds, -1) if position < oldest else seconds


def _worker_state(checkpoint: Checkpoint | None, *, alive: bool) -> WorkerState:
    if alive:
        return WorkerState.ACTIVE
    return WorkerState.NEVER if checkpoint is None else WorkerState.STOPPED


def _transforms(stored: Mapping[str, Built], registry: Registry | None) -> dict[str, TransformStatus]:
    plugged = registry.transforms if registry else {}
    return {name: _transform(name, stored.get(name), registry) for name in sorted({*stored, *plugged})}


def _transform(name: str, built: Built | None, registry: Registry | None) -> TransformStatus:
    plugged = registry.transforms.get(name) if registry else None
    if built is None:
        assert plugged
        return TransformStatus(plugged.source, TransformState.NOT_BUILT, tuple(sorted(plugged.collections)))
    state = _state(built, plugged.fingerprint if plugged else None, known=registry is not None)
    return TransformStatus(built.source, state, tuple(sorted(built.collections)))


def _state(built: Built, fingerprint: str | None, *, known: bool) -> TransformState:
    """Judge a transform by the fingerprint that is plugged in; without `known` by the checkpoint alone."""
    if built.unplugged if not known else fingerprint is None:
        return TransformState.LEFT_BEHIND
    if not built.built:
        return TransformState.NOT_BUILT
    return TransformState.OUTDATED if known and fingerprint != built.fingerprint else TransformState.BUILT
