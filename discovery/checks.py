"""Finding out whether an instance is well: over HTTP, over TCP, and by gRPC's own health protocol."""

import asyncio
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from discovery.addresses import Addresses, NotSent
from discovery.grpc_client import HEALTH
from discovery.grpc_client import Client as GrpcClient
from discovery.http import Broken
from discovery.http import Client as HttpClient

addresses = Addresses()
http_client, grpc_client = HttpClient(addresses), GrpcClient(addresses)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked, and how. `seconds`: for one try."""

    host: str
    port: int
    scheme: str
    may_be_private: bool
    kind: str
    path: str
    seconds: float

    @property
    def tls(self) -> bool:
        return self.scheme in ("https", "grpcs")


async def fault(subject: Subject) -> str:
    """Why a check fails, after one try; nothing, if it passes. This ends, whatever the other side does."""
    try:
        async with asyncio.timeout(subject.seconds):
            return await TRIES[subject.kind](subject)
    except TimeoutError:
        return f"No answer within {subject.seconds:g} s."
    except (NotSent, Broken, OSError) as error:
        return str(error)[:200] or type(error).__name__


async def over_http(subject: Subject) -> str:
    """A GET is answered with a status from 200 to 299; redirects are not followed."""
    host = f"[{subject.host}]" if ":" in subject.host else subject.host
    head = [f"GET /{subject.path.lstrip('/')} HTTP/1.1", f"Host: {host}:{subject.port}", "Accept: */*",
            "User-Agent: syros-check", "Connection: close", "", ""]  # fmt: skip
    response = await http_client.once(
        subject.host, subject.port, subject.tls, subject.may_be_private, "\r\n".join(head).encode()
    )
    return "" if 200 <= response.status < 300 else f"Answered with status {response.status}."


async def over_tcp(subject: Subject) -> str:
    """A connection is taken."""
    why = ""
    for address in await addresses.allowed(subject.host, subject.port, subject.may_be_private):
        try:
            transport, _ = await asyncio.get_running_loop().create_connection(
                asyncio.Protocol, address, subject.port
            )
        except OSError as error:
            why = f"Cannot connect to {subject.host}:{subject.port}: {error}"[:200]
        else:
            transport.abort()
            return ""
    return why


async def over_grpc(subject: Subject) -> str:
    """`grpc.health.v1.Health/Check` says SERVING; the path is the service that is asked about."""
    request = HealthCheckRequest(service=subject.path).SerializeToString()
    reply = await grpc_client.ask(
        subject.host, subject.port, subject.tls, subject.may_be_private, subject.seconds, HEALTH, request, ()
    )
    if reply.status != "OK":
        return f"{reply.status}: {reply.message}"[:200]
    try:
        status: Any = HealthCheckResponse.FromString(reply.body).status
    except DecodeError:
        return "The answer is no HealthCheckResponse."
    names = HealthCheckResponse.ServingStatus
    return (
        ""
        if status == names.SERVING
        else f"It says {names.Name(status) if status in names.values() else status}."
    )


TRIES = {"http": over_http, "tcp": over_tcp, "grpc": over_grpc}
