"""The HTTP endpoint."""

import gc
import socket
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from distributary import endpoint as module
from distributary.endpoint import Endpoint, Page
from distributary.errors import EnvironmentFault
from tests.conftest import eventually

#: What the log may quote, and no answer.
VALUE = "Zz84Value"

PAGES = {
    "/good": lambda: Page(200, "text/plain", b"all is well\n"),
    "/bad": lambda: Page(503, "application/json", b"{}"),
}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """Give one that answers."""
    answering = Endpoint("127.0.0.1", 0, PAGES)
    answering.start()
    yield answering
    answering.close()


def asked(endpoint: Endpoint, request: str) -> str:
    """Send a request and give all that is answered."""
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=20) as connection:
        connection.sendall(f"{request} HTTP/1.0\r\nHost: here\r\nAccept: */*\r\n\r\n".encode())
        return connection.makefile("rb").read().decode()


def status(answer: str) -> int:
    """Give the status of an answer."""
    return int(answer.split(" ", 2)[1])


def test_a_page_is_made_when_it_is_asked_for(endpoint: Endpoint) -> None:
    """GET gives status, type and body, with a query or without one; HEAD gives the same without the body."""
    answer = asked(endpoint, "GET /good")
    assert status(answer) == 200
    assert answer.endswith("\r\n\r\nall is well\n")
    assert "Content-Type: text/plain\r\n" in answer
    assert "Python" not in answer
    assert status(asked(endpoint, "GET /bad?verbose=1")) == 503
    head = asked(endpoint, "HEAD /good")
    assert (status(head), head.endswith("\r\n\r\n")) == (200, True)
    assert "Content-Length: 12\r\n" in head


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
def test_nothing_can_be_changed(endpoint: Endpoint, method: str) -> None:
    """Every other method is refused."""
    assert status(asked(endpoint, f"{method} /good")) == 405


def test_other_paths_are_not_found(endpoint: Endpoint) -> None:
    """An unknown path is answered with those that there are, and what was asked for is not sent back."""
    answer = asked(endpoint, "GET /<script>")
    assert status(answer) == 404
    assert "/bad, /good" in answer
    assert "script" not in answer


def test_a_page_that_fails_is_told_once_and_answered() -> None:
    """The answer is 500 without the reason, which the log has with the path, and the endpoint goes on."""

    def fail() -> Page:
        raise ValueError(f"no page of {VALUE}")

    failing = Endpoint("127.0.0.1", 0, {**PAGES, "/failing": fail})
    failing.start()
    try:
        with capture_logs() as log:
            answers = [asked(failing, "GET /failing") for _ in range(2)]
        assert list(map(status, answers)) == [500, 500]
        assert status(asked(failing, "GET /good")) == 200
    finally:
        failing.close()
    assert VALUE not in "".join(answers)
    (line,) = log
    assert (line["event"], line["path"]) == ("page not made", "/failing")
    assert line["error"] == f"ValueError: no page of {VALUE}"
    assert "in fail\n" in line["traceback"]


def test_a_port_that_is_taken_is_told_with_a_cure(endpoint: Endpoint) -> None:
    """Who starts two workers on one port is told of the key and what to do."""
    with pytest.raises(EnvironmentFault, match=f"127.0.0.1:{endpoint.port}") as caught:
        Endpoint("127.0.0.1", endpoint.port, PAGES)
    assert caught.value.exit_code == 3
    assert "http.port = 0" in caught.value.cure


def test_an_address_of_another_machine_is_told_with_a_cure() -> None:
    """So is a host that is not one of this machine (TEST-NET-1), or that is none at all."""
    for host in ("192.0.2.1", "no.such.host.invalid"):
        with pytest.raises(EnvironmentFault, match=host):
            Endpoint(host, 0, PAGES)


def test_who_is_slow_is_sent_away(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that does not end is ended, however it goes on, and meanwhile others are answered."""
    monkeypatch.setattr(module, "REQUEST_SECONDS", 2)
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=20) as slow:
        slow.sendall(b"GET /good HTTP/1.0\r\n")
        assert status(asked(endpoint, "GET /good")) == 200
        assert slow.recv(100) == b""


def test_requests_at_a_time_are_bounded(endpoint: Endpoint) -> None:
    """More connections than there is room for are closed at once; when the others are gone, there is room again."""
    address = ("127.0.0.1", endpoint.port)
    waiting = [socket.create_connection(address, timeout=20) for _ in range(module.REQUESTS)]
    with socket.create_connection(address, timeout=20) as turned_away:
        assert turned_away.recv(100) == b""
    for each in waiting:
        each.close()

    def is_answered() -> bool:
        try:
            return "all is well" in asked(endpoint, "GET /good")
        except ConnectionError:
            return False

    eventually(is_answered)


def test_requests_leave_nothing_behind_while_the_collector_is_off(endpoint: Endpoint) -> None:
    """A worker collects cycles rarely, and an idle one never: scrapes must not fill its memory."""
    asked(endpoint, "GET /good")
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(100):
            asked(endpoint, "GET /good")
        eventually(lambda: len(gc.get_objects()) < before + 500)
    finally:
        gc.enable()
