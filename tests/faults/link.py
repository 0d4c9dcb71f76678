"""A network between two, which can be cut: nothing is lost then and nothing is told, it only does not arrive."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict


class Link:
    """A port of its own that leads to another one, or to a socket in a folder. While it is cut, what was sent waits on
    the way, as TCP keeps it; who connects then hears nothing."""

    def __init__(self, target: int | Path) -> None:
        self.target, self.port = target, 0
        self._loop = asyncio.new_event_loop()
        self._whole = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "Link":
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *error: Any) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        self._loop.call_soon_threadsafe(self._whole.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._whole.set)

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _listen(self) -> None:
        self._whole.set()
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await self._whole.wait()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            other_reader, other_writer = await self._open()
            await asyncio.gather(self._pump(reader, other_writer), self._pump(other_reader, writer))

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.target, Path):
            return await asyncio.open_unix_connection(self.target)
        return await asyncio.open_connection("127.0.0.1", self.target)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until one of them hangs up; the other learns of it by the same way."""
        try:
            while data := await reader.read(1 << 16):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
            await self._whole.wait()
        finally:
            writer.close()


def place_of(url: str) -> int | Path:
    """The port or the socket of a PostgreSQL."""
    parts = conninfo_to_dict(url)
    folder, port = str(parts.get("host", "")), int(parts.get("port") or 5432)
    return Path(folder) / f".s.PGSQL.{port}" if folder.startswith("/") else port
