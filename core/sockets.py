"""WebSockets for peers of every kind: uvicorn's, which also bounds what one that floods, stalls or never reads can
hold here, and how long the others wait for it.

Two things go beyond ASGI. `websocket.send` raises TimeoutError for a peer that reads nothing of what it was sent.
And where the scope's extensions have TRUST, a message of that type lets larger messages in from then on.
"""

import asyncio
import struct
from typing import Any, cast

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode

MAX_MESSAGE_BYTES = 16 << 20  # the largest body that an operation takes
STRANGER_BYTES = 64 << 10  # the largest message of a peer that the application does not trust yet
SLICE_BYTES = 8 << 10  # looked through at a time: 1,400 empty frames, which cost the most, are 20 ms
TOGETHER_BYTES = 32 << 10  # written at a time
PING_SECONDS = 20.0  # between pings, and for the answer to one: who does not answer is gone
SLOW_SECONDS = 10.0  # in which a peer has to read something of what waits for it
CLOSE_SECONDS = 3.0  # for a peer to read the last words and say good-bye
TRUST = "syros.trust"


class Outlet:
    """A connection's transport, which sends together what is written in one turn of the loop, since each sending costs
    as much as all that went before; takes what comes too late; and closes even if the peer does not read the rest."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._written: list[bytes] = []
        self._size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(data)
        self._size += len(data)
        if self._size > TOGETHER_BYTES:  # the transport says when it is too much
            self._flush()

    def _flush(self) -> None:
        if self._written and not self._transport.is_closing():
            self._transport.write(b"".join(self._written))
        self._written.clear()
        self._size = 0

    def get_write_buffer_size(self) -> int:
        found: int = self._transport.get_write_buffer_size()
        return self._size + found

    def close(self) -> None:
        self._flush()
        self._transport.close()
        if self._transport.get_write_buffer_size():
            self._loop.call_later(CLOSE_SECONDS, self._transport.abort)


class Connection(WebSocketsSansIOProtocol):
    """One connection, from its handshake on."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ping_interval = self.ping_timeout = PING_SECONDS
        self.close_timeout = CLOSE_SECONDS
        self.conn.max_message_size = STRANGER_BYTES
        self._unread = b""  # arrived, not looked through yet
        self._is_slow = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(cast(Any, Outlet(transport, self.loop)))

    def shutdown(self) -> None:
        """The server stops. The application hears it as a disconnect, finishes what is under way, and closes."""
        if self.close_sent or not self.handshake_complete:
            super().shutdown()
            return
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": int(CloseCode.SERVICE_RESTART)})

    # -- what comes in -------------------------------------------------------------------------------

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if not self.close_sent:
            cast(Any, self.scope)["extensions"][TRUST] = {}

    def data_received(self, data: bytes) -> None:
        self._unread = self._unread + data if self._unread else data
        self._look_through()

    def _look_through(self) -> None:
        """A slice of what arrived, if the application is ready for it; the others have their turn before the next."""
        if self._is_held() or self.transport.is_closing():
            return
        data, self._unread = self._unread[:SLICE_BYTES], self._unread[SLICE_BYTES:]
        super().data_received(data)
        if self._unread and not self.transport.is_closing():
            self.transport.pause_reading()
        self._go_on()

    def _is_held(self) -> bool:
        # Who does not read answers and pongs is not heard any further.
        return self.read_paused or not self.writable.is_set()

    def _go_on(self) -> None:
        if self._is_held() or self.transport.is_closing():
            return
        if self._unread:
            self.loop.call_soon(self._look_through)
        else:
            self.transport.resume_reading()

    async def receive(self) -> Any:
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self._go_on()
        return message

    def handle_cont(self, event: Any) -> None:
        # Joined as they come: as a list, fragments of a byte each, or of none, would be far larger than their sum.
        if not isinstance(self.frames[0], bytearray):
            self.frames[0] = cast(Any, bytearray(self.frames[0]))
        self.frames[0] += event.data
        if event.fin:
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        (data,), self.frames = self.frames, []
        if self.close_sent:
            return
        if self.curr_msg_data_type == "bytes":
            message: Any = {"type": "websocket.receive", "bytes": bytes(data)}
        else:
            try:
                message = {"type": "websocket.receive", "text": data.decode()}
            except UnicodeDecodeError:
                self.conn.fail(CloseCode.INVALID_DATA, "text is UTF-8")
                self.handle_parser_exception()
                return
        self.queue.put_nowait(message)
        self.read_paused = True
        self.transport.pause_reading()

    # -- what goes out -------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._go_on()

    async def send(self, message: Any) -> None:
        """Raises: ClientDisconnected; TimeoutError, for a peer that does not read."""
        kind = message["type"]
        if kind == TRUST:
            self.conn.max_message_size = MAX_MESSAGE_BYTES
        elif kind == "websocket.send" and message.get("text") is not None:
            await self._drained()
            self._check_open()
            self.transport.write(text_frame(message["text"].encode()))
        else:
            if kind == "websocket.close":
                self._check_open()
                self.writable.set()  # the last words do not wait
            await super().send(message)

    def _check_open(self) -> None:
        if self.close_sent or self.disconnected or self.transport.is_closing():
            raise ClientDisconnected

    async def _drained(self) -> None:
        """Wait until there is room. One that is slow is not waited for again: it is only said good-bye to."""
        while not self.writable.is_set() and not self._is_slow:
            waits = self.transport.get_write_buffer_size()
            try:
                async with asyncio.timeout(SLOW_SECONDS):
                    await self.writable.wait()
            except TimeoutError:
                if self.transport.get_write_buffer_size() >= waits:
                    self._is_slow = True
                    raise


def text_frame(payload: bytes) -> bytes:
    """A text message in one frame, unmasked, as servers send it (RFC 6455, 5.2)."""
    size = len(payload)
    if size < 126:
        return b"\x81%c%b" % (size, payload)
    if size < 1 << 16:
        return struct.pack("!BBH", 0x81, 126, size) + payload
    return struct.pack("!BBQ", 0x81, 127, size) + payload
