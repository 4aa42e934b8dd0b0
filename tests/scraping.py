"""A worker process whose endpoint is asked over HTTP."""

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from subprocess import PIPE

from prometheus_client.parser import text_string_to_metric_families

from distributary.metrics import PREFIX
from tests.conftest import eventually
from tests.harness import Harness

Series = dict[tuple[str, tuple[str, ...]], float]


def get(port: int, path: str) -> tuple[int, str]:
    """Ask a port of this machine over HTTP, and give status and body."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


class Worker:
    """A worker process, and what its endpoint answers."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self._port = process, port

    def get(self, path: str) -> tuple[int, str]:
        """Ask, and give status and body."""
        return get(self._port, path)

    def is_ready(self) -> bool:
        """Whether it answers, and is ready."""
        assert self.process.poll() is None, self.process.communicate()
        try:
            return self.get("/readyz")[0] == 200
        except ConnectionRefusedError:
            return False

    def series(self) -> Series:
        """Give what is scraped, by name and label values."""
        status, text = self.get("/metrics")
        assert status == 200
        return {
            (sample.name.removeprefix(PREFIX), tuple(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def until(self, condition: Callable[[Series], bool]) -> Series:
        """Scrape until the condition holds."""
        eventually(lambda: condition(self.series()))
        return self.series()


@contextmanager
def working(harness: Harness, *, ready: bool = True) -> Iterator[Worker]:
    """Run a worker process until the end of the block."""
    with harness.process("run", stderr=PIPE, stdout=PIPE) as process:
        worker = Worker(process, harness.config.http.port)
        try:
            if ready:
                eventually(worker.is_ready)
            yield worker
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
