"""`distributary run`: the always-on worker."""

import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import FrameType

import click

from distributary import log
from distributary.assemble import Assembled, connect, recording, registry, topics, tracing
from distributary.cli.common import config_option, open_config
from distributary.cli.failures import tell
from distributary.cli.leaving import Leaving
from distributary.config import Http, PubSub
from distributary.derive.registry import Registry
from distributary.endpoint import Endpoint, Page
from distributary.engine.observer import Phase
from distributary.engine.wiring import Goal
from distributary.health import Verdict
from distributary.operate.topics import published
from distributary.pubsub.standing import refuse
from distributary.recording import CONTENT_TYPE, Recording

logger = log.get_logger()

#: Topics that are asked for at once.
AT_ONCE = 8

#: How often the main thread looks whether the work has ended, in seconds; signals are handled in between.
TICK = 0.2

#: Seconds for giving the lease back when the work does not end.
GIVE_UP_SECONDS = 0.5

#: Seconds behind those for the work after which the process has ended, whatever still holds it up.
LEAVE_SECONDS = 1.5


@click.command("run")
@config_option
@click.option(
    "--until-caught-up",
    is_flag=True,
    help="End with 0 when the head seen at the start is reached, and everything is published.",
)
def command(config_path: Path | None, until_caught_up: bool) -> int:  # noqa: FBT001 - click passes flags
    """Keep derived collections equal to their transforms, always on.

    SIGTERM and Ctrl-C finish the batch at hand, save the position and leave; a second one leaves at once.
    """
    config = open_config(config_path)
    plugged, leaving = registry(config), Leaving()
    with tracing(config, leaving.left) as spans:
        recorded = recording(plugged, spans)
        with serving(config.http, recorded), connect(config, recorded.elected) as databases:
            assembled = Assembled(config, databases, plugged, observer=recorded)
            _stop_on_signals(assembled)
            with assembled.telling(recorded.health):
                ended = _supervise(
                    lambda: _work(assembled, until_caught_up=until_caught_up), assembled, leaving
                )
            if not ended:
                leaving.now()
    return leaving.code


def _work(assembled: Assembled, *, until_caught_up: bool) -> None:
    """Serve; raises at once when MongoDB does not answer at the start, or nothing can be published."""
    _look_at_topics(assembled.config.pubsub, assembled.registry)
    now = assembled.goal_of_now()
    assembled.serve(now if until_caught_up else Goal())


@contextmanager
def serving(http: Http, recorded: Recording) -> Iterator[None]:
    """Answer for metrics and health, unless the port is 0; raises `EnvironmentFault` where that is not possible."""
    if not http.port:
        yield
        return
    endpoint = Endpoint(
        http.host,
        http.port,
        {
            "/metrics": lambda: Page(200, CONTENT_TYPE, recorded.scraped()),
            "/healthz": lambda: _page(recorded.health.healthy()),
            "/readyz": lambda: _page(recorded.health.ready()),
        },
    )
    endpoint.start()
    logger.info("listening", host=http.host, port=http.port, pages=["/metrics", "/healthz", "/readyz"])
    try:
        yield
    finally:
        endpoint.close()


def _page(verdict: Verdict) -> Page:
    body = json.dumps(verdict.why) + "\n"
    return Page(200 if verdict.good else 503, "application/json", body.encode())


def _look_at_topics(pubsub: PubSub | None, plugged: Registry) -> None:
    """Refuse topics that nothing can be published to; raises `EnvironmentFault`."""
    wanted = published(plugged)
    if pubsub is not None and wanted:
        with topics(pubsub) as asked, ThreadPoolExecutor(AT_ONCE) as pool:
            refuse(pool.map(asked.look, wanted))
    elif wanted:
        logger.warning("nothing is published", topics=sorted(wanted), reason="there is no pubsub.project")


def _supervise(work: Callable[[], None], assembled: Assembled, leaving: Leaving) -> bool:
    """Work in a thread of its own, so that a signal never meets a lock; tells what the work raised.

    That is told before anything else is ended, which may hang, and the process ends with its exit code.

    Gives False when it does not end in time though the process is asked to stop. Then it is given up: it is not
    committed, so that nothing is lost, and the next holder of the lease does it.
    """
    patience = assembled.config.worker.shutdown_seconds
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            failed.append(error)

    thread = Thread(target=guarded, name="worker", daemon=True)
    thread.start()
    while thread.is_alive() and not assembled.stop.is_set():
        thread.join(TICK)
    if thread.is_alive():
        assembled.observer.enter(Phase.STOPPING)
        logger.info("stopping")
        leaving.within(patience + LEAVE_SECONDS)
    thread.join(patience)
    if thread.is_alive():
        giving_up = Thread(target=assembled.give_up, daemon=True)
        giving_up.start()
        giving_up.join(GIVE_UP_SECONDS)
        logger.warning("batch given up", seconds=patience, reason="it did not end in time, and is done again")
        return False
    for error in failed:
        if isinstance(error, BrokenPipeError):
            raise error
        leaving.code = tell(error)
    return True


def _stop_on_signals(assembled: Assembled) -> None:
    def stop(_number: int, _: FrameType | None) -> None:
        assembled.stop.set()
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
