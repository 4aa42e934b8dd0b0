"""`python benchmarks/installation.py`: what the image does, without an engine that builds and runs it.

`deploy/install.sh` installs from the lock file into a fresh folder; the systemd unit's command runs there with the
example's configuration and a MongoDB of its own, as the image's user where root starts it; the probes of the
Kubernetes manifest ask it, and SIGTERM ends it. Prints sizes, times and memory. See `docs/deploy.md`.
"""

import http.client
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click
import yaml
from pymongo import MongoClient

from benchmarks.latency import until
from benchmarks.process import ROOT, ContenderFailed
from benchmarks.report import Stolen, machine, table
from benchmarks.server import serve
from distributary.errors import Failed

DEPLOY = ROOT / "deploy"
EXAMPLE = DEPLOY / "kubernetes" / "example"

#: The user of the image.
USER = 10001

#: How long a step may take, and how long the worker is left alone before its memory is read, in seconds.
PATIENCE_SECONDS = 60.0
IDLE_SECONDS = 10.0

#: The largest packages that are named.
LARGEST = 8


@dataclass(frozen=True)
class Figures:
    """Megabytes and seconds: what an installation takes, and the worker that runs from it."""

    install_seconds: float
    installed_mb: float
    version_seconds: float
    healthy_seconds: float
    ready_seconds: float
    active_seconds: float
    idle_mb: float
    peak_mb: float
    stop_seconds: float


@dataclass(frozen=True)
class Installation:
    """A folder with the worker, one with its configuration, and who runs it."""

    folder: Path
    etc: Path
    user: int | None

    def command(self) -> list[str]:
        """Give the unit's command, with these folders in place of those that it names."""
        (line,) = _of_unit("ExecStart")
        line = line.replace("/opt/distributary", str(self.folder)).replace("/etc/distributary", str(self.etc))
        return shlex.split(line)

    def environment(self, port: int) -> dict[str, str]:
        """Give the unit's environment and nothing else."""
        pairs = [pair for line in _of_unit("Environment") for pair in line.split()]
        given = dict(pair.replace("%d", str(self.etc)).split("=", 1) for pair in pairs)
        return {**given, "DISTRIBUTARY_HTTP__PORT": str(port), "DISTRIBUTARY_HTTP__HOST": "127.0.0.1"}

    def run(self, port: int, log: Path) -> subprocess.Popen[bytes]:
        """Start the worker."""
        with log.open("w") as output:
            return subprocess.Popen(
                self.command(),
                cwd=self.etc,
                env=self.environment(port),
                user=self.user,
                group=self.user,
                extra_groups=None if self.user is None else [],
                stdout=output,
                stderr=output,
            )


def _of_unit(key: str) -> list[str]:
    """Give what the systemd unit says of a key."""
    unit = (DEPLOY / "systemd" / "distributary.service").read_text()
    return re.findall(rf"^{key}=(.+)$", unit, re.MULTILINE)


def probes() -> Mapping[str, str]:
    """Give the path of each probe of the Kubernetes manifest."""
    manifest: Any = yaml.safe_load((DEPLOY / "kubernetes" / "base" / "deployment.yaml").read_text())
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    return {
        name.removesuffix("Probe"): probe["httpGet"]["path"]
        for name, probe in container.items()
        if name.endswith("Probe")
    }


def install(folder: Path, python: str) -> float:
    """Install as the image does; gives the seconds that it took."""
    began = time.monotonic()
    subprocess.run(
        [DEPLOY / "install.sh", folder],
        env={**os.environ, "PYTHON": python},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.monotonic() - began


def configure(etc: Path, uri: str) -> None:
    """Put the example's configuration and modules into a folder, with the connection string beside them."""
    shutil.copytree(EXAMPLE / "transformers", etc / "transformers")
    shutil.copy(EXAMPLE / "distributary.toml", etc)
    (etc / "source-uri").write_text(uri)


def size_mb(folder: Path) -> float:
    """Give what a folder takes on a disk; links are not followed."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*")) / 1e6


def largest(folder: Path) -> list[tuple[str, float]]:
    """Give the largest packages with their sizes."""
    (packages,) = folder.glob("lib/python3*/site-packages")
    sizes = [(path.name, size_mb(path)) for path in packages.iterdir() if path.is_dir()]
    return sorted(sizes, key=lambda each: -each[1])[:LARGEST]


def answers(port: int, path: str, words: str = "") -> bool:
    """Whether a page is answered with 200, and these words."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status == http.HTTPStatus.OK and words in answer.read().decode()
    except OSError:
        return False
    finally:
        connection.close()


def memory_mb(pid: int, what: str) -> float:
    """Give a figure of a process's memory: `VmRSS` now, `VmHWM` at its highest."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(rf"^{what}:\s+(\d+) kB$", status, re.MULTILINE)[0]) / 1024


@contextmanager
def _killed(process: subprocess.Popen[bytes], log: Path) -> Iterator[None]:
    """Kill the worker behind what is done inside, and show what it said if that fails."""
    try:
        yield
    except Failed as error:
        raise ContenderFailed(f"{error.message}\n{log.read_text()[-4000:]}") from error
    finally:
        process.kill()
        process.wait()


def _await(began: float, port: int, path: str, words: str = "") -> float:
    """Wait for an answer; gives the seconds since the begin."""
    if not until(lambda: answers(port, path, words), PATIENCE_SECONDS):
        raise Failed(f"{path} was not answered with 200 within {PATIENCE_SECONDS:.0f} s.")
    return time.monotonic() - began


def _version_seconds(folder: Path) -> float:
    began = time.monotonic()
    subprocess.run([folder / "bin" / "distributary", "--version"], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def measure(installation: Installation, uri: str, port: int, log: Path, install_seconds: float) -> Figures:
    """Run the worker until it is idle and stop it."""
    paths = probes()
    version = _version_seconds(installation.folder)
    began = time.monotonic()
    worker = installation.run(port, log)
    with _killed(worker, log), MongoClient[dict[str, Any]](uri) as client:
        healthy = _await(began, port, paths["startup"])
        ready = _await(began, port, paths["readiness"])
        active = _await(began, port, paths["readiness"], "active")
        client["raw"]["orders"].insert_one(
            {"_id": 1, "customer_id": "c", "ts": None, "total": 1, "lines": []}
        )
        derived = client["derived"]["orders_by_customer"]
        if not until(lambda: derived.find_one({"_id": 1}) is not None, PATIENCE_SECONDS):
            raise Failed("Nothing was derived.")
        time.sleep(IDLE_SECONDS)
        if not answers(port, paths["liveness"]):
            raise Failed("The worker is not alive.")
        idle, peak = memory_mb(worker.pid, "VmRSS"), memory_mb(worker.pid, "VmHWM")
        asked = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        if code := worker.wait(PATIENCE_SECONDS):
            raise Failed(f"SIGTERM ended it with {code}.")
        stopped = time.monotonic() - asked
    installed = size_mb(installation.folder)
    return Figures(install_seconds, installed, version, healthy, ready, active, idle, peak, stopped)


def _user(python: str) -> int | None:
    """Give the image's user, if this process may become that and that one may run the interpreter."""
    if os.geteuid():
        return None
    probe = subprocess.run([python, "-c", ""], user=USER, group=USER, extra_groups=[], cwd="/", check=False)
    return None if probe.returncode else USER


@click.command(context_settings={"show_default": True})
@click.option("--python", default=sys.executable, help="The interpreter to install for.")
@click.option("--port", default=19464, help="Where the worker answers.")
def main(*, python: str, port: int) -> None:
    """Do what the image does, and measure it; ends with 1 when a step fails."""
    about, since = machine(), Stolen()
    with tempfile.TemporaryDirectory(prefix="distributary-install-") as name:
        work = Path(name)
        work.chmod(0o755)
        target, etc = work / "opt", work / "etc"
        took = install(target, python)
        try:
            user = _user(str(target / "bin" / "python"))
        except PermissionError:
            user = None
        with serve(work / "data") as server:
            configure(etc, server.uri)
            figures = measure(Installation(target, etc, user), server.uri, port, work / "worker.log", took)
        packages = ", ".join(f"{name} {size:.0f}" for name, size in largest(target))
    about |= {
        "stolen meanwhile": f"{since.percent():.0f}% of the CPU time",
        "installed for": subprocess.run(
            [python, "--version"], check=True, capture_output=True, text=True
        ).stdout.strip(),
        "run as": str(user) if user else pwd.getpwuid(os.geteuid()).pw_name,
        "largest packages, MB": packages,
    }
    print("\n".join(f"- {name}: {value}" for name, value in about.items()))
    rows = [(each.name.replace("_", " "), f"{asdict(figures)[each.name]:,.1f}") for each in fields(figures)]
    print(f"\n{table(('', 'figure'), rows)}")


if __name__ == "__main__":
    main()
