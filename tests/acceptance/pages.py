"""Runs a page of the documentation as written: its files, its commands, and what it says that they print.

- A block of Python or TOML whose first line is `# path` is that file.
- Any other block of Python is run with `client`, which is connected to the page's MongoDB.
- In a console block a line that begins with `$ ` is run, in one shell for the whole page, and the lines below it are
  what it prints on stdout and stderr. `…` stands for anything within a line, and alone for any number of lines.
- A command ends with exit code 0, unless the one after it is `echo $?`.
- A block in a comment is run, too: what happens without the reader's doing.
- Blocks of JSON or JavaScript, of text and of no language are shown only.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from textwrap import dedent

import pytest

#: What the pages call their MongoDB.
URI = "mongodb://127.0.0.1:27017/?replicaSet=rs0"

#: Seconds that a page may take.
PATIENCE = 300

#: What stands between the outputs of two steps, around the exit code of the first.
_MARK = "\x1e"

_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
_PATH = re.compile(r"# (?P<path>[\w./-]+\.\w+)\n")
_SHOWN_ONLY = frozenset({"", "json", "javascript", "text"})

_HEAD = f"""
after() {{ code=$?; printf '{_MARK}%s{_MARK}\\n' "$code"; return "$code"; }}
trap 'kill $(jobs -p) 2> /dev/null; wait' EXIT
"""

_SCRIPT = """
from pymongo import MongoClient

client = MongoClient("{uri}")
{code}
"""


@dataclass(frozen=True)
class Step:
    """What a line of a page says to do, as a command for bash, and what that prints."""

    line: int
    command: str
    printed: str = ""
    may_fail: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a step printed, and its exit code; None when it did not end."""

    printed: str
    code: int | None


def run(page: Path, folder: Path, uri: str) -> None:
    """Run a page in an empty folder against an empty MongoDB; fails at the first line that is not so."""
    steps = list(steps_of(page.read_text("utf-8").replace(URI, uri), uri))
    for step, outcome in zip(steps, _outcomes(steps, folder), strict=False):
        wrong = _wrong(step, outcome)
        if wrong:
            pytest.fail(f"{page.name}:{step.line}: {wrong}\n{outcome.printed}")


def _wrong(step: Step, outcome: Outcome) -> str:
    """Say how a page and what came of one of its steps differ."""
    if outcome.code is None:
        return f"`{step.command}` did not end within {PATIENCE} s, or ended the shell; it printed"
    if outcome.code and not step.may_fail:
        return f"`{step.command}` ended with {outcome.code}; it printed"
    if not _pattern(step.printed).fullmatch(_trimmed(outcome.printed)):
        return f"`{step.command}` printed other than the page says:\n{step.printed}\nIt printed"
    return ""


def _pattern(shown: str) -> re.Pattern[str]:
    lines = _trimmed(shown).splitlines()
    return re.compile("".join(r"(?:.*\n)*" if line.strip() == "…" else f"{_line(line)}\n" for line in lines))


def _line(shown: str) -> str:
    """Give the pattern of a line; blanks beside `…` belong to it, since they fill the columns of tables."""
    return ".*".join(map(re.escape, re.split(" *… *", shown)))


def _trimmed(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


# --- what a page says -----------------------------------------------------------------------------------


def steps_of(text: str, uri: str) -> Iterator[Step]:
    """Give the steps of a page, in their order."""
    for block in _BLOCK.finditer(text):
        line = text.count("\n", 0, block.start()) + 2
        language, body = block["language"], dedent(block["body"])
        if language == "console":
            yield from _commands(line, body)
        elif language in {"python", "toml"}:
            yield _code(line, body, uri)
        elif language not in _SHOWN_ONLY:
            raise ValueError(f"line {line - 1}: it is not known what a block of {language} means")


def _code(line: int, body: str, uri: str) -> Step:
    file = _PATH.match(body)
    if file is None:
        return Step(line, _with_input("python -", _SCRIPT.format(uri=uri, code=body)))
    path = Path(file["path"])
    return Step(line, f"mkdir -p {path.parent} && {_with_input(f'cat > {path}', body)}")


def _with_input(command: str, text: str) -> str:
    return f"{command} <<'END OF BLOCK'\n{text.rstrip()}\nEND OF BLOCK"


def _commands(line: int, body: str) -> Iterator[Step]:
    """Give the commands of a console block, each with what is shown below it."""
    parts = re.split(r"^\$ (.*)\n", body, flags=re.MULTILINE)
    if parts[0]:
        raise ValueError(f"line {line}: a console block begins with a command")
    commands, outputs = parts[1::2], parts[2::2]
    for number, (command, printed) in enumerate(zip(commands, outputs, strict=True), start=1):
        yield Step(line, command, printed, may_fail=commands[number : number + 1] == ["echo $?"])
        line += 1 + printed.count("\n")


# --- carrying it out ------------------------------------------------------------------------------------


def _outcomes(steps: Sequence[Step], folder: Path) -> list[Outcome]:
    """Run the steps up to the first that fails or does not end, and give what came of each that was begun."""
    ends = [f"{step.command}\nafter{'' if step.may_fail else ' || exit'}\n" for step in steps]
    *told, rest = re.split(f"{_MARK}(\\d+){_MARK}\n", _printed(_HEAD + "".join(ends), folder))
    outcomes = [Outcome(text, int(code)) for text, code in zip(told[::2], told[1::2], strict=True)]
    return outcomes if len(outcomes) == len(steps) or _failed(outcomes) else [*outcomes, Outcome(rest, None)]


def _failed(outcomes: Sequence[Outcome]) -> bool:
    return bool(outcomes and outcomes[-1].code)


def _printed(script: str, folder: Path) -> str:
    """Run a script in a session of its own, of which nothing is left on return, and give what it printed."""
    with TemporaryFile() as output:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            with suppress(subprocess.TimeoutExpired):
                shell.wait(PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
        output.seek(0)
        return output.read().decode()


def _environment() -> dict[str, str]:
    """Give this process's environment without settings, and with the `distributary` and `python` that are tested.

    Workers have no endpoint, since several tests may run at once.
    """
    settings = re.compile(r"DISTRIBUTARY_\w+__|PYTEST_")
    clean = {name: value for name, value in os.environ.items() if not settings.match(name)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return clean | {"PATH": path, "DISTRIBUTARY_HTTP__PORT": "0"}
