"""A participant that costs little: it answers every step at once, and tells at `GET /count` how many there were.

Steps at `/hold` it leaves unanswered until `GET /release`."""

import asyncio
import sys
from typing import Any

import httptools
import uvloop

ANSWER = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{"ok":true}'
count = 0
held: list[Any] | None = []  # transports that wait; none once released


class Connection(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_message_complete(self) -> None:
        global count
        if self.parser.get_method() == b"GET":
            self.transport.write(told())
            if self.url == b"/release":
                release()
            return
        count += 1
        if self.url == b"/hold" and held is not None:
            held.append(self.transport)
        else:
            self.transport.write(ANSWER)


def told() -> bytes:
    text = str(count).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text)


def release() -> None:
    global held
    waiting, held = held or [], None
    for transport in (each for each in waiting if not each.is_closing()):
        transport.write(ANSWER)


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
