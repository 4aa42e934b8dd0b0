"""The HTTP endpoint: a few pages to read, for machines."""

import gc
import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import BoundedSemaphore, Lock, Thread, Timer
from typing import Any, NamedTuple, cast

from distributary.engine.news import News
from distributary.errors import EnvironmentFault
from distributary.log import get_logger
from distributary.quoting import of_error

log = get_logger()

#: Seconds for sending a request and taking its answer, and requests at a time, at most.
REQUEST_SECONDS = 5.0
REQUESTS = 16

#: How often the server looks whether it should stop, in seconds.
_POLL_SECONDS = 0.1


class Page(NamedTuple):
    """What is answered."""

    status: int
    content_type: str
    body: bytes


_NOT_MADE = Page(
    HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", b"This page failed; the log has why.\n"
)


class Endpoint:
    """Serves pages by their paths, each made when it is asked for, from threads of its own; nothing can be changed.

    A page that cannot be made is answered with 500, and the log has why.

    Listens from its construction on; raises `EnvironmentFault` where it cannot. Port 0 is any that is free.
    """

    def __init__(self, host: str, port: int, pages: Mapping[str, Callable[[], Page]]) -> None:
        try:
            self._server = _Server(host, port, pages)
        except OSError as error:
            raise _refused(host, port, error) from error
        self._thread = Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="http", daemon=True
        )

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Answer requests from now on."""
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def _refused(host: str, port: int, error: OSError) -> EnvironmentFault:
    return EnvironmentFault(
        f"http.host and http.port: {host}:{port} cannot be listened on: {error.strerror or error}.",
        "Set http.host to an address of this machine and http.port to a port that nothing else listens on, another one"
        " for each worker here; with http.port = 0 there is no endpoint.",
    )


class _Maker:
    """Makes one page for any thread; what that raises is logged when it begins and once a minute."""

    def __init__(self, path: str, make: Callable[[], Page]) -> None:
        self._path = path
        self._make = make
        self._news = News()
        self._lock = Lock()

    def page(self) -> Page:
        """Give the page, or one that says where to look for what kept it from being made."""
        try:
            page = self._make()
        except Exception as error:  # noqa: BLE001 - a fault in one page neither passes unseen nor ends the worker
            self._tell(error)
            return _NOT_MADE
        with self._lock:
            self._news.ends()
        return page

    def _tell(self, error: Exception) -> None:
        with self._lock:
            is_news = self._news.is_news()
        if is_news:
            what, trace = of_error(error, error.__traceback__)
            log.error("page not made", path=self._path, error=what, traceback=trace)


class _Server(ThreadingHTTPServer):
    """A bounded number of requests at a time; more are turned away."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, pages: Mapping[str, Callable[[], Page]]) -> None:
        self.pages = {path: _Maker(path, make) for path, make in pages.items()}
        self._room = BoundedSemaphore(REQUESTS)
        self.address_family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        super().__init__(cast("tuple[str, int]", address), _Handler)

    def server_bind(self) -> None:
        """Bind without asking a name server what this address is called."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "", int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if there is room."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and end what takes too long."""
        ending = Timer(REQUEST_SECONDS, _end, (request,))
        ending.daemon = True
        ending.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            ending.cancel()
            self._room.release()
            if not gc.isenabled():
                gc.collect(0)  # a request with its head leaves cycles behind

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away."""


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # it has ended by itself
        return


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    timeout = REQUEST_SECONDS
    server_version, sys_version = "distributary", ""
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(code)d %(message)s\n"

    def do_GET(self) -> None:
        """Answer with a page."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer with what a page's head would be."""
        self._answer(with_body=False)

    def _refuse(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED, "Only GET and HEAD")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse  # noqa: N815 - names of HTTP

    def _answer(self, *, with_body: bool) -> None:
        pages = cast("_Server", self.server).pages
        maker = pages.get(self.path.partition("?")[0])
        if maker is None:
            self.send_error(HTTPStatus.NOT_FOUND, f"There are {', '.join(sorted(pages))}")
            return
        page = maker.page()
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if with_body:
            self.wfile.write(page.body)

    def log_message(self, *_: object) -> None:
        """Write no log of requests."""
