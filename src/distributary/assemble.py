"""The composition root: the only file that names concrete classes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from secrets import token_hex
from threading import Event
from typing import Any

from pymongo import MongoClient
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import PyMongoError

from distributary import log, personal, plugins
from distributary.change import CODEC
from distributary.config import Config, PubSub
from distributary.derive.naming import index_keys
from distributary.derive.records import DerivedCollection
from distributary.derive.registry import Registry
from distributary.derive.rollup import Rollup
from distributary.engine import publishing
from distributary.engine.begin import Wanted
from distributary.engine.observer import SILENT, Observer, Phase, Standing
from distributary.engine.pace import Limits
from distributary.engine.pipeline import Bounds
from distributary.engine.precedence import Precedence
from distributary.engine.retry import Verdict, judge, passes, reason
from distributary.engine.slow import Slow
from distributary.engine.spans import UNTRACED, Spans
from distributary.engine.telling import telling
from distributary.engine.tenure import RENEWALS, Tenure
from distributary.engine.triggers import Triggers
from distributary.engine.wiring import Goal, Settings, Wiring
from distributary.engine.work import Stores
from distributary.engine.worker import Worker
from distributary.errors import ConfigurationError, Fault, LeaseLost
from distributary.events.envelope import Envelope, tables_of
from distributary.health import Health
from distributary.operate.positions import start_of
from distributary.operate.sides import Sides
from distributary.operate.tables import refuse_bad_models
from distributary.operate.topics import Asked, published
from distributary.operate.watch import Watch
from distributary.ports.events import Publisher
from distributary.ports.source import Start
from distributary.recording import Names, Recording
from distributary.sink.collections import Indexes, prepare, prepare_rollups
from distributary.sink.mongo import MongoSink
from distributary.sink.rollups import Reader, Rollups, refuse_bad
from distributary.sink.shelf import MongoShelf
from distributary.source import deployment
from distributary.source.changes import ChangeStream
from distributary.source.documents import Documents
from distributary.source.elections import Elections
from distributary.source.stream import Stream
from distributary.state import BEGINNING, Checkpoint
from distributary.store.checkpoints import Checkpoints
from distributary.store.jobs import Jobs
from distributary.store.lease import Holder, Lease
from distributary.store.letters import Letters
from distributary.store.outbox import MongoOutbox, count_refused
from distributary.store.pending import Pending
from distributary.store.processes import Processes
from distributary.store.untold import MongoUntold

logger = log.get_logger()

#: Seconds before a process that could not get at the lease tries again.
RETRY_SECONDS = 1.0

#: Seconds between two words of a process about its health; more often where the lease is short.
TELL_SECONDS = 2.0

#: What to do where a package is missing for traces.
TRACES_CURE = "Run `pip install 'distributary[traces]'`, or set traces.enabled = false."

#: Seconds for which the position of a living worker may stand still, beyond those of an idle one.
WATCH_SECONDS = 60.0


@dataclass(frozen=True)
class Databases:
    """The three databases that distributary works on."""

    raw: Database[Any]
    derived: Database[Any]
    state: Database[Any]


@contextmanager
def connect(config: Config, elected: Callable[[], None] | None = None) -> Iterator[Databases]:
    """Connect to the source and the derived deployment; closes the connections at the end. Elections call `elected`."""
    listeners = [Elections(elected)] if elected else []
    source: MongoClient[Any] = _client(config.source.uri.get_secret_value(), listeners)
    same = config.derived.uri.get_secret_value() == config.source.uri.get_secret_value()
    derived = source if same else _client(config.derived.uri.get_secret_value(), listeners)
    with source, derived:
        yield Databases(
            source.get_database(config.source.database, CODEC),
            derived.get_database(config.derived.database, CODEC),
            derived.get_database(config.state.database, CODEC),
        )


@contextmanager
def connect_known(config: Config) -> Iterator[Databases]:
    """Connect; raises `Failed` before anything of the state is read or written that a newer release wrote."""
    with connect(config) as databases:
        Checkpoints(databases.state).refuse_newer()
        yield databases


def _client(uri: str, listeners: Sequence[Elections]) -> MongoClient[Any]:
    return MongoClient(
        uri,
        appname="distributary",
        w="majority",
        tz_aware=True,
        uuidRepresentation="standard",
        event_listeners=listeners,
    )


def recording(plugged: Registry, spans: Spans = UNTRACED) -> Recording:
    """Give what keeps the metrics of a process that runs what is plugged in."""
    return Recording(Names.of(plugged, published(plugged)), spans=spans)


@contextmanager
def tracing(config: Config, left: Callable[[], float]) -> Iterator[Spans]:
    """Give what makes spans of the work; raises `ConfigurationError` where that is asked for and cannot be.

    `left` gives the seconds that there are, in the end, for sending the last ones.
    """
    if not config.traces.enabled:
        yield UNTRACED
        return
    try:
        from distributary.exporting import Exporting  # noqa: PLC0415 - its packages are an extra
        from distributary.tracing import Tracing  # noqa: PLC0415 - its packages are an extra

        exporting = Exporting()
    except ImportError as error:
        raise ConfigurationError([Fault("traces.enabled", f"{error}.", TRACES_CURE)]) from error
    try:
        yield Tracing(exporting.tracer, config.worker.name, config.source.database, config.derived.database)
    finally:
        exporting.close(left())


def registry(config: Config) -> Registry:
    """Load the transform modules that the configuration names; its key is then that of this process's pseudonyms."""
    personal.use_key(config.personal_data.key.get_secret_value() if config.personal_data else None)
    loaded = plugins.load(config.worker.transformers, config.worker.only).under_key(personal.key_digest())
    refuse_bad_models(loaded)
    same = config.source.uri.get_secret_value() == config.derived.uri.get_secret_value()
    loaded.check_loop(source_db_is_derived_db=same and config.source.database == config.derived.database)
    return loaded


@contextmanager
def topics(pubsub: PubSub) -> Iterator[Asked]:
    """Give what asks for topics; raises `EnvironmentFault` without credentials."""
    from distributary.pubsub.topics import Topics  # noqa: PLC0415 - importing Google's library takes half a second

    asked = Topics(pubsub.project, pubsub.endpoint)
    try:
        yield asked
    finally:
        asked.close()


def outbox_bounds(pubsub: PubSub | None) -> publishing.Bounds:
    """Give what may wait to be published; without publishing there is no bound."""
    return publishing.Bounds(pubsub.outbox_events, pubsub.outbox_bytes) if pubsub else publishing.UNBOUNDED


@dataclass
class Assembled:
    """A worker of this configuration, ready to hold the lease."""

    config: Config
    databases: Databases
    registry: Registry
    stop: Event = field(default_factory=Event)
    observer: Observer = SILENT
    called: str = field(init=False, default="")
    slow: Slow = field(init=False)
    commits: Precedence = field(init=False, default_factory=Precedence)
    _tenure: Tenure | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.slow = Slow(self.config.worker.slow_transform_seconds, self.registry.by_source)

    def tenure(self) -> Tenure:
        """Give what waits for the lease and works under it."""
        worker = self.config.worker
        lease = Lease(self.databases.state, worker.name, worker.lease_seconds)
        self.called = lease.me
        return Tenure(lease, worker.lease_seconds, self.stop, self.slow.tell, self.observer)

    def telling(self, health: Health) -> AbstractContextManager[None]:
        """Let `status` know what the process says of its health, until the end of the block."""
        worker = self.config.worker
        every = min(TELL_SECONDS, worker.lease_seconds / RENEWALS)
        word = Processes(self.databases.state, worker.name, every)
        return telling(
            lambda: word.tell(self.called, health.healthy().why, health.ready().why),
            word.leave,
            every,
            lambda: (self.called, health.phase),
        )

    def work(self, tenure: Tenure, goal: Goal) -> None:
        """Work as the holder of the lease until the goal is reached, the lease is lost or `stop` is set."""
        databases, name = self.databases, self.config.worker.name
        checkpoints = Checkpoints(databases.state)
        with databases.derived.client.start_session() as session:
            stores = Stores(
                self.sink(session),
                checkpoints,
                Letters(databases.state, name, values=self.config.dead_letters.values),
                Jobs(databases.state, name),
                self.outbox(),
                self._untold(),
            )
            code = {name: each.fingerprint for name, each in self.registry.transforms.items()}
            tenure.lease.announce(session.session_id, code)
            fence = checkpoints.raise_fence(name)
            Worker(self._wiring(stores), self.wanted(), self._settings(), fence, tenure.over).run(goal)

    def sink(self, session: ClientSession) -> MongoSink:
        """Give what writes the derived collections, in a session of the derived deployment."""
        derived, plugged = self.databases.derived, self.registry.rollups
        rollups = Rollups(derived, session, plugged, self._pending(), passes) if plugged else None
        return MongoSink(derived, self.databases.state, session, self.commits, rollups, self.published)

    @property
    def published(self) -> Mapping[str, DerivedCollection]:
        """The derived collections whose changes are told; none where nothing is published."""
        return self.registry.published if self.config.pubsub else {}

    def outbox(self) -> MongoOutbox:
        """Give what holds what is to be published."""
        settings, worker = self.config.pubsub, self.config.worker.name
        envelope = Envelope(
            worker,
            binary=settings is not None and settings.mode == "binary",
            plain=settings is not None and settings.json_form == "plain",
            tables=tables_of(self.published.values()),
        )
        reference = settings is not None and settings.too_large == "reference"
        return MongoOutbox(
            self.databases.state,
            worker,
            envelope,
            self.published,
            reference=reference,
            values=self.config.dead_letters.values,
        )

    def _untold(self) -> MongoUntold:
        """Give what holds the keys that a rebuild has to tell of."""
        return MongoUntold(self.databases.state, self.config.worker.name)

    def serve(self, goal: Goal) -> None:
        """Hold the lease and work, until the goal is reached or `stop` is set; who loses the lease stands by again."""
        given = self.databases
        with ExitStack() as anew:
            while not self.stop.is_set():
                try:
                    if self._hold(goal):
                        break
                except LeaseLost as error:
                    logger.warning("stepped back", reason=error.message)
                except PyMongoError as error:
                    if judge(error) not in {Verdict.TRANSIENT, Verdict.CONNECTION}:
                        raise
                    self._wait(error)
                    if judge(error) is Verdict.CONNECTION:
                        anew.close()
                        self.databases = anew.enter_context(connect(self.config, self.observer.elected))
        self.databases = given

    def _hold(self, goal: Goal) -> bool:
        """Wait for the lease and work under it; True when the goal is reached or `stop` is set."""
        tenure = self._tenure = self.tenure()
        if tenure.wait():
            with tenure.held():
                self.work(tenure, goal)
        return self.stop.is_set() or (goal.time is not None and not tenure.over.is_set())

    def _wait(self, error: PyMongoError) -> None:
        self.observer.enter(Phase.WAITING, f"trying again: {reason(error)}")
        logger.warning("trying again", error=reason(error))
        self.stop.wait(RETRY_SECONDS)

    def give_up(self) -> None:
        """Leave the work that does not end to another process, which may begin at once."""
        if self._tenure is not None:
            self._tenure.give_up()

    def work_off(self) -> bool:
        """Take the lease and work until no job is left; False when another process has it."""
        tenure = self.tenure()
        if not tenure.lease.acquire():
            return False
        with tenure.held():
            self.work(tenure, Goal(BEGINNING, patient=False))
        return True

    def jobs(self) -> Jobs:
        """Give the jobs of this worker's name."""
        return Jobs(self.databases.state, self.config.worker.name)

    def holder(self) -> Holder | None:
        """Give who holds the lease."""
        worker = self.config.worker
        return Lease(self.databases.state, worker.name, worker.lease_seconds).holder()

    def checkpoint(self) -> Checkpoint | None:
        """Give the last committed checkpoint."""
        return Checkpoints(self.databases.state).load(self.config.worker.name)

    def sides(self) -> Sides:
        """Give what `verify` compares."""
        databases, worker = self.databases, self.config.worker
        return Sides(
            self.registry, databases.raw, databases.derived, databases.state, worker.name, worker.max_records
        )

    def watch(self) -> Watch:
        """Give what waits for the worker of this name; an idle one saves its position only now and then."""
        patience = self.config.worker.idle_save_seconds + WATCH_SECONDS
        return Watch(self.holder, self.sides().checkpoint, patience)

    def goal_of_now(self) -> Goal:
        """Give the goal that is reached behind the newest operation of now."""
        return Goal(deployment.head(self.databases.raw.client))

    def wanted(self) -> Wanted:
        """Give what is plugged in and how it starts."""
        worker, written = (
            self.config.worker,
            {"derived": self.databases.derived, "state": self.databases.state},
        )
        deployment.refuse_loop(self.databases.raw, written)
        deployment.refuse_unsuitable(self.databases.raw, self.registry.read)
        return Wanted(
            worker=worker.name,
            transforms=self.registry.transforms,
            source=deployment.identify(self.databases.raw),
            start=Start() if worker.start == "backfill" else start_of(worker.start, self.databases.raw),
            backfill=worker.start == "backfill",
            rebuild=worker.on_change == "rebuild",
            rollups=self._fingerprints(),
        )

    def _wiring(self, stores: Stores) -> Wiring:
        databases, worker = self.databases, self.config.worker
        return Wiring(
            stores=stores,
            documents=Documents(databases.raw, worker.batch_bytes),
            by_source=self.registry.by_source,
            new_source=lambda: Stream(
                databases.raw,
                self.registry.sources,
                carry_bytes=worker.carry_bytes,
                batch_changes=worker.batch_changes,
                batch_bytes=worker.batch_bytes,
            ),
            newest=lambda: deployment.newest(databases.raw.client),
            oldest=lambda: deployment.oldest_if_known(databases.raw.client),
            prepare=self._prepare,
            shelf=MongoShelf(databases.derived, databases.state, self._indexes()),
            draw=lambda: token_hex(4),
            told=lambda documents: self.slow.over(self.commits.behind(documents)),
            groups=self._reader() if self.registry.rollups else None,
            rollups=self._fingerprints(),
            triggers=self._triggers(),
            new_publisher=self._publisher if self.config.pubsub else None,
            publishes=bool(self.published),
            is_tidy=lambda: not self._pending().has_others(list(self.registry.rollups)),
            tidy=lambda session: self._pending().forget(list(self.registry.rollups), session),
            observer=self.observer,
            look=None if self.observer is SILENT else self._look,
        )

    def _look(self) -> Standing:
        """Look up what is left to be done."""
        databases, name = self.databases, self.config.worker.name
        return Standing(
            newest=deployment.newest(databases.raw.client),
            oldest=deployment.oldest_if_known(databases.raw.client),
            letters=Letters(databases.state, name).count(),
            pending_groups=self._pending().count(),
            refused=count_refused(databases.state, name),
            jobs=self.jobs().open(),
            held=self.outbox().held(),
        )

    def _publisher(self) -> Publisher:
        """Give what publishes to Pub/Sub, whose library takes a second to import."""
        from distributary.pubsub.publisher import PubSubPublisher  # noqa: PLC0415 - only who publishes waits for it

        settings = self.config.pubsub
        assert settings is not None
        return PubSubPublisher(settings.project, settings.endpoint, settings.in_flight_bytes)

    def _pending(self) -> Pending:
        """Give the groups of rollups that are to be computed."""
        return Pending(self.databases.state, self.config.worker.name)

    def _triggers(self) -> Triggers | None:
        """Give what follows changes for triggers, if there are any."""
        plugged, worker, databases = self.registry.triggers, self.config.worker, self.databases
        if not plugged:
            return None
        return Triggers(
            plugged=plugged,
            new_source=lambda: ChangeStream(
                databases.raw,
                list(plugged.values()),
                batch_changes=worker.batch_changes,
                batch_bytes=worker.batch_bytes,
            ),
            max_effects=worker.max_records,
            start=Start() if worker.start == "backfill" else start_of(worker.start, databases.raw),
        )

    def _fingerprints(self) -> dict[str, str]:
        return {name: each.fingerprint for name, each in self.registry.rollups.items()}

    def _reader(self) -> Reader:
        """Give what computes pending groups beside the stream."""
        return Reader(self.databases.derived, self.registry.rollups, self._pending(), passes)

    def _prepare(self) -> None:
        """Create what the worker writes to: derived collections, and the indexes of its own state."""
        prepare(self.databases.derived, self._indexes().items())
        prepare_rollups(self.databases.derived, self._rollup_indexes().items())
        refuse_bad(self.databases.derived, self.registry.rollups, self.registry.places, passes)
        self._pending().prepare()
        Letters(self.databases.state, self.config.worker.name).prepare()
        Jobs(self.databases.state, self.config.worker.name).prepare()
        if self.published:
            self._untold().prepare()
        if self.registry.triggers or self.published:
            self.outbox().prepare()

    def _indexes(self) -> dict[str, Indexes]:
        """Give the indexes of each declared collection, with those by which rollups find their groups' records."""
        indexes: dict[str, Indexes] = {
            name: [index_keys(spec) for spec in collection.indexes]
            for name, collection in self.registry.collections.items()
        }
        for rollup in self.registry.rollups.values():
            indexes[rollup.over.name] = with_groups(indexes[rollup.over.name], rollup)
        return indexes

    def _rollup_indexes(self) -> dict[str, Indexes]:
        """Give the indexes of each rollup."""
        rollups = self.registry.rollups.items()
        return {name: [index_keys(spec) for spec in rollup.indexes] for name, rollup in rollups}

    def _settings(self) -> Settings:
        worker = self.config.worker
        return Settings(
            bounds=Bounds(
                changes=worker.batch_changes,
                bytes=worker.batch_bytes,
                read_ahead=worker.read_ahead_batches,
                linger=worker.linger_milliseconds / 1000,
            ),
            idle_save=worker.idle_save_seconds,
            max_records=worker.max_records,
            scan_documents=worker.scan_documents,
            pace=Limits(
                worker.job_documents_per_second, worker.job_max_lag_seconds, worker.job_min_headroom_seconds
            ),
            purge=worker.on_source_drop == "purge",
            resync=worker.on_lost_position == "resync",
            breaker=(self.config.dead_letters.max_in_window, self.config.dead_letters.window),
            outbox=outbox_bounds(self.config.pubsub),
        )


def with_groups(indexes: Indexes, rollup: Rollup) -> Indexes:
    """Give a collection's indexes with one that begins with the fields of a rollup's groups."""
    fields = set(rollup.paths)
    if any({name for name, _ in keys[: len(fields)]} == fields for keys in indexes):
        return indexes
    return [*indexes, [(path, 1) for path in rollup.paths]]
