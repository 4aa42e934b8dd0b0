"""Google's Pub/Sub emulator: where it is found, how it is started, and one of a benchmark's own."""

import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from os import environ
from pathlib import Path
from typing import NamedTuple

from distributary.embedded import Keeper
from distributary.errors import EnvironmentFault

#: Names the emulator's jar; without it, the one of the Google Cloud CLI is taken.
JAR_VARIABLE = "DISTRIBUTARY_PUBSUB_EMULATOR"

#: What the emulator may take for messages that nobody has pulled yet.
HEAP = "4g"

READY_SECONDS = 60.0
POLL_SECONDS = 0.05

_HOST = "127.0.0.1"
_JAR = "platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar"
_JAVA = 17
_OPTIONS = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")

# Below the ports that are given to outgoing connections: a client that asks again and again for a port where
# nothing listens would otherwise now and then connect to itself.
_PORTS = range(12_000, 20_000)


class Emulator(NamedTuple):
    """A running emulator, without topics at first."""

    port: int
    pid: int

    @property
    def host(self) -> str:
        """Host and port, as the usual variable wants them."""
        return f"{_HOST}:{self.port}"


@contextmanager
def emulating(folder: Path) -> Iterator[Emulator]:
    """Run an emulator; it answers on entry, and nothing of it is left at the end."""
    folder.mkdir()
    port, keeper = free_port(), Keeper(folder)
    try:
        pid = keeper.start(command(_HOST, port, HEAP), folder / "emulator.log")
        _await_listening(port, keeper, pid, folder / "emulator.log")
        yield Emulator(port, pid)
    finally:
        keeper.leave()
        shutil.rmtree(folder)


def command(host: str, port: int, heap: str) -> Sequence[str]:
    """Give the command that runs an emulator; raises `EnvironmentFault` where there is none, or no Java for it."""
    return [java(), f"-Xmx{heap}", *_OPTIONS, "-jar", jar(), f"--host={host}", f"--port={port}"]


def java() -> str:
    """Give a Java that the emulator runs on."""
    found = shutil.which("java")
    if found is None:
        raise EnvironmentFault("The emulator needs Java.", f"Install Java {_JAVA} or later.")
    if (version := _version(found)) < _JAVA:
        raise EnvironmentFault(f"{found} is Java {version}.", f"The emulator needs {_JAVA} or later.")
    return found


@cache
def _version(java: str) -> int:
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    found = re.search(r'version "(?:1\.)?(\d+)', told)
    return int(found[1]) if found else 0


@cache
def jar() -> str:
    """Give the emulator's jar: the environment's, or that of the Google Cloud CLI."""
    if named := environ.get(JAR_VARIABLE):
        return _named(named)
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        raise EnvironmentFault(
            "There is no Pub/Sub emulator.",
            f"Name its jar by {JAR_VARIABLE}, or install the Google Cloud CLI with pubsub-emulator.",
        )
    asked = [gcloud, "info", "--format=value(installation.sdk_root)"]
    root = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    found = sorted(Path(root).glob(_JAR)) if root else []
    if not found:
        raise EnvironmentFault(
            "The Google Cloud CLI has no Pub/Sub emulator.",
            "Run `gcloud components install pubsub-emulator`.",
        )
    return str(found[-1])


def _named(path: str) -> str:
    if Path(path).is_file():
        return path
    raise EnvironmentFault(f"{JAR_VARIABLE} names no file: {path}.", "Name the emulator's jar, or unset it.")


def free_port() -> int:
    """Give a port that nothing listens on now, and that no outgoing connection gets."""
    while True:
        port = secrets.choice(_PORTS)
        if not _listens(port):
            return port


def _listens(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex((_HOST, port)) == 0


def _await_listening(port: int, keeper: Keeper, pid: int, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not _listens(port):
        if keeper.status(pid) is not None or time.monotonic() > deadline:
            raise EnvironmentFault(f"The Pub/Sub emulator does not listen: {log.read_text()[-2000:]}")
        time.sleep(POLL_SECONDS)
