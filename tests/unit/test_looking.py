"""Looking up now and then what is left to be done."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from bson import Timestamp
from pymongo.errors import AutoReconnect
from structlog.testing import capture_logs

from distributary.engine.looking import Looking
from distributary.engine.observer import Observer, Standing
from distributary.errors import EnvironmentFault
from tests.conftest import eventually

STANDING = Standing(Timestamp(5, 1), None, {}, 0, 0, ())


class Told(Observer):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.standings: list[Standing] = []

    def looked(self, standing: Standing) -> None:
        """Keep it."""
        self.standings.append(standing)


@contextmanager
def looking(script: list[Exception | None], told: Told) -> Iterator[None]:
    """Look with these outcomes, one after the other; behind the last one all is well."""

    def look() -> Standing:
        error = script.pop(0) if script else None
        if error is not None:
            raise error
        return STANDING

    thread = Looking(look, told, seconds=0.01)
    thread.start()
    try:
        yield
    finally:
        thread.close()


def test_what_is_looked_up_is_told_again_and_again() -> None:
    """The observer is told at once, and then every few seconds until the end."""
    told = Told()
    with looking([], told):
        eventually(lambda: len(told.standings) >= 3)
    seen = len(told.standings)
    assert told.standings == [STANDING] * seen


def test_an_outage_that_lasts_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that scrolled out of sight is followed by another one, as with every trouble that lasts."""
    monkeypatch.setattr("distributary.engine.news.AGAIN_SECONDS", 0.0)
    outage: list[Exception | None] = [AutoReconnect("away")] * 3
    told = Told()
    with capture_logs() as log, looking(outage, told):
        eventually(lambda: told.standings)
    assert [line["error"] for line in log] == ["away"] * 3


def test_an_outage_is_logged_once_and_waited_out() -> None:
    """While MongoDB is away, or is not what it should be yet, there is one line, and then looking goes on."""
    told = Told()
    outage = [AutoReconnect("away"), EnvironmentFault("is a standalone"), AutoReconnect("away")]
    with capture_logs() as log, looking([None, *outage, None, AutoReconnect("again")], told):
        eventually(lambda: len(told.standings) >= 3)
    assert [line["error"] for line in log] == ["away", "again"]
