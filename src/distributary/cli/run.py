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
from distributary.assemble import Assembled, connect, recording, registry, topics
from distributary.cli.common import config_option, open_config
from distributary.config import Http, PubSub
from distributary.derive.registry import Registry
from distributary.endpoint import Endpoint, Page
from distributary.engine.observer import Phase
from distributary.engine.worker import Goal
from distributary.errors import Failed
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
GIVE_UP_SECONDS = 2.0


@click.command("run")
@config_option
@click.option(
    "--until-caught-up",
    is_flag=True,
    help="End with 0 when the head seen at the start is reached, and everything is published.",
)
def command(config_path: Path | None, until_caught_up: bool) -> None:  # noqa: FBT001 - click passes flags
    """Keep derived collections equal to their transforms, always on.

    SIGTERM and Ctrl-C finish the batch at hand, save the position and leave; a second one leaves at once.
    """
    config = open_config(config_path)
    plugged = registry(config)
    recorded = recording(plugged)
    with serving(config.http, recorded), connect(config, recorded.elected) as databases:
        assembled = Assembled(config, databases, plugged, observer=recorded)
        _stop_on_signals(assembled)
        _look_at_topics(config.pubsub, plugged)
        now = assembled.goal_of_now()
        _supervise(lambda: assembled.serve(now if until_caught_up else Goal()), assembled)


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


def _supervise(work: Callable[[], None], assembled: Assembled) -> None:
    """Work in a thread of its own, so that a signal never meets a lock; raises what the work raised."""
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            failed.append(error)

    thread = Thread(target=guarded, name="worker", daemon=True)
    thread.start()
    while thread.is_alive() and not assembled.stop.is_set():
        thread.join(TICK)
    if thread.is_alive():
        assembled.observer.enter(Phase.STOPPING)
        logger.info("stopping")
    thread.join(assembled.config.worker.shutdown_seconds)
    if thread.is_alive():
        leaving = Thread(target=assembled.give_up, daemon=True)
        leaving.start()
        leaving.join(GIVE_UP_SECONDS)
        raise Failed(
            f"The batch at hand was not committed within {assembled.config.worker.shutdown_seconds:g} s.",
            "Nothing is lost: it is done again at the next start. Raise worker.shutdown_seconds to wait longer.",
        )
    if failed:
        raise failed[0]


def _stop_on_signals(assembled: Assembled) -> None:
    def stop(_number: int, _: FrameType | None) -> None:
        assembled.stop.set()
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
