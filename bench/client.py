"""An HTTP client of a few lines: one connection, one request at a time, nothing between the clock and the wire."""

import asyncio
import json
from typing import Any

from bench.servers import Syros


class Client:
    """A kept-alive connection to a Syros process."""

    def __init__(self, server: Syros, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._head = f"Host: 127.0.0.1\r\nX-API-Key: {server.api_key}\r\nContent-Type: application/json\r\n"

    @classmethod
    async def open(cls, server: Syros) -> "Client":
        return cls(server, *await asyncio.open_connection("127.0.0.1", server.port))

    async def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer's body.

        Raises: RuntimeError, for an answer of 400 or above.
        """
        content = json.dumps(body) if body is not None else ""
        head = f"{method} /api/v1/{path} HTTP/1.1\r\n{self._head}Content-Length: {len(content)}\r\n\r\n"
        self._writer.write((head + content).encode())
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
        answer: dict[str, Any] = json.loads(await self._reader.readexactly(length))
        if int(lines[0].split()[1]) >= 400:
            raise RuntimeError(f"{method} {path}: {answer}")
        return answer

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()
