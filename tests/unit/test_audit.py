"""`make audit`: an advisory fails it, and so does a service that does not answer."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest

from tests.servers import free_port

SCRIPT = Path(__file__).parents[2] / ".ci" / "audit.py"

pytestmark = pytest.mark.skipif(find_spec("pip_audit") is None, reason="pip-audit is not installed")


@contextmanager
def osv(bad: str) -> Iterator[str]:
    """Answer as osv.dev does, with an advisory for one package; gives the URL."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = asked["package"]["name"]
            body = json.dumps({"vulns": [advisory(name)]} if name == bad else {}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def advisory(name: str) -> dict[str, object]:
    """Give an advisory in the form of osv.dev."""
    affected = {
        "package": {"name": name, "ecosystem": "PyPI"},
        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999"}]}],
    }
    return {"id": "OSV-1", "modified": "2026-01-01T00:00:00Z", "summary": "bad", "affected": [affected]}


def audited(url: str, tmp_path: Path) -> tuple[int, str]:
    """Run the audit against a service, and give its exit code and what it says."""
    options = ["--vulnerability-service", "osv", "--osv-url", url, "--cache-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False, timeout=100
    )
    return done.returncode, done.stdout + done.stderr


def test_a_dependency_with_an_advisory_fails(tmp_path: Path) -> None:
    """It is named with the advisory and the version that mends it."""
    with osv("pymongo") as url:
        status, said = audited(url, tmp_path)
    assert status == 1
    assert "pymongo" in said
    assert "OSV-1, mended in 999" in said


def test_dependencies_without_advisories_pass(tmp_path: Path) -> None:
    """It says how many were looked at."""
    with osv("none") as url:
        status, said = audited(url, tmp_path)
    assert status == 0, said
    assert said.startswith("no advisory for ")


def test_a_service_that_does_not_answer_is_told(tmp_path: Path) -> None:
    """An exit code of its own and one line say that nothing is known."""
    status, said = audited(f"http://127.0.0.1:{free_port()}/v1/query", tmp_path)
    assert status == 3
    assert said.startswith("advisories were NOT looked at")
    assert len(said.splitlines()) == 1
