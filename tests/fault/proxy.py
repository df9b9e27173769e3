"""A TCP proxy that misbehaves on request: what a network, or a server that dies, does to a client.

It runs an event loop in a thread of its own; the methods are for any other thread. What is asked for holds for all
connections, those to come included, until `heal`.
"""

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass
from threading import Event, Thread
from typing import Final, Self

_HOST: Final = "127.0.0.1"
_CHUNK: Final = 1 << 16
_LOOK_S: Final = 0.005
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER of no time


@dataclass(frozen=True, slots=True)
class Flow:
    """What becomes of the bytes of one direction.

    Attributes:
        delay_s: how late each piece is handed on, in seconds.
        stalled: nothing is handed on, and nothing is lost.
        lost_after: bytes a connection may still pass before everything behind them vanishes; None: nothing vanishes.
    """

    delay_s: float = 0.0
    stalled: bool = False
    lost_after: int | None = None


_FREE: Final = Flow()


class _Connection:
    """Both directions of one client's connection."""

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.passed = 0  # bytes passed under a flow that loses
        self.lossy = False

    def reset(self) -> None:
        """Both ends see a reset."""
        for writer in self.writers:
            with contextlib.suppress(OSError, AttributeError):
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()


class Proxy:
    """Listens on 127.0.0.1 and hands on to another port there, as a context manager.

    Args:
        target: port of the server behind it; may be set later.

    Attributes:
        port: where clients connect.
        connections: how many it has taken so far.
    """

    def __init__(self, target: int = 0) -> None:
        self.target = target
        self.port = 0
        self.connections = 0
        self._requests = self._replies = _FREE
        self._refusing = False
        self._open: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._listening = Event()
        self._ending: asyncio.Event
        self._thread = Thread(target=self._run, name="proxy", daemon=True)

    # -- what it can do to clients

    def misbehave(self, *, requests: Flow = _FREE, replies: Flow = _FREE) -> None:
        """From now on this becomes of what clients send, and of what they are answered."""
        self._requests, self._replies = requests, replies

    def refuse(self) -> None:
        """New connections are reset at once; those that are open live on."""
        self._refusing = True

    def cut(self) -> None:
        """Reset all open connections; returns when that has happened."""
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(10)

    def heal(self) -> None:
        """Behave again; connections that have lost bytes are reset, for nothing sensible can follow on them."""
        self._requests = self._replies = _FREE
        self._refusing = False
        asyncio.run_coroutine_threadsafe(self._cut(only_lossy=True), self._loop).result(10)

    # -- its life

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(10), "the proxy does not listen"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(10)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._ending = asyncio.Event()
        server = await asyncio.start_server(self._accept, _HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._ending.wait()
        server.close()
        while self._open:
            await self._cut()
            await asyncio.sleep(_LOOK_S)

    async def _cut(self, *, only_lossy: bool = False) -> None:
        for connection in list(self._open):
            if connection.lossy or not only_lossy:
                connection.reset()

    # -- one connection

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = _Connection()
        connection.writers.append(writer)
        self._open.add(connection)
        try:
            if self._refusing:
                return
            with contextlib.suppress(OSError):
                behind, to_server = await asyncio.open_connection(_HOST, self.target)
                connection.writers.append(to_server)
                pumps = [
                    asyncio.create_task(self._pump(connection, reader, to_server, replies=False)),
                    asyncio.create_task(self._pump(connection, behind, writer, replies=True)),
                ]
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            connection.reset()
            self._open.discard(connection)

    async def _pump(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                passing = await self._through(connection, data, replies=replies)
                if passing:
                    writer.write(passing)
                    await writer.drain()

    async def _through(self, connection: _Connection, data: bytes, *, replies: bool) -> bytes:
        """What is left of a piece, when it is time to hand it on."""
        if delay_s := self._flow(replies).delay_s:
            await asyncio.sleep(delay_s)
        while self._flow(replies).stalled:
            await asyncio.sleep(_LOOK_S)
        flow = self._flow(replies)
        if flow.lost_after is None:
            return data if not connection.lossy else b""
        left = max(0, flow.lost_after - connection.passed)
        connection.passed += len(data)
        connection.lossy |= left < len(data)
        return data[:left]

    def _flow(self, replies: bool) -> Flow:
        return self._replies if replies else self._requests
