"""A small process that owns servers on behalf of another one and never outlives it.

Started as `python _keeper.py [FOLDER TO REMOVE AT THE END]...` with pipes as standard input and output. It
takes one request per line, as JSON, and answers each with one line. It leaves on end of file (the kernel
closes the pipe of a parent however that dies), when the parent is gone though a fork still holds the pipe,
and on SIGTERM; leaving ends every server and removes the folders.

It is run by its path and uses the standard library only, so it needs neither the package nor its imports.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: How long a server may take to end after SIGTERM before it gets SIGKILL, in seconds.
GRACE = 5.0

_PR_SET_PDEATHSIG = 1
_PARENT_CHECK_SECONDS = 1.0

Servers = dict[int, subprocess.Popen[bytes]]


def main() -> None:
    """Serve requests until the parent is gone."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    servers: Servers = {}
    try:
        with contextlib.suppress(BrokenPipeError):  # the parent went between asking and being answered
            for request in _requests():
                _answer(_ACTIONS[request.pop("do")](servers, **request))
    finally:
        _leave(servers, sys.argv[1:])


def _requests() -> Iterator[dict[str, Any]]:
    parent = os.getppid()
    while os.getppid() == parent:
        if select.select([sys.stdin], [], [], _PARENT_CHECK_SECONDS)[0]:
            line = sys.stdin.readline()
            if not line:
                return
            yield json.loads(line)


def _answer(answer: object) -> None:
    os.write(sys.stdout.fileno(), json.dumps(answer).encode() + b"\n")


def _start(servers: Servers, command: list[str], log: str) -> int | str:
    """Give the pid of the new server, or why it could not be started."""
    try:
        with Path(log).open("ab") as output:
            server = subprocess.Popen(  # noqa: S603 - the parent's command
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=_dies_with_keeper(),  # noqa: PLW1509 - this process has one thread
            )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    servers[server.pid] = server
    return server.pid


def _dies_with_keeper() -> Callable[[], None] | None:
    """Give what makes the kernel end a new server when this process is killed, where it can (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _status(servers: Servers, pid: int) -> int | None:
    """Give the exit status of a server, None while it runs."""
    return servers[pid].poll()


def _end(servers: Servers, pid: int, number: int) -> int:
    """Signal a server and give its exit status once it has ended."""
    server = servers[pid]
    server.send_signal(number)
    try:
        return server.wait(GRACE)
    except subprocess.TimeoutExpired:
        server.kill()
        return server.wait()


def _leave(servers: Servers, folders: list[str]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for server in servers.values():
        server.terminate()
    for pid in servers:
        _end(servers, pid, signal.SIGTERM)
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)


_ACTIONS: dict[str, Callable[..., object]] = {"start": _start, "status": _status, "end": _end}

if __name__ == "__main__":
    main()
