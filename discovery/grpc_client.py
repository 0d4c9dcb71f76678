"""Calling instances over gRPC: channels that are kept, answers that are bounded, addresses that are allowed.

The only module of the apps that knows grpcio, which does as little by itself as it can be told to: it resolves no
names, takes no proxy, sends nothing twice, unpacks nothing. It is imported at once, because every process that serves
has it loaded for the port of its own.
"""

import asyncio
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import ChannelConnectivity, StatusCode

from core.runtime import runtime
from discovery.addresses import Addresses, NotSent
from discovery.http import IDLE, MAX_BODY, Broken

ENVELOPE = 1024  # bytes of an answer beside its output
EARLY = 0.05  # seconds before its time that grpcio may call a call late
ASKING_WHY = 1.0  # seconds
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),  # else channels would share connections, and how TLS was checked
    ("grpc.max_receive_message_length", MAX_BODY + ENVELOPE),
    ("grpc.per_message_decompression", 0),  # 1 MiB can become 1 GiB
    ("grpc.compression_enabled_algorithms_bitset", 1),  # tells participants so
    ("grpc.primary_user_agent", "syros"),
    # Else what is sent to a machine that is gone would wait a quarter of an hour. More often servers do not allow.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]
HEALTH = "/grpc.health.v1.Health/Check"

Place = tuple[str, str, int, bool]  # the address that was allowed, the name, the port, TLS


@dataclass(slots=True)
class Reply:
    """How a call ended: the status by name; with OK the message, else what is said of it. `retry_after` in seconds."""

    status: str
    body: bytes = b""
    message: str = ""
    reason: str | None = None
    retry_after: float | None = None


@dataclass(slots=True)
class Line:
    """A channel, and how many use it."""

    place: Place
    channel: Any
    users: int = 0
    closing: asyncio.TimerHandle | None = None


class Client:
    """Channels by the address they lead to; used from one loop."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._lines: dict[Place, Line] = {}
        self._tls: Any = None

    async def ask(
        self, host: str, port: int, tls: bool, may_be_private: bool, seconds: float, method: str, request: bytes,
        metadata: Sequence[tuple[str, str]],
    ) -> Reply:  # fmt: skip
        """Call a method with a message as it is, within `seconds`, the time to connect included.

        Raises: NotSent; Broken; TimeoutError, once it was sent.
        """
        until, why = monotonic() + seconds, ""
        try:
            async with asyncio.timeout(seconds) as connecting:
                for address in await self._addresses.allowed(host, port, may_be_private):
                    with self._line((address, host, port, tls)) as line:
                        if not (why := await self._connect(line.channel)):
                            connecting.reschedule(None)
                            return await self._call(line.channel, until, method, request, metadata)
                        self._drop(line)
        except TimeoutError:
            if not connecting.expired():
                raise
            why = f"not within {seconds:g} s."
        raise NotSent(f"Cannot connect to {host}:{port}: {why}"[:300])

    async def _connect(self, channel: Any) -> str:
        """Wait until it is connected, so that nothing is sent where nobody can take it; why it cannot be, or nothing.
        Connected means that the other side has begun to speak HTTP/2."""
        while (state := channel.get_state(try_to_connect=True)) is not ChannelConnectivity.READY:
            if state is ChannelConnectivity.TRANSIENT_FAILURE:
                return await self._why(channel)
            await channel.wait_for_state_change(state)
        return ""

    async def _why(self, channel: Any) -> str:
        """grpcio tells only calls what is wrong. This one would do no harm if it were carried out."""
        try:
            await channel.unary_unary(HEALTH)(b"", timeout=ASKING_WHY)
        except grpc.aio.AioRpcError as error:
            return str(error.details()).removeprefix("failed to connect to all addresses; last error: ")
        return "it was not there."

    async def _call(
        self, channel: Any, until: float, method: str, request: bytes, metadata: Sequence[tuple[str, str]]
    ) -> Reply:
        try:
            call = channel.unary_unary(method)
            body = await call(request, timeout=until - monotonic(), metadata=tuple(metadata))
        except grpc.aio.AioRpcError as error:
            if error.code() is StatusCode.DEADLINE_EXCEEDED and until - monotonic() < EARLY:
                raise TimeoutError from None
            return refusal(error)
        if body is None:
            raise Broken("The call ended well, without an answer.")
        return Reply("OK", body)

    # -- channels ------------------------------------------------------------------------------------

    @contextmanager
    def _line(self, place: Place) -> Iterator[Line]:
        """The channel to a place. One that nobody uses any more is closed after a while; at once, if it was dropped."""
        line = self._lines.get(place)
        if line is None:
            line = self._lines[place] = Line(place, self._open(*place))
        if line.closing:
            line.closing.cancel()
        line.users += 1
        try:
            yield line
        finally:
            line.users -= 1
            if not line.users:
                wait = IDLE if self._lines.get(place) is line else 0.0
                line.closing = asyncio.get_running_loop().call_later(wait, self._close, line)

    def _open(self, address: str, host: str, port: int, tls: bool) -> Any:
        kind = "ipv4" if ip_address(address).version == 4 else "ipv6"
        target = f"{kind}:{bracketed(address)}:{port}"
        # It is an address that is connected to, but a name that is asked for, and that the certificate must have.
        options = [*OPTIONS, ("grpc.default_authority", f"{bracketed(host)}:{port}")]
        if not tls:
            return grpc.aio.insecure_channel(target, options=options)
        if self._tls is None:
            self._tls = grpc.ssl_channel_credentials(trusted())
        return grpc.aio.secure_channel(target, self._tls, options=options)

    def _drop(self, line: Line) -> None:
        """The next who calls connects anew."""
        if self._lines.get(line.place) is line:
            del self._lines[line.place]

    def _close(self, line: Line) -> None:
        self._drop(line)
        runtime.spawn(line.channel.close())


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def trusted() -> bytes | None:
    """The authorities that the system trusts, as over HTTPS; None, where it names none: then those of grpcio."""
    paths = ssl.get_default_verify_paths()
    files = [Path(paths.cafile)] if paths.cafile else []
    files += sorted(Path(paths.capath).glob("*.[0-9]")) if paths.capath else []
    return b"\n".join(file.read_bytes() for file in files if file.is_file()) or None


# -- what comes with a refusal -----------------------------------------------------------------------


def refusal(error: Any) -> Reply:
    reply = Reply(error.code().name, message=error.details() or "")
    for detail in details(error):
        info, retry = ErrorInfo(), RetryInfo()
        if unpacked(detail, info):
            reply.reason = info.reason or None
        elif unpacked(detail, retry):
            reply.retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return reply


def details(error: Any) -> Sequence[Any]:
    """Google's error details, if they are there and can be read."""
    found = [value for name, value in error.trailing_metadata() or () if name == "grpc-status-details-bin"]
    try:
        return list(Status.FromString(found[0]).details) if found else []
    except DecodeError:
        return []


def unpacked(detail: Any, into: Message) -> bool:
    """Is it such a message? Then it is there."""
    try:
        return bool(detail.Unpack(into))
    except DecodeError:
        return False
