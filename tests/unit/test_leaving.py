"""The end of a process that was asked to stop, where its work failed and something else hangs."""

import subprocess
import sys
from textwrap import dedent

import pytest

from distributary.cli.leaving import Leaving

#: A worker that is asked to stop, whose work fails, and whose end hangs.
FAILING = """
    import time
    from threading import Event
    from types import SimpleNamespace
    from distributary.cli import run
    from distributary.cli.leaving import Leaving
    from distributary.engine.observer import SILENT
    from distributary.errors import PositionLost

    run.LEAVE_SECONDS = 0.3
    stop = Event()
    settings = SimpleNamespace(worker=SimpleNamespace(shutdown_seconds=0.5))
    assembled = SimpleNamespace(config=settings, stop=stop, observer=SILENT)
    leaving = Leaving()

    stopping, within = Event(), leaving.within

    def noted(seconds):
        within(seconds)
        stopping.set()

    leaving.within = noted

    def work():
        stop.set()
        stopping.wait()
        raise PositionLost("The position is gone.", "Begin anew.")

    assert run._supervise(work, assembled, leaving)
    assert leaving.left() <= 0.6
    {then}
"""


@pytest.mark.parametrize("then", ["time.sleep(60)", "raise SystemExit(leaving.code)"])
def test_a_failure_is_told_however_the_process_ends(then: str) -> None:
    """It is on stderr with its cure once; where unwinding hangs the process ends in time, with the failure's code."""
    code = dedent(FAILING).format(then=then)
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 4, ended.stderr
    assert ended.stderr.count("The position is gone.") == 1
    assert ended.stderr.count("cure: Begin anew.") == 1


def test_nothing_bounds_who_was_not_asked_to_stop() -> None:
    """What ends by itself may take its time to tidy up, and its code is 0."""
    leaving = Leaving()
    assert leaving.left() == float("inf")
    assert leaving.code == 0
