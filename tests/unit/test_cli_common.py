"""The command line's skeleton: verbs, exit codes, answers, progress."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from socket import socket
from types import ModuleType
from typing import Any, NamedTuple
from uuid import UUID

import click
import pytest
import structlog
from bson import Decimal128, Int64, ObjectId, Timestamp
from pymongo import MongoClient
from pymongo.errors import ConfigurationError as DriverConfigurationError
from pymongo.errors import InvalidURI, OperationFailure
from rich.console import Console

from distributary.cli import VERBS, Verb, command_line, distributary
from distributary.cli.common import config_option, console, emit_json, json_option, open_config, progress
from distributary.cli.progress import LINE_SECONDS, Bar, Lines
from distributary.errors import (
    ConfigurationError,
    DistributaryError,
    EnvironmentFault,
    Failed,
    Fault,
    LeaseLost,
    PositionLost,
)

SECRET = "s3cret"  # a password
URI = f"mongodb://user:{SECRET}@127.0.0.1/"


class Outcome(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


Try = Callable[..., Outcome]


@pytest.fixture
def attempt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Try:
    """Run `distributary fake` with a command or a function in place of the verb."""

    def run_it(verb: click.Command | Callable[[], object], *arguments: str) -> Outcome:
        module = ModuleType("fake_verb")
        module.command = verb if isinstance(verb, click.Command) else click.command()(verb)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "fake_verb", module)
        monkeypatch.setitem(VERBS, "fake", Verb("fake_verb", "Do as told."))
        return Outcome(command_line(["fake", *arguments]), *capsys.readouterr())

    return run_it


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Leave the process's log as it was."""
    yield
    structlog.reset_defaults()


def raising(error: BaseException) -> Callable[[], None]:
    """Give a verb that fails."""

    def verb() -> None:
        raise error

    return verb


def test_the_verbs_are_listed_without_importing_them() -> None:
    """`--help` names each verb and imports neither a verb nor the driver."""
    code = (
        "import sys; from distributary.cli import command_line; code = command_line(['--help']);"
        "print([name for name in sys.modules if name.startswith(('distributary.cli.', 'pymongo.'))], code)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(verb in out for verb in ("run", "verify", "check", "status", "dead-letters", "demo"))
    assert out.splitlines()[-1] == "[] 0"


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` tells the version and ends well."""
    assert command_line(["--version"]) == 0
    assert capsys.readouterr().out.startswith("distributary, version ")


def test_an_unknown_verb_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """A verb that does not exist ends with 2 and a line."""
    assert command_line(["nope"]) == 2
    assert "nope" in capsys.readouterr().err


def test_an_unknown_option_is_a_usage_error(attempt: Try) -> None:
    """An option that does not exist ends with 2 and no traceback."""
    outcome = attempt(lambda: None, "--nope")
    assert outcome.code == 2
    assert "--nope" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(("answer", "code"), [(None, 0), (0, 0), (1, 1), (4, 4)])
def test_a_verb_returns_its_exit_code(attempt: Try, answer: int | None, code: int) -> None:
    """What the verb's function returns is the exit code; nothing is 0."""
    assert attempt(lambda: answer) == (code, "", "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DistributaryError("It broke.", "Mend it."), 1),
        (Failed("It broke.", "Mend it."), 1),
        (LeaseLost("It broke.", "Mend it."), 1),
        (EnvironmentFault("It broke.", "Mend it."), 3),
        (PositionLost("It broke.", "Mend it."), 4),
    ],
)
def test_errors_have_a_line_a_cure_and_an_exit_code(
    attempt: Try, error: DistributaryError, code: int
) -> None:
    """An error of ours is told in two lines on stderr."""
    assert attempt(raising(error)) == (code, "", "error: It broke.\n  cure: Mend it.\n")


def test_every_configuration_fault_is_told(attempt: Try) -> None:
    """Faults are told one by one, each with its place and cure, and end with 2."""
    error = ConfigurationError([Fault("a.b", "is bad.", "Do c."), Fault("d:3", "is worse.", "Do e.")])
    outcome = attempt(raising(error))
    assert outcome.code == 2
    assert outcome.err == "error: a.b: is bad.\n  cure: Do c.\nerror: d:3: is worse.\n  cure: Do e.\n"


def test_an_unreachable_server_is_the_environment_s_fault(attempt: Try) -> None:
    """A closed port ends with 3, names the address, and shows neither topology nor credentials."""
    with socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"

        def ping() -> None:
            with MongoClient[Any](f"mongodb://u:{SECRET}@{address}/?serverSelectionTimeoutMS=100") as client:
                client.admin.command("ping")

        outcome = attempt(ping)
    assert outcome.code == 3
    assert address in outcome.err
    assert len(outcome.err.splitlines()) == 2
    assert "Topology" not in outcome.err
    assert SECRET not in outcome.err


INSERT = 'not authorized on raw to execute command { insert: "c", documents: [ { name: "Ann" } ] }'


@pytest.mark.parametrize(
    ("code", "message", "told"),
    [
        (18, "Authentication failed.", "MongoDB refused the user or the password."),
        (13, INSERT, "A privilege is missing: not authorized on raw to execute command insert."),
        (13, "command find requires authentication", "command find requires authentication."),
        (40573, "The $changeStream stage is only supported on replica sets", "not a replica set"),
    ],
)
def test_a_refusal_is_the_environment_s_fault(attempt: Try, code: int, message: str, told: str) -> None:
    """Bad credentials, missing privileges and a standalone server end with 3 and a cure, without any data."""
    outcome = attempt(raising(OperationFailure(message, code, {"ok": 0.0, "errmsg": message, "code": code})))
    assert outcome.code == 3
    assert told in outcome.err
    assert "  cure: " in outcome.err
    assert "Ann" not in outcome.err


@pytest.mark.parametrize(
    "error", [InvalidURI(f'Bad database name "{SECRET}"'), DriverConfigurationError("No such host.")]
)
def test_a_bad_uri_is_a_configuration_fault(attempt: Try, error: Exception) -> None:
    """What the driver refuses in a connection string ends with 2, without quoting a part of it."""
    outcome = attempt(raising(error))
    assert outcome.code == 2
    assert SECRET not in outcome.err


def test_an_unexpected_error_is_told_with_its_traceback(attempt: Try) -> None:
    """A fault of ours ends with 1, with what is needed to report it but no credentials."""
    outcome = attempt(raising(KeyError(URI)))
    assert outcome.code == 1
    assert outcome.err.startswith("error: unexpected KeyError: ")
    assert "Traceback (most recent call last):" in outcome.err
    assert "  cure: " in outcome.err
    assert SECRET not in outcome.err


def test_other_refusals_of_the_server_are_unexpected(attempt: Try) -> None:
    """An error of the server that has no known cure is shown whole."""
    outcome = attempt(raising(OperationFailure("boom", 8)))
    assert (outcome.code, "Traceback" in outcome.err) == (1, True)


def test_an_interrupt_has_no_traceback(attempt: Try) -> None:
    """Ctrl-C ends with 130, quietly."""
    outcome = attempt(raising(KeyboardInterrupt()))
    assert (outcome.code, outcome.err.strip()) == (130, "")


def child(body: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start the command line with a verb whose body is given."""
    code = (
        "import sys, click, types; from distributary.cli import VERBS, Verb, main\n"
        f"def body():\n    {body}\n"
        "module = types.ModuleType('fake_verb'); module.command = click.command()(body)\n"
        "sys.modules['fake_verb'] = module; VERBS['fake'] = Verb('fake_verb', '')\n"
        "sys.argv = ['d', 'fake']; main()"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize("body", ["print('x' * 10)", "[print('x' * 99, flush=True) for _ in range(9999)]"])
def test_a_closed_pipe_is_quiet(body: str) -> None:
    """When nobody reads the answer the command ends, and says nothing."""
    reader, writer = os.pipe()
    os.close(reader)
    with child(body, stdout=writer) as process:
        os.close(writer)
        assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 1


def test_sigint_ends_a_real_process_with_130() -> None:
    """The signal itself ends the process with 130 and no traceback."""
    with child("print(flush=True); import signal; signal.pause()", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1].strip() == b""
    assert process.returncode == 130


@click.command()
@config_option
@json_option
def show(*, config_path: Path | None, as_json: bool) -> None:
    """Answer with the source's database."""
    config = open_config(config_path)
    emit_json({"database": config.source.database, "as_json": as_json})


def test_the_shared_options_follow_the_verb(attempt: Try, tmp_path: Path) -> None:
    """`--config` names the file and `--json` asks for an answer for a program."""
    path = tmp_path / "c.toml"
    path.write_text(f'[source]\nuri = "{URI}"\ndatabase = "raw"\n', "utf-8")
    outcome = attempt(show, "-c", str(path), "--json")
    assert json.loads(outcome.out) == {"schema": 1, "database": "raw", "as_json": True}


def test_a_configuration_that_is_missing_ends_with_2(attempt: Try, tmp_path: Path) -> None:
    """A file that is named and not there is told by its path."""
    outcome = attempt(show, "--config", str(tmp_path / "nope.toml"))
    assert outcome.code == 2
    assert str(tmp_path / "nope.toml") in outcome.err


def test_answers_are_relaxed_extended_json(capsys: pytest.CaptureFixture[str]) -> None:
    """An answer is one line with its schema first, and holds every BSON value."""
    emit_json(
        {
            "id": ObjectId("0" * 24),
            "number": Int64(3),
            "price": Decimal128("1.10"),
            "at": datetime(2026, 1, 2, tzinfo=UTC),
            "time": Timestamp(1, 2),
            "uuid": UUID(int=1),
            "nan": float("nan"),
            "text": "\udcff",
        }
    )
    out = capsys.readouterr().out
    assert out.startswith('{"schema": 1, ')
    assert out.count("\n") == 1
    assert json.loads(out) == {
        "schema": 1,
        "id": {"$oid": "0" * 24},
        "number": 3,
        "price": {"$numberDecimal": "1.10"},
        "at": {"$date": "2026-01-02T00:00:00Z"},
        "time": {"$timestamp": {"t": 1, "i": 2}},
        "uuid": {"$binary": {"base64": "AAAAAAAAAAAAAAAAAAAAAQ==", "subType": "04"}},
        "nan": {"$numberDouble": "NaN"},
        "text": "\udcff",
    }


def test_the_console_shows_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are no markup, and a long line is not cut at 80 columns in a pipe."""
    console().print("orders[bold] " + "x" * 120)
    assert capsys.readouterr().out == "orders[bold] " + "x" * 120 + "\n"


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        """Give the time."""
        return self.now


def test_lines_of_progress_come_every_few_seconds() -> None:
    """Off a terminal there is a line at most every few seconds, with rate and time left, and a last one."""
    clock, shown = Clock(), list[str]()
    with Lines("verify", 1000, write=shown.append, clock=clock) as work:
        work.advance(100)
        clock.now = LINE_SECONDS
        work.advance(100)
        work.advance(100)
        clock.now = 2 * LINE_SECONDS
        work.update(1000)
    assert shown == [
        "verify: 200 of 1,000 documents, 40/s, 0:00:20 left",
        "verify: 1,000 of 1,000 documents, 100/s",
        "verify: 1,000 of 1,000 documents, 100/s",
    ]


def test_work_that_fails_has_no_last_line() -> None:
    """The error is the last thing that is told."""
    shown = list[str]()
    with pytest.raises(KeyError), Lines("verify", write=shown.append):
        raise KeyError
    assert shown == []


def test_a_program_gets_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    """With `--json` nothing is shown, on either stream."""
    with progress("verify", 10, as_json=True) as work:
        work.advance(10)
    assert capsys.readouterr() == ("", "")


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """Stdout belongs to the answer."""
    with progress("verify", unit="orders") as work:
        work.advance(10)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("verify: 10 orders, ")


def test_a_terminal_gets_a_bar() -> None:
    """The bar shows label, count and unit."""
    stream = StringIO()
    terminal = Console(file=stream, force_terminal=True, width=120, markup=False)
    with Bar("verify [x]", 10, "orders", console=terminal) as work:
        work.advance(4)
        work.update(10, total=20)
    assert "verify [x]" in stream.getvalue()
    assert "10/20" in stream.getvalue()


def test_the_group_has_exactly_the_verbs_of_the_contract() -> None:
    """The mapping is the list of verbs, in the order of the help."""
    verbs = [
        "run",
        "verify",
        "backfill",
        "replay",
        "rebuild",
        "check",
        "preview",
        "status",
        "dead-letters",
        "jobs",
        "position",
        "trace",
        "bigquery-schema",
        "new",
        "demo",
    ]
    assert distributary.list_commands(click.Context(distributary)) == verbs
