"""A proxy in front of mongod that lets a write happen and then cuts its connection unanswered.

It reads just enough of MongoDB's wire protocol: the length, the ids and the first name in the
body of an OP_MSG, which is the command's (see "MongoDB Wire Protocol" in MongoDB's manual).
"""

from __future__ import annotations

import asyncio
import struct
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wds.local import embedded_engines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

HEADER = struct.Struct("<iiii")
OP_MSG = 2013
NAME_AT = HEADER.size + 4 + 1 + 4 + 1
"""Flags, the kind of section, the length of its document, the type of its first element."""


@dataclass
class Proxy:
    """Forwards to the port `upstream`; cuts the connection at the next `left` answers to `command`.

    Attributes:
        cut: the number of connections cut so far.
    """

    upstream: int
    port: int
    command: str = ""
    left: int = 0
    cut: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/?directConnection=true"

    async def handle(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        doomed: set[int] = set()

        def asked(request_id: int, _: int, command: str) -> bool:
            if self.left and command == self.command:
                self.left -= 1
                doomed.add(request_id)
            return True

        def answered(_: int, response_to: int, __: str) -> bool:
            self.cut += response_to in doomed
            return response_to not in doomed

        to_server = None
        try:
            server, to_server = await asyncio.open_connection("127.0.0.1", self.upstream)
            pumps = [
                asyncio.create_task(pump(client, to_server, asked)),
                asyncio.create_task(pump(server, to_client, answered)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in pumps:
                    each.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._tasks.discard(task)
            for writer in (to_client, to_server):
                if writer is not None:
                    writer.transport.abort()

    async def close(self) -> None:
        """Cut all connections."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def pump(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    passes: Callable[[int, int, str], bool],
) -> None:
    """Forward whole messages until `passes` refuses one or the connection ends."""
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            header = await reader.readexactly(HEADER.size)
            length, request_id, response_to, opcode = HEADER.unpack(header)
            message = header + await reader.readexactly(length - HEADER.size)
            command = ""
            if opcode == OP_MSG:
                command = message[NAME_AT : message.index(b"\0", NAME_AT)].decode()
            if not passes(request_id, response_to, command):
                return
            writer.write(message)
            await writer.drain()


@asynccontextmanager
async def cutting(upstream: int) -> AsyncIterator[Proxy]:
    """Run a proxy in front of the mongod at port `upstream`."""
    proxy = Proxy(upstream, embedded_engines.free_port())
    server = await asyncio.start_server(proxy.handle, "127.0.0.1", proxy.port, limit=2**26)
    async with server:
        try:
            yield proxy
        finally:
            server.close()
            await proxy.close()
