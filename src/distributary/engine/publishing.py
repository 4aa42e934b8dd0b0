"""Publishing: a thread takes what waits in the outbox, in order, until every message is confirmed."""

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Event, Lock, Thread
from time import perf_counter
from typing import NamedTuple

from pymongo.errors import PyMongoError
from tenacity import Retrying, retry_if_result, stop_when_event_set, wait_random_exponential

from distributary.engine.commit import Committer
from distributary.engine.observer import SILENT, Observer, Part
from distributary.engine.retry import Verdict, judge, reason
from distributary.log import get_logger
from distributary.ports import Held, Outbox, Publisher, Sent, Waiting
from distributary.state import EVENTS, Job

log = get_logger()

#: Messages that are handed over at once, and their bytes; beyond that the client library bounds what is under way.
PAGE_EVENTS = 500
PAGE_BYTES = 8 * 1024 * 1024

#: How long the thread sleeps when nothing waits, unless a commit wakes it, and when MongoDB is away, in seconds.
IDLE_SECONDS = 1.0

#: Seconds between two tries while messages are not confirmed, at most.
MOST_SECONDS = 5.0

#: Messages of which not all can be bad in themselves.
MANY = 100

#: How long the worker waits at a time while too much waits to be published, in seconds.
FULL_SECONDS = 0.1

#: Records in one slice of a job that publishes a collection.
SLICE = 2000

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
    """Publishes what waits, page by page; a page is removed once each of its messages is confirmed.

    What was sent and not removed before a crash is sent again, from the oldest on, so that a message is late only
    where it was there before.
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
        self._patient = Retrying(
            retry=retry_if_result(bool),
            wait=wait_random_exponential(multiplier=0.2, max=MOST_SECONDS),
            sleep=self._pause,
            stop=stop_when_event_set(self._stop),
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )
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
        """Whether what was sent last was not taken."""
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
            page = self._outbox.next(PAGE_EVENTS, PAGE_BYTES)
            if page:
                self._publish(page)
            else:
                self._backlog.count(self._outbox.held)
                self._backlog.grown.wait(IDLE_SECONDS)
                self._backlog.grown.clear()
        except PyMongoError as error:
            if judge(error) is not Verdict.TRANSIENT:
                raise
            log.warning("trying again", publishing=True, error=reason(error))
            self._stop.wait(IDLE_SECONDS)

    def _publish(self, page: Sequence[Waiting]) -> None:
        """Send a page until each message is confirmed or refused, and remove it; at the end, as far as it is."""
        left = list(page)

        def send() -> list[Waiting]:
            nonlocal left
            left = self._send(left)
            return left

        self._patient(send)
        done = page[: page.index(left[0])] if left else page
        if done:
            self._outbox.remove(done[0].id, done[-1].id)
            self._backlog.take(done)

    def _pause(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def _send(self, messages: Sequence[Waiting]) -> list[Waiting]:
        """Send messages, and give what is to be sent again; what never will be taken is kept as refused."""
        self._observer.beat(Part.PUBLISHING)
        since = perf_counter()
        sent = self._publisher.send([each.message for each in messages])
        self._observer.sent(messages, sent, perf_counter() - since)
        gc.collect()  # it is off, and each message of the client library is a cycle of some twenty objects
        failed = [(each, what) for each, what in zip(messages, sent, strict=True) if what.error]
        left = failed if _is_all(failed, messages) else [each for each in failed if not each[1].lasting]
        for each, what in failed if len(left) < len(failed) else ():
            if what.lasting:
                self._outbox.refuse(each.id, what.error)
                log.error("event refused", topic=each.message.topic, of=each.of, reason=what.error)
        self._tell(left)
        return [each for each, _ in left]

    def _tell(self, left: Sequence[tuple[Waiting, Sent]]) -> None:
        if left:
            topics = Counter(each.message.topic for each, _ in left)
            waiting = self._backlog.held.events
            log.warning("not published", topics=dict(topics), waiting=waiting, error=left[0][1].error)
        elif self._failing:
            log.info("publishing again")
        self._failing = bool(left)


def _is_all(failed: Sequence[tuple[Waiting, Sent]], messages: Sequence[Waiting]) -> bool:
    """Whether every one of many messages is refused: that is a topic's fault, and not theirs."""
    return len(failed) == len(messages) >= MANY and all(what.lasting for _, what in failed)


class Outgoing:
    """What the worker's loop knows of publishing; it waits, visibly, while too much is not published."""

    def __init__(
        self, backlog: Backlog, published: Publishing | None, wait: Callable[[float], object]
    ) -> None:
        self._backlog = backlog
        self._published = published
        self._wait = wait
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
        if full:
            log.warning("waiting for publishing", events=held.events, bytes=held.bytes)
        else:
            log.info("going on", events=held.events, bytes=held.bytes)


class Tellings:
    """Carries out jobs that publish records of a derived collection, or events again that were refused."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer

    def taken(self, job: Job) -> Job:
        """Give a job as it is to be gone on with."""
        return job

    def run(self, job: Job) -> Job:
        """Publish the next records, and give the job as it is then."""
        if job.stage == EVENTS:
            return self._committer.send_again(job)
        if self._committer.stores.outbox.tells(job.source):
            return self._committer.show(job, SLICE)
        failed = replace(job, done=True, failure=f"The worker runs without a topic for {job.source!r}.")
        self._committer.progress(failed, self._committer.checkpoint)
        return failed
