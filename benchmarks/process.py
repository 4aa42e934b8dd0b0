"""Run a contender as a process of its own and measure it from outside (Linux: `/proc`)."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from distributary.errors import Failed

ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.02

_TICKS = os.sysconf("SC_CLK_TCK")


class ContenderFailed(Failed):
    """A contender ended with an error; the message is the end of what it printed."""


@dataclass(frozen=True)
class Finished:
    """A contender's whole life: seconds on the monotonic clock, CPU seconds, megabytes, standard output."""

    started: float
    ended: float
    cpu: float
    peak_mb: float
    output: str


def python(*arguments: str) -> list[str]:
    """Give the command that runs this interpreter."""
    return [sys.executable, *arguments]


def surroundings(environment: Mapping[str, str]) -> dict[str, str]:
    """Give this process's environment and more, in which the code of this checkout is what is imported."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src"))), **environment}


def cpu_seconds(pid: int) -> float:
    """Give the CPU time, user and system, that a process has used until now."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak_mb(pid: int) -> float:
    """Give the highest resident size of a process until now (`ru_maxrss` would count its parent's too)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


class Clock:
    """Counts the CPU time of a contender and its server from its construction on."""

    def __init__(self, client: int, server: int) -> None:
        self._pids = (client, server)
        self._before = self._used()
        self._started = time.monotonic()

    def percent(self) -> tuple[float, float]:
        """Give what both used, in percent of one core."""
        took = time.monotonic() - self._started
        client, server = (
            100 * (now - before) / took for now, before in zip(self._used(), self._before, strict=True)
        )
        return client, server

    def _used(self) -> list[float]:
        return [cpu_seconds(pid) for pid in self._pids]


def run(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> Finished:
    """Run a contender to its end; raises `ContenderFailed` when it fails or takes longer."""
    with tempfile.TemporaryFile("w+") as output:
        started = time.monotonic()
        process = _start(command, environment, output)
        status, usage, peak = _follow(process, started + seconds)
        ended = time.monotonic()
        output.seek(0)
        text = output.read()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ContenderFailed(f"{command} ended with {process.returncode}:\n{text[-4000:]}")
    return Finished(started, ended, usage.ru_utime + usage.ru_stime, peak, text)


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], log: Path | None = None) -> Iterator[int]:
    """Keep a contender running and give its pid; it is terminated at the end and must not end before.

    What it prints goes to `log`, if that is named.
    """
    with log.open("w+") if log else tempfile.TemporaryFile("w+") as output:
        process = _start(command, environment, output)
        try:
            yield process.pid
        finally:
            early = process.poll()
            process.terminate()
            process.wait()
            output.seek(0)
            text = output.read()
    if early is not None:
        raise ContenderFailed(f"{command} ended early with {early}:\n{text[-4000:]}")


def _start(
    command: Sequence[str], environment: Mapping[str, str], output: IO[str]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, cwd=ROOT, env=surroundings(environment), stdout=output, stderr=subprocess.STDOUT
    )


def _follow(process: subprocess.Popen[bytes], deadline: float) -> tuple[int, resource.struct_rusage, float]:
    """Wait for the end; give the wait status, the resource usage and the peak in megabytes."""
    peak = 0.0
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            return status, usage, peak
        peak = max(peak, peak_mb(process.pid))
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(POLL_SECONDS)
