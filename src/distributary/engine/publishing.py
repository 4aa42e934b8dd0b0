"""Publishing: a thread takes what waits in the outbox, topic by topic and in order, until all is confirmed."""

import gc
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from threading import Event, Lock, Thread
from time import perf_counter
from typing import NamedTuple

from pymongo.errors import PyMongoError

from distributary.engine.commit import Committer
from distributary.engine.lanes import Lanes
from distributary.engine.news import News
from distributary.engine.observer import SILENT, Observer, Part
from distributary.engine.retry import Verdict, judge, reason
from distributary.log import get_logger
from distributary.ports.events import Held, Outbox, Publisher, Sent, Waiting
from distributary.ports.source import Stretch
from distributary.quoting import quoting
from distributary.state import EVENTS, UNTOLD, Job

log = get_logger()

#: Messages that are handed over at once, and their bytes; beyond that the client library bounds what is under way.
PAGE_EVENTS = 500
PAGE_BYTES = 8 * 1024 * 1024

#: How long the thread sleeps when nothing can be sent, unless a commit wakes it, and when MongoDB is away, in seconds.
IDLE_SECONDS = 1.0

#: How long the worker waits at a time while too much waits to be published, in seconds.
FULL_SECONDS = 0.1

#: Records in one slice of a job that publishes a collection.
SLICE = 2000

#: A message, and what became of it.
Told = tuple[Waiting, Sent]

#: What comes of events that Pub/Sub does not take, and of an outbox that is full.
NEXT = "they wait in the outbox and are sent again; `distributary check` looks at the topics"
FULL = "nothing is derived until some are published; pubsub.outbox_events and outbox_bytes are the bounds"

#: How long a send that is under way is waited for at the end, in seconds; what it confirms is published again.
CLOSE_SECONDS = 1.5


class Bounds(NamedTuple):
    """What may wait in the outbox before the worker waits, too."""

    events: int
    bytes: int

    def are_reached(self, events: int, size: int) -> bool:
        """Whether so many events of so many bytes are too much."""
        return events >= self.events or size >= self.bytes


UNBOUNDED = Bounds(1 << 62, 1 << 62)


class Backlog:
    """How much waits in the outbox, as far as this process knows; commits add to it and publishing takes from it.

    It is below zero while something was published whose commit is not noted yet.
    """

    def __init__(self, bounds: Bounds, observer: Observer = SILENT) -> None:
        self._bounds = bounds
        self._observer = observer
        self._lock = Lock()
        self._held = Held()
        self._added = 0
        self.grown = Event()

    @property
    def held(self) -> Held:
        """What waits."""
        return Held(max(0, self._held.events), max(0, self._held.bytes))

    @property
    def is_full(self) -> bool:
        """Whether nothing more may be committed before something is published."""
        return self._bounds.are_reached(*self._held)

    def add(self, held: Held) -> None:
        """Note what was committed."""
        if held.events:
            self._change(held.events, held.bytes)
            self.grown.set()

    def take(self, messages: Sequence[Waiting]) -> None:
        """Note what was published or refused."""
        self._change(-len(messages), -sum(each.size for each in messages))

    def count(self, held: Callable[[], Held]) -> None:
        """Count anew, unless a commit comes in between: of one whose end was not told it is not known what it added."""
        added = self._added
        found = held()
        with self._lock:
            if added == self._added:
                self._held = found
                self._observer.waiting(self.held)

    def _change(self, events: int, size: int) -> None:
        with self._lock:
            self._added += events > 0
            self._held = Held(self._held.events + events, self._held.bytes + size)
            self._observer.waiting(self.held)


class Publishing:
    """Publishes what waits, page by page; what is confirmed is removed, and the rest is sent again.

    Of a topic whose messages are not all taken nothing is sent until it has rested, and then its oldest first. What was
    sent and not removed before a crash is sent again, from the oldest on. So a message is late only where it was there
    before.
    """

    def __init__(
        self, outbox: Outbox, publisher: Publisher, backlog: Backlog, observer: Observer = SILENT
    ) -> None:
        self._outbox = outbox
        self._publisher = publisher
        self._backlog = backlog
        self._observer = observer
        self._stop = Event()
        self._died: BaseException | None = None
        self._failing = False
        self._trouble: dict[str, News] = {}
        self._away = News()
        self._lanes = Lanes()
        self._thread = Thread(target=self._guarded, name="publishing", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and the publisher."""
        self._stop.set()
        self._backlog.grown.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)
        self._observer.rest(Part.PUBLISHING)
        self._publisher.close()

    @property
    def is_failing(self) -> bool:
        """Whether nothing that is left was taken when it was sent last."""
        return self._failing

    def check(self) -> None:
        """Raise what the thread died of."""
        if self._died is not None:
            raise self._died

    def _guarded(self) -> None:
        try:
            while not self._stop.is_set():
                self._try()
        except BaseException as error:  # noqa: BLE001 - raised by `check`
            self._died = error

    def _try(self) -> None:
        """Publish a page, or wait for one; what passes by itself is waited out."""
        self._observer.beat(Part.PUBLISHING)
        try:
            page = self._page()
            self._away.ends()
            if page:
                self._publish(page)
            else:
                self._wait()
        except PyMongoError as error:
            if judge(error) is not Verdict.TRANSIENT:
                raise
            if self._away.is_news():
                log.warning("trying again", publishing=True, error=reason(error))
            self._stop.wait(IDLE_SECONDS)

    def _page(self) -> list[Waiting]:
        """Read the oldest messages of one topic after the other, as many as may be held."""
        topics = self._outbox.topics()
        self._lanes.keep(topics)
        self._trouble = {name: each for name, each in self._trouble.items() if name in topics}
        page: list[Waiting] = []
        room = PAGE_BYTES
        for topic in self._lanes.turns(topics):
            limit = self._lanes.limit(topic, PAGE_EVENTS - len(page))
            some = self._outbox.next(topic, limit, room)
            self._lanes.served(topic)
            page += some
            room -= sum(each.size for each in some)
            if len(page) >= PAGE_EVENTS or room <= 0:
                break
        return page

    def _wait(self) -> None:
        """Wait for a commit, or until a topic has rested."""
        self._failing = not self._lanes.are_open
        if not self._failing:
            self._backlog.count(self._outbox.held)
        self._backlog.grown.wait(self._lanes.pause(IDLE_SECONDS))
        self._backlog.grown.clear()

    def _publish(self, page: Sequence[Waiting]) -> None:
        """Send a page; remove what is confirmed, and keep as refused what never will be taken."""
        since = perf_counter()
        sent = self._publisher.send([each.message for each in page])
        when = Stretch(since, perf_counter())
        took = when.end - when.begin
        self._observer.sent(page, sent, took)
        self._observer.spans.sent(page, sent, when)
        gc.collect()  # it is off, and each message of the client library is a cycle of some twenty objects
        left = sum(self._settle(topic, some, took) for topic, some in _by_topic(page, sent).items())
        self._failing = left == len(page)

    def _tell(self, topic: str, left: Sequence[Told]) -> None:
        """Log that a topic does not take messages, when that begins and now and then while it lasts."""
        if self._trouble.setdefault(topic, News()).is_news():
            waiting, error = self._backlog.held.events, _shown(left[0][1])
            log.warning(
                "not published", topic=topic, events=len(left), waiting=waiting, error=error, next=NEXT
            )

    def _settle(self, topic: str, sent: Sequence[Told], took: float) -> int:
        """Note what became of some messages of a topic in a row; gives how many are to be sent again."""
        taken, refused = sum(not what.error for _, what in sent), sum(what.lasting for _, what in sent)
        in_doubt = self._lanes.judge(topic, taken=taken, refused=refused)
        left = [each for each in sent if each[1].error and (in_doubt or not each[1].lasting)]
        if left:
            self._lanes.failed(topic, took)
            self._tell(topic, left)
        else:
            self._lanes.passed(topic)
            if taken and topic in self._trouble:
                del self._trouble[topic]
                log.info("publishing again", topic=topic)
        if len(left) < len(sent):
            self._leave(topic, sent, {id(each) for each, _ in left})
        return len(left)

    def _leave(self, topic: str, sent: Sequence[Told], left: Collection[int]) -> None:
        """Take messages out of the order that are confirmed or refused."""
        if refused := [(each, what) for each, what in sent if what.lasting and id(each) not in left]:
            self._refuse(topic, refused)
        first, last = sent[0][0].id, sent[-1][0].id
        self._outbox.remove(topic, first, last, [each.id for each, _ in sent if id(each) in left])
        self._backlog.take([each for each, _ in sent if id(each) not in left])

    def _refuse(self, topic: str, refused: Sequence[Told]) -> None:
        """Keep messages that never will be taken, and tell of them in one line."""
        for each, what in refused:
            self._outbox.refuse(each.id, _shown(what))
        first, why = refused[0]
        log.error("event refused", events=len(refused), topic=topic, of=first.of, reason=_shown(why))


def _by_topic(page: Sequence[Waiting], sent: Sequence[Sent]) -> Mapping[str, Sequence[Told]]:
    """Give what became of the messages of each topic, in their order."""
    found: dict[str, list[Told]] = {}
    for each, what in zip(page, sent, strict=True):
        found.setdefault(each.message.topic, []).append((each, what))
    return found


def _shown(sent: Sent) -> str:
    """Give why a message was not taken; what Pub/Sub says behind its code may quote the message."""
    code, colon, message = sent.error.partition(": ")
    return quoting(code + colon, message) if message else sent.error


class Outgoing:
    """What the worker's loop knows of publishing; it waits, visibly, while too much is not published."""

    def __init__(
        self,
        backlog: Backlog,
        published: Publishing | None,
        wait: Callable[[float], object],
        observer: Observer = SILENT,
    ) -> None:
        self._backlog = backlog
        self._published = published
        self._wait = wait
        self._observer = observer
        self._waits = False

    @property
    def is_done(self) -> bool:
        """Whether everything is published that can be."""
        return self._published is None or not self._backlog.held.events

    @property
    def is_stuck(self) -> bool:
        """Whether publishing waits for Pub/Sub."""
        return self._published is not None and self._published.is_failing

    def is_open(self) -> bool:
        """Whether more may be committed; waits for a moment where it may not. Raises what publishing died of."""
        if self._published is not None:
            self._published.check()
        full = self._backlog.is_full
        if full != self._waits:
            self._tell(full=full)
        self._waits = full
        if full:
            self._wait(FULL_SECONDS)
        return not full

    def _tell(self, *, full: bool) -> None:
        held = self._backlog.held
        self._observer.blocked(f"waiting for publishing: {held.events:,} events wait already" if full else "")
        if full:
            log.warning("waiting for publishing", events=held.events, bytes=held.bytes, next=FULL)
        else:
            log.info("going on", events=held.events, bytes=held.bytes)


class Tellings:
    """Carries out jobs that publish records of a derived collection, or events again that were refused.

    A record is told of as it is in the transaction that tells of it, so that it may be told of at any time.
    """

    def __init__(self, committer: Committer) -> None:
        self._committer = committer

    def taken(self, job: Job) -> Job:
        """Give a job as it is to be gone on with."""
        return job

    def run(self, job: Job) -> Job:
        """Publish the next records, and give the job as it is then."""
        if job.stage == EVENTS:
            return self._committer.send_again(job)
        if not self._committer.stores.outbox.tells(job.source):
            return self._over(replace(job, failure=f"The worker runs without a topic for {job.source!r}."))
        return self._differing(job) if job.stage.startswith(UNTOLD) else self._committer.show(job, SLICE)

    def _differing(self, job: Job) -> Job:
        """Publish what differed in a shadow, chunk by chunk; the job has the rest of the one at hand."""
        untold, shadow = self._committer.stores.untold, job.stage.removeprefix(UNTOLD)
        if not job.keys:
            chunk = untold.next(shadow, job.after)
            if chunk is None:
                self._committer.aside(lambda session: untold.forget(shadow, session))
                return self._over(job)
            job = replace(job, keys=chunk.keys, after=chunk.behind)
        return self._committer.show(job, SLICE, ends=False)

    def _over(self, job: Job) -> Job:
        done = replace(job, done=True)
        self._committer.progress(done, self._committer.checkpoint)
        return done
