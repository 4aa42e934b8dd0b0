"""`distributary demo` as a user runs it: a process, its output, its exit code and what it leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distributary.embedded import find_mongod
from distributary.errors import EnvironmentFault
from distributary.testing.server import missing
from tests.conftest import eventually

COMMAND = [sys.executable, "-m", "distributary", "demo", "--scale", "0.1"]
VERIFIED = re.compile(
    r"^Verified: [\d,]+ derived records in 12 collections equal a recomputation from [\d,]+ raw documents\.$",
    re.MULTILINE,
)


@pytest.fixture(autouse=True)
def _mongod() -> None:
    """Skip where there is no mongod, but never in CI."""
    try:
        find_mongod()
    except EnvironmentFault as fault:
        missing(str(fault))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Give the folder in which the demo makes its own; what is in it afterwards was left behind."""
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    """Give an environment with a source that the demo must not touch."""
    unreachable = {
        "DISTRIBUTARY_SOURCE__URI": "mongodb://127.0.0.1:9/",
        "DISTRIBUTARY_SOURCE__DATABASE": "mine",
    }
    return {**os.environ, **unreachable, "TMPDIR": str(home)}


def processes_of(home: Path) -> list[str]:
    """Give the command lines of processes that use the demo's folder."""
    listing = subprocess.run(["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True, check=True)
    return [line for line in listing.stdout.splitlines() if str(home) in line]


def nothing_is_left(home: Path) -> bool:
    """Tell whether no process and no file of the demo is there any more."""
    return not processes_of(home) and not list(home.iterdir())


@contextmanager
def demo(home: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Start a demo; it has ended when this is left."""
    with subprocess.Popen(
        [*COMMAND, *options], env=environment(home), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Give what the demo prints until a line that has this text."""
    assert process.stdout
    printed = ""
    for line in process.stdout:
        printed += line
        if text in line:
            return printed
    pytest.fail(f"The demo ended without {text!r}:\n{printed}")


def test_json_is_all_that_is_printed_to_standard_output(home: Path) -> None:
    """With `--json` a program can read the answer; the story goes to standard error, and nothing is left."""
    done = subprocess.run(
        [*COMMAND, "--seconds", "1", "--json"],
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["schema"] == 1
    assert answer["verification"]["equal"] is True
    assert len(answer["collections"]) == 12
    assert min(answer["collections"].values()) > 0
    assert answer["verification"]["records"] == sum(answer["collections"].values())
    assert [len(query["answer"]) for query in answer["queries"]] == [3, 3]
    assert_a_day_was_shown(answer["customer"])
    assert VERIFIED.search(done.stderr)
    assert nothing_is_left(home)


def test_the_insurer_shows_a_holder_consent_and_an_abandoned_form(home: Path) -> None:
    """With `--domain insurance`: the policy and the intent came, health went with consent, and an event waits."""
    done = subprocess.run(
        [*COMMAND, "--domain", "insurance", "--seconds", "1", "--json"],
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["verification"]["equal"] is True
    assert len(answer["collections"]) == 13
    assert min(answer["collections"].values()) > 0
    assert answer["verification"]["records"] == sum(answer["collections"].values())
    assert [len(query["answer"]) for query in answer["queries"]] == [3, 3]
    assert_a_members_day_was_shown(answer["customer"])
    assert nothing_is_left(home)


def assert_a_members_day_was_shown(customer: dict[str, Any]) -> None:
    """Check that two reads of one document, and the outbox, show what changed in four raw collections."""
    before, after = customer["before"], customer["after"]
    assert before["_id"] == after["_id"]
    assert len(after["policies"]) == len(before["policies"]) + 1
    assert ("health" in before, "health" in after) == (True, False)
    assert len(after["chats"]) == len(before.get("chats", [])) + 1
    assert after["intents"][-1]["state"] == "abandoned"
    assert len(after["intents"]) == len(before.get("intents", [])) + 1
    assert len(customer["acts"]) == 5
    (event,) = customer["events"]
    assert (event["topic"], event["data"]["customer_id"]) == ("drop-offs", after["_id"])
    assert event["data"]["visit_id"] == after["intents"][-1]["_id"]["visit"]


def assert_a_day_was_shown(customer: dict[str, Any]) -> None:
    """Check that two reads of one document show what changed in three raw collections in between."""
    before, after = customer["before"], customer["after"]
    assert before["_id"] == after["_id"]
    assert before["profile"]["email"] != after["profile"]["email"]
    assert len(after["orders"]) == len(before["orders"]) + 2
    cancelled = [[each["status"] for each in known["orders"]].count("cancelled") for known in (before, after)]
    assert cancelled[1] > cancelled[0]
    assert len(after["sessions"]) == len(before.get("sessions", [])) + 1
    assert len(customer["acts"]) == 5


def test_keep_runs_until_ctrl_c(home: Path) -> None:
    """It says what was verified and answers its questions; with `--keep`, Ctrl-C ends it with 0 and nothing is left."""
    with demo(home, "--seconds", "2", "--keep") as process:
        said = read_until(process, "tail -f")
        assert VERIFIED.search(said)
        assert said.count(".find(") == 2
        assert said.count("db.customer.findOne(") == 1
        assert "lag" in said
        assert "mongodb://127.0.0.1:" in said
        assert processes_of(home)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
    assert nothing_is_left(home)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_leaves_nothing_behind(home: Path, number: signal.Signals) -> None:
    """Whoever loses patience finds no process and no folder afterwards."""
    with demo(home, "--seconds", "60") as process:
        read_until(process, "Writing:")
        process.send_signal(number)
        assert process.wait() == 128 + number
    assert nothing_is_left(home)


def test_a_killed_demo_leaves_nothing_behind_after_a_while(home: Path) -> None:
    """Even SIGKILL leaves no worker and no server running."""
    with demo(home, "--seconds", "60") as process:
        read_until(process, "Writing:")
        process.kill()
        process.wait()
    eventually(lambda: nothing_is_left(home))
