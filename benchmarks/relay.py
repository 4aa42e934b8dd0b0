"""A port before a server, which can be shut and opened: an outage in which the server keeps what it has."""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from itertools import chain
from threading import Thread
from typing import Any

from benchmarks.emulator import free_port

_HOST = "127.0.0.1"
_CHUNK = 256 * 1024


class Relay:
    """Passes connections on to another port, from a thread of its own; shut, nothing listens and all are cut."""

    def __init__(self, server: int) -> None:
        self.host = f"{_HOST}:{free_port()}"
        self._server = server
        self._listener: asyncio.Server | None = None
        self._ends: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()

    def open(self) -> None:
        """Listen; connections are taken on return."""
        self._do(self._listen())

    def shut(self) -> None:
        """Cut every connection, and listen no more; connections are refused on return."""
        self._do(self._cut())

    def leave(self) -> None:
        """Shut for good."""
        self.shut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> None:
        address, _, port = self.host.partition(":")
        self._listener = await asyncio.start_server(self._accept, address, int(port))

    async def _cut(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for end in chain.from_iterable(self._ends.values()):
            end.transport.abort()
        await asyncio.gather(*self._ends)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        task = self._loop.create_task(self._pass_on(reader, ends))
        self._ends[task] = ends
        task.add_done_callback(self._ends.pop)

    async def _pass_on(self, reader: asyncio.StreamReader, ends: list[asyncio.StreamWriter]) -> None:
        far_reader, far_writer = await asyncio.open_connection(_HOST, self._server)
        ends.append(far_writer)
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, ends[0]))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes until one side ends, and end the other."""
    try:
        with contextlib.suppress(OSError):
            while some := await reader.read(_CHUNK):
                writer.write(some)
                await writer.drain()
    finally:
        writer.close()


@contextmanager
def relaying(server: int) -> Iterator[Relay]:
    """Open a port before a server's."""
    relay = Relay(server)
    relay.open()
    try:
        yield relay
    finally:
        relay.leave()
