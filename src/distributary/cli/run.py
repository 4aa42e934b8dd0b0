"""`distributary run`: the always-on worker."""

import signal
from pathlib import Path
from types import FrameType

import click

from distributary import log
from distributary.assemble import Assembled, connect, registry
from distributary.cli.common import config_option, open_config
from distributary.engine.worker import Goal
from distributary.errors import LeaseLost

logger = log.get_logger()


@click.command("run")
@config_option
@click.option(
    "--until-caught-up", is_flag=True, help="End with 0 when the head seen at the start is reached."
)
def command(config_path: Path | None, until_caught_up: bool) -> None:  # noqa: FBT001 - click passes flags
    """Keep derived collections equal to their transforms, always on.

    SIGTERM and Ctrl-C finish the batch at hand, save the position and leave; a second one leaves at once.
    """
    config = open_config(config_path)
    plugged = registry(config)
    with connect(config) as databases:
        assembled = Assembled(config, databases, plugged)
        _stop_on_signals(assembled)
        goal = assembled.goal_of_now() if until_caught_up else Goal()
        _work(assembled, goal)


def _work(assembled: Assembled, goal: Goal) -> None:
    """Hold the lease and work; who loses the lease stands by for it again."""
    while not assembled.stop.is_set():
        tenure = assembled.tenure()
        if not tenure.wait():
            return
        with tenure.held():
            try:
                assembled.work(tenure, goal)
            except LeaseLost as error:
                logger.warning("stepped back", reason=error.message)
                continue
        if goal.time is not None and not tenure.over.is_set():
            return


def _stop_on_signals(assembled: Assembled) -> None:
    def stop(number: int, _: FrameType | None) -> None:
        logger.info("stopping", signal=signal.Signals(number).name)
        assembled.stop.set()
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
