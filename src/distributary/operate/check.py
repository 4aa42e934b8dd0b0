"""The preflight: whether everything that a worker needs is there. Nothing is written, but what is to be fixed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

from bson import Timestamp, decode
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import OperationFailure, PyMongoError

from distributary.change import CODEC, RAW, Position
from distributary.counting import counted
from distributary.derive.purity import (
    CHANGES,
    CHANGES_CURE,
    UNSTABLE,
    UNSTABLE_CURE,
    Output,
    call,
    differ,
)
from distributary.derive.registry import Registry
from distributary.derive.transform import Failure, Transform
from distributary.engine.retry import passes, reason
from distributary.errors import ConfigurationError, DistributaryError, EnvironmentFault
from distributary.operate.images import OPTION, Lacking, lacking, switch_on
from distributary.operate.privileges import Lack, Place, Role, granted, lacks
from distributary.operate.roles import SERVERS
from distributary.operate.status import iso
from distributary.operate.surplus import Where, surplus
from distributary.sink.collections import refuse_unsuitable
from distributary.sink.rollups import refuse_bad
from distributary.source import deployment
from distributary.state import Checkpoint
from distributary.store.checkpoints import Checkpoints

#: The oldest server that has what a worker builds on, such as snapshot reads at a cluster time.
OLDEST_SERVER = (6, 0)

#: A history shorter than this does not outlast a night in which a worker stands still.
SHORT_HISTORY_HOURS = 24

#: Documents of each source that are put through its transforms.
SAMPLE = 20
SAMPLE_BYTES = 32 * 1024 * 1024

#: Seconds between the two runs of a sample, so that a clock read to the second shows.
BETWEEN_RUNS = 1.1

#: What a worker does about a position that is lost, unless it may not.
_DERIVED_AGAIN = "A worker derives everything again"
_UNSEEN = "A worker calls triggers from the present on, and `status` names what they did not see"


class Level(StrEnum):
    """`fault`: a worker would not start, or what it derives would be wrong; `warning`: look at this."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


class Finding(NamedTuple):
    """What one check found: `subject` says of what, `exit_code` what a fault makes of the whole check."""

    level: Level
    subject: str
    message: str
    cure: str = ""
    exit_code: int = 0

    def answer(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {
            "level": self.level.value,
            "subject": self.subject,
            "message": self.message,
            "cure": self.cure or None,
        }


#: Says what an error of the driver means; None when that is not known.
Explain = Callable[[Exception], DistributaryError | None]
Found = Iterator[Finding]


def ok(subject: str, message: str) -> Finding:
    """Give the finding that something is as it should be."""
    return Finding(Level.OK, subject, message)


def faults(subject: str, error: DistributaryError) -> Found:
    """Give an error as findings, one for each fault in it."""
    if isinstance(error, ConfigurationError):
        for fault in error.faults:
            yield Finding(Level.FAULT, subject, f"{fault.place}: {fault.problem}", fault.cure, 2)
    else:
        yield Finding(Level.FAULT, subject, error.message, error.cure, error.exit_code)


def exit_code(findings: Iterable[Finding]) -> int:
    """Give the exit code of a check: the configuration's faults come before the environment's."""
    return min((each.exit_code for each in findings if each.exit_code), default=0)


@dataclass(frozen=True, slots=True)
class Preflight:
    """Checks one configuration; `registry` is None when the transform modules cannot be loaded.

    With `fix`, images that triggers want are switched on, and nothing else is written.
    """

    raw: Database[Any]
    derived: Database[Any]
    state: Database[Any]
    worker: str
    registry: Registry | None
    max_records: int
    explain: Explain
    sleep: Callable[[float], None]
    fix: bool = False

    def run(self) -> Found:
        """Give every finding, in the order in which a worker would stumble."""
        if self.registry is not None:
            yield from modules(self.registry)
        source = list(self._guarded("source", self._source_server))
        yield from source
        reached = not exit_code(source)
        if reached:
            for subject, check in self._source_checks():
                yield from self._guarded(subject, check)
        if reached or self.derived.client is not self.raw.client:
            yield from self._derived_side()
        if reached:
            yield from self._guarded("loop", self._loop)
            yield from self._guarded("position", self._position)
            yield from self._guarded("sample", self._sample)

    def _derived_side(self) -> Found:
        derived = list(self._guarded("derived", self._derived_server))
        yield from derived
        if not exit_code(derived):
            yield from self._guarded("derived privileges", self._derived_privileges)
            yield from self._guarded("derived collections", self._derived_collections)
            yield from self._guarded("rollups", self._rollups)

    def _guarded(self, subject: str, check: Callable[[], Found]) -> Found:
        """Give what a check finds; an error ends it and is a finding itself."""
        try:
            yield from check()
        except DistributaryError as error:
            yield from faults(subject, error)
        except PyMongoError as error:
            known = self.explain(error) or EnvironmentFault(f"{error}", "Look into the server's log.")
            yield from faults(subject, known)

    # --- the source -----------------------------------------------------------------------------------------

    def _source_checks(self) -> list[tuple[str, Callable[[], Found]]]:
        return [
            ("source privileges", self._source_privileges),
            ("source history", self._history),
            ("source collections", self._source_collections),
            ("images", self._images),
        ]

    def _source_server(self) -> Found:
        reply = deployment.hello(self.raw.client)
        yield _version("source", self.raw.client, f"replica set {reply['setName']}")

    def _source_privileges(self) -> Found:
        subject, where = "source privileges", {Role.SOURCE: Place(self.raw.name), **SERVERS}
        yield from _privileges(subject, self.raw, {role: [place] for role, place in where.items()})
        written = self._written() if self.derived.client is self.raw.client else {}
        yield from _surplus(subject, self.raw.client, {**where, **written})

    def _written(self) -> Where:
        return {Role.DERIVED: Place(self.derived.name), Role.STATE: Place(self.state.name)}

    def _history(self) -> Found:
        subject = "source history"
        try:
            oldest = deployment.oldest(self.raw.client)
        except OperationFailure as error:
            yield _unread_history(subject, error)
            return
        hours = (deployment.head(self.raw.client).time - oldest.time) / 3600
        yield _history_finding(subject, hours)

    def _source_collections(self) -> Found:
        subject = "source collections"
        there = {each["name"] for each in self.raw.list_collections(nameOnly=True)}
        for name in self.registry.read if self.registry else ():
            if name in there:
                yield from self._guarded(subject, partial(self._suitable_source, subject, name))
            else:
                message = f"{self.raw.name}.{name} does not exist yet."
                yield Finding(Level.WARNING, subject, message, "Look whether the name is right.")

    def _suitable_source(self, subject: str, name: str) -> Found:
        deployment.refuse_unsuitable(self.raw, [name])
        yield ok(subject, f"{self.raw.name}.{name} can be tailed.")

    def _images(self) -> Found:
        """Look whether source collections keep the images that triggers want; switch them on if that is asked for."""
        for each in lacking(self.raw, self.registry.triggers if self.registry else {}):
            yield from self._guarded("images", partial(self._lacking, each))

    def _lacking(self, lack: Lacking) -> Found:
        place, fix = f"{self.raw.name}.{lack.source}", "`distributary check --fix`"
        if not lack.exists:
            cure = f"Run {fix} once it is there: nothing is created for it."
            yield Finding(Level.WARNING, "images", f"{place} does not exist yet: {lack.said}.", cure)
        elif self.fix:
            switch_on(self.raw, lack.source)
            yield ok("images", f"switched {OPTION} on for {place}, for {', '.join(map(repr, lack.names))}.")
        else:
            cure = f"Run {fix}: it switches {OPTION} on for {place}, which takes room on the source."
            yield Finding(Level.WARNING, "images", f"{place} keeps none: {lack.said}.", cure)

    # --- the derived deployment -----------------------------------------------------------------------------

    def _derived_server(self) -> Found:
        reply = deployment.hello_of(self.derived.client)
        if "setName" not in reply and reply.get("msg") != "isdbgrid":
            raise EnvironmentFault(
                "The derived deployment is a standalone server: it has no transactions.",
                "Start mongod with --replSet and run rs.initiate() once; one member is enough.",
            )
        if self.derived.client is not self.raw.client:
            yield _version("derived", self.derived.client, f"replica set {reply.get('setName', '(sharded)')}")

    def _derived_privileges(self) -> Found:
        names = self._names()
        where = {
            Role.DERIVED: [Place(self.derived.name, name) for name in names] or [Place(self.derived.name)],
            Role.STATE: [Place(self.state.name)],
        }
        yield from _privileges("derived privileges", self.derived, where)
        if self.derived.client is not self.raw.client:
            yield from _surplus("derived privileges", self.derived.client, self._written())

    def _derived_collections(self) -> Found:
        subject = "derived collections"
        there = {each["name"]: each for each in self.derived.list_collections()}
        for name in self._names():
            check = partial(self._suitable_derived, subject, name, there.get(name))
            yield from self._guarded(subject, check)

    def _names(self) -> Sequence[str]:
        """Give the names of all derived collections, rollups too."""
        return (*self.registry.collections, *self.registry.rollups) if self.registry else ()

    def _rollups(self) -> Found:
        if self.registry is None:
            return
        refuse_bad(self.derived, self.registry.rollups, self.registry.places, passes)
        for name, rollup in self.registry.rollups.items():
            by = ", ".join(rollup.paths)
            told = f"{name} ({rollup.over.name} by {by}) is taken by the server"
            yield ok("rollups", f"{told}; fingerprint {rollup.fingerprint}.")

    def _suitable_derived(self, subject: str, name: str, info: Mapping[str, Any] | None) -> Found:
        if info is not None:
            refuse_unsuitable(info)
        told = "is suitable." if info else "will be created."
        yield ok(subject, f"{self.derived.name}.{name} {told}")

    def _loop(self) -> Found:
        deployment.refuse_loop(self.raw, {"derived": self.derived, "state": self.state})
        yield ok("loop", "what is written is not read again.")

    def _position(self) -> Found:
        """Look whether the worker's positions, if there are any, are of this source and still in its history."""
        checkpoint = Checkpoints(self.state).load(self.worker)
        if checkpoint is None:
            return
        if checkpoint.source.differs(deployment.identify(self.raw)):
            yield self._other_source(checkpoint)
        elif oldest := deployment.oldest_if_known(self.raw.client):
            yield _in_history("position", checkpoint.position, oldest, _DERIVED_AGAIN)
            if checkpoint.triggers and self.registry and self.registry.triggers:
                yield _in_history("triggers' position", checkpoint.triggers.position, oldest, _UNSEEN)

    def _other_source(self, checkpoint: Checkpoint) -> Finding:
        reads = f"{checkpoint.source.set_name}/{checkpoint.source.database}"
        message = f"worker {self.worker!r} reads {reads}, not the source of this configuration."
        return Finding(Level.FAULT, "position", message, "Correct `source` or `worker.name`.", 2)

    # --- the transforms -------------------------------------------------------------------------------------

    def _sample(self) -> Found:
        transforms = self.registry.transforms.values() if self.registry else ()
        samples = {each.source: _sampled(self.raw, each.source) for each in transforms}
        trials = [_Trial(each, samples[each.source], self.max_records) for each in transforms]
        for trial in trials:
            trial.run()
        if any(samples.values()):
            self.sleep(BETWEEN_RUNS)
        for trial in trials:
            yield from trial.findings()


def modules(registry: Registry) -> Found:
    """Tell what is plugged in."""
    for name, transform in registry.transforms.items():
        into = ", ".join(sorted(transform.collections)) or "nothing"
        told = f"{name} ({transform.place}) derives {transform.source} into {into}"
        yield ok("transforms", f"{told}; fingerprint {transform.fingerprint}.")
    for name, trigger in registry.triggers.items():
        operations = ", ".join(trigger.operations)
        yield ok("triggers", f"{name} ({trigger.place}) is called for each {operations} of {trigger.source}.")


def _version(subject: str, client: MongoClient[Any], topology: str) -> Finding:
    info = client.server_info()
    if tuple(info["versionArray"][:2]) < OLDEST_SERVER:
        wanted = ".".join(map(str, OLDEST_SERVER))
        message = f"MongoDB {info['version']} is too old."
        return Finding(Level.FAULT, subject, message, f"Upgrade it to {wanted} or later.", 3)
    return ok(subject, f"MongoDB {info['version']}, {topology}.")


def _privileges(subject: str, database: Database[Any], where: dict[Role, list[Place]]) -> Found:
    grants = granted(database.client, database.name)
    if grants.privileges is None:
        yield ok(subject, "the server asks for no user and allows everything.")
        return
    found = [_lack(subject, each, grants.users) for each in lacks(grants, where)]
    yield from found
    if not found:
        yield ok(subject, f"{', '.join(grants.users)} may do all that is needed.")


def _lack(subject: str, lack: Lack, users: Sequence[str]) -> Finding:
    need = lack.need
    places = ", ".join(map(str, lack.places))
    message = f"{', '.join(users)} lacks {', '.join(lack.actions)} on {places}, to {need.purpose}."
    cure = f"Grant {', '.join(lack.actions)} on {places}."
    if need.optional:
        return Finding(Level.WARNING, subject, message, cure)
    return Finding(Level.FAULT, subject, message, cure, 3)


def _surplus(subject: str, client: MongoClient[Any], where: Where) -> Found:
    cure = "Grant the role that `distributary check --roles` prints in its place."
    for each in surplus(client, where):
        message = f"role {each.role} allows more than is needed: {each}."
        yield Finding(Level.WARNING, subject, message, cure)


def _unread_history(subject: str, error: OperationFailure) -> Finding:
    told, cure = "cannot be read, so nobody knows how far it reaches", "Look into the server's log."
    if deployment.is_denied(error):
        cure = "Grant find on local.oplog.rs, and `status` tells as well how long a worker may stand still."
        return Finding(Level.WARNING, subject, f"{told}.", cure)
    return Finding(Level.WARNING, subject, f"{told}: {reason(error)}.", cure)


def _history_finding(subject: str, hours: float) -> Finding:
    message = f"reaches back {hours:,.1f} hours."
    if hours >= SHORT_HISTORY_HOURS:
        return ok(subject, message)
    cure = (
        "A worker that stands still for longer has to derive everything again; if the server is not new, enlarge"
        " its oplog (replSetResizeOplog, storage.oplogMinRetentionHours)."
    )
    return Finding(Level.WARNING, subject, message, cure)


def _in_history(subject: str, position: Position, oldest: Timestamp, lost: str) -> Finding:
    """Tell whether a position is in the history; `lost` says what a worker would do if it is not."""
    if position.time >= oldest:
        return ok(subject, f"{iso(position.time)} is in the history.")
    message = f"{iso(position.time)} is lost: the history reaches back to {iso(oldest)} only."
    cure = f'{lost}, or ends with exit code 4 if worker.on_lost_position is "fail".'
    return Finding(Level.WARNING, subject, message, cure)


def _sampled(raw: Database[Any], source: str) -> list[bytes]:
    collection = raw.get_collection(source, RAW)
    sample: list[bytes] = []
    with collection.aggregate([{"$sample": {"size": SAMPLE}}], batchSize=1) as found:
        for each in found:
            sample.append(each.raw)
            if sum(map(len, sample)) > SAMPLE_BYTES:
                break
    return sample


class _Trial:
    """One transform and some documents, derived twice."""

    def __init__(self, transform: Transform, sample: Sequence[bytes], limit: int) -> None:
        self._transform = transform
        self._sample = sample
        self._limit = limit
        self._first: list[Output] = []
        self._changed = 0

    def run(self) -> None:
        """Derive every document for the first time."""
        self._first = [self._derived(raw) for raw in self._sample]

    def findings(self) -> Found:
        """Derive every document again and tell what is wrong with the transform."""
        second = [self._derived(raw) for raw in self._sample]
        found = [*self._failures(second), *self._unstable(second), *self._mutations()]
        yield from found
        if not found:
            sampled = counted(len(self._sample), "sampled document")
            yield ok("sample", f"{self._name} derives {sampled}, each time the same.")

    @property
    def _name(self) -> str:
        return f"{self._transform.name} ({self._transform.place})"

    def _derived(self, raw: bytes) -> Output:
        called = call(self._transform, raw, self._limit)
        self._changed += called.changed
        return called.output

    def _failures(self, second: Sequence[Output]) -> Found:
        failures = [(raw, each) for raw, each in zip(self._sample, second, strict=True) if _failed(each)]
        if failures:
            raw, failure = failures[0]
            assert isinstance(failure, Failure)
            key = f"{decode(raw, CODEC)['_id']!r:.80}"
            count = f"{len(failures)} of {counted(len(self._sample), 'sampled document')}"
            message = f"{self._name} fails for {count}; for {key}: {failure.reason:.300}"
            level = Level.FAULT if len(failures) == len(self._sample) else Level.WARNING
            cure = "Correct the transform or the documents: a worker would park them as dead letters."
            yield Finding(level, "sample", message, cure, 2 if level is Level.FAULT else 0)

    def _unstable(self, second: Sequence[Output]) -> Found:
        pairs = zip(self._first, second, strict=True)
        count = sum(differ(first, again) for first, again in pairs)
        if count:
            yield self._fault(f"{self._name} {UNSTABLE} for {counted(count, 'document')}.", UNSTABLE_CURE)

    def _mutations(self) -> Found:
        if self._changed:
            yield self._fault(f"{self._name} {CHANGES}", CHANGES_CURE)

    def _fault(self, message: str, cure: str) -> Finding:
        return Finding(Level.FAULT, "sample", message, cure, 2)


def _failed(output: Output) -> bool:
    return isinstance(output, Failure)
