"""What runs during the demo: a private MongoDB, a worker process, and what both must not see or leave."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, NoReturn, TypeVar

from bson import Timestamp
from pymongo import MongoClient
from rich.console import Console

from distributary.embedded import EmbeddedMongo, Keeper
from distributary.errors import Failed
from distributary.state import BEGINNING, Checkpoint, JobKind
from distributary.store.checkpoints import Checkpoints
from distributary.store.jobs import Jobs

T = TypeVar("T")

RAW, DERIVED, STATE, WORKER = "raw", "derived", "distributary", "demo"

#: How often the worker is looked at, in seconds; also the precision of the lag that is shown.
LOOK_SECONDS = 0.02

#: How long the worker may show no progress before the demo gives up, in seconds.
PATIENCE_SECONDS = 60.0

_LOG_TAIL_LINES = 20


@dataclass(frozen=True)
class Stage:
    """What runs during the demo; all of it ends with the context that gave it."""

    console: Console
    client: MongoClient[dict[str, Any]]
    uri: str
    folder: Path
    keeper: Keeper

    @property
    def config(self) -> Path:
        """The worker's configuration."""
        return self.folder / "distributary.toml"

    @property
    def log(self) -> Path:
        """What the worker prints."""
        return self.folder / "worker.log"


@contextmanager
def open_stage(console: Console) -> Iterator[Stage]:
    """Give a private MongoDB and a keeper for the worker; on leaving the worker ends, then MongoDB."""
    with EmbeddedMongo() as mongo, MongoClient[dict[str, Any]](mongo.uri, tz_aware=True) as client:
        version = client.server_info()["version"]
        console.print(f"Started a private MongoDB {version} at {mongo.uri}")
        folder = mongo.folder / "demo"
        folder.mkdir()
        with without_configuration():
            keeper = Keeper(folder, remove=False)
        try:
            yield Stage(console, client, mongo.uri, folder, keeper)
        finally:
            keeper.leave()


@contextmanager
def without_configuration() -> Iterator[None]:
    """Hide the user's own variables from what is started inside: they would win over the demo's file."""
    mine = {name: value for name, value in os.environ.items() if name.startswith("DISTRIBUTARY_")}
    for name in mine:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(mine)


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Clean up on SIGTERM as on Ctrl-C."""

    def leave(number: int, _: object) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def examples() -> Path:
    """Give the folder of the shipped transform modules: in the wheel, else in the checkout."""
    places = (Path(__file__).parents[1] / "_examples", Path(__file__).parents[3] / "transformers")
    for folder in places:
        if (folder / "orders.py").is_file():
            return folder
    raise Failed(
        f"The example transform modules are neither in {places[0]} nor in {places[1]}.",
        "Install distributary again, from its wheel or a whole checkout.",
    )


def configuration(uri: str, transformers: Path, only: Sequence[str]) -> str:
    """Give the demo's configuration, with a key of its own for pseudonyms; JSON strings and lists are TOML's too."""
    sections: dict[str, dict[str, object]] = {
        "source": {"uri": uri, "database": RAW},
        "derived": {"database": DERIVED},
        "state": {"database": STATE},
        "worker": {
            "name": WORKER,
            "transformers": [str(transformers)],
            "only": list(only),
            "idle_save_seconds": 1,
        },
        "personal_data": {"key": token_hex()},
        "http": {"port": 0},
    }
    return "\n".join(_toml_section(name, keys) for name, keys in sections.items())


def _toml_section(name: str, keys: Mapping[str, object]) -> str:
    return "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items()), ""])


class Worker:
    """The worker, a process of its own, and what the state database tells of it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        state = stage.client[STATE]
        self._checkpoints, self._jobs = Checkpoints(state), Jobs(state, WORKER)
        command_line = [sys.executable, "-m", "distributary", "run", "--config", str(stage.config)]
        self._pid = stage.keeper.start(command_line, stage.log)

    @property
    def position(self) -> Timestamp:
        """The cluster time that the worker has committed."""
        checkpoint = self._checkpoint()
        return checkpoint.position.time if checkpoint else BEGINNING

    def backfilled(self, sizes: Mapping[str, int]) -> int:
        """Count the loaded documents that were derived; all of them only once every transform is built."""
        checkpoint = self._checkpoint()
        built = (
            {each.source for each in checkpoint.transforms.values() if each.built} if checkpoint else set()
        )
        scanned = {job.source: job.documents for job in self._jobs.open() if job.kind is JobKind.BACKFILL}
        return sum(
            size if source in built else min(scanned.get(source, 0), size - 1)
            for source, size in sizes.items()
        )

    def follow(self, look: Callable[[], T], done: Callable[[T], bool]) -> Iterator[T]:
        """Give what is seen, again and again, until it is done; the worker must run and get on meanwhile."""
        seen, since = look(), time.monotonic()
        while not done(seen):
            yield seen
            self.check()
            if time.monotonic() - since > PATIENCE_SECONDS:
                raise Failed(
                    f"The worker made no progress for {PATIENCE_SECONDS:.0f} s. {self._end_of_log()}"
                )
            time.sleep(LOOK_SECONDS)
            if (now := look()) != seen:
                seen, since = now, time.monotonic()
        yield seen

    def check(self) -> None:
        """Raise `Failed`, with the end of its log, when the worker has ended."""
        status = self._stage.keeper.status(self._pid)
        if status is not None:
            raise Failed(f"The worker ended with exit status {status}. {self._end_of_log()}")

    def _checkpoint(self) -> Checkpoint | None:
        return self._checkpoints.load(WORKER)

    def _end_of_log(self) -> str:
        lines = self._stage.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return "\n".join(["Its log ends with:", *lines])
