"""grpc.health.v1: what /ready says, for all services alike."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message
from grpc import StatusCode
from grpc.aio import ServicerContext as Context
from grpc_health.v1.health_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)

from api import health
from api.grpc.calls import Places, decoded, peer_of, receive
from api.grpc.status import refuse
from core.errors import SyrosError

logger = logging.getLogger("syros.grpc")

CHECK_SECONDS = 3.0  # for a message of a few bytes to arrive
CHECKS, PROCESS_CHECKS = 32, 200  # of one address and of all: messages awaited
# Clients watch once for each of their connections, maybe through one proxy.
WATCHES, PROCESS_WATCHES = 200, 1000
LOOK_SECONDS, AGAIN_SECONDS = 5.0, 0.5  # while all is well, and while it is not
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """The health of this process's services; the empty name means all of them."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = {"", *services}
        self._status: int = NOT_SERVING
        self._said = asyncio.Event()
        self._left = False
        self._checks, self._watches = Places(), Places()

    async def follow(self) -> None:
        """Look again and again whether this process can do its work."""
        while True:
            self._say(SERVING if await is_ready() else NOT_SERVING)
            await asyncio.sleep(LOOK_SECONDS if self._status == SERVING else AGAIN_SECONDS)

    def leave(self) -> None:
        """The process stops: say so, and end what watches."""
        self._left = True
        self._say(NOT_SERVING)

    def _say(self, status: int) -> None:
        self._status = status
        self._said.set()
        self._said = asyncio.Event()

    # -- the methods ---------------------------------------------------------------------------------

    async def check(self, _: object, context: Context) -> bytes:
        if (request := await self._asked(HealthCheckRequest, context)) is None:
            return b""
        if request.service not in self._services:
            context.set_code(StatusCode.NOT_FOUND)
        return written(self._status)

    async def watch(self, _: object, context: Context) -> None:
        """Say the status and each change of it. What is unknown is said so, and not an error."""
        if (request := await self._asked(HealthCheckRequest, context)) is None:
            return
        try:
            with self._watches.take(peer_of(context), WATCHES, PROCESS_WATCHES):
                await self._tell(request, context)
        except SyrosError as error:
            refuse(context, error, "")

    async def _tell(self, request: Any, context: Context) -> None:
        last = None
        while True:
            said, status = self._said, self._status if request.service in self._services else UNKNOWN
            if status != last:
                await context.write(written(status))
                last = status
            if self._left:
                return
            await said.wait()

    async def list(self, _: object, context: Context) -> bytes:
        if await self._asked(HealthListRequest, context) is None:
            return b""
        statuses = {name: HealthCheckResponse(status=self._status) for name in self._services}
        found: bytes = HealthListResponse(statuses=statuses).SerializeToString()
        return found

    async def _asked(self, kind: type[Message], context: Context) -> Any:
        """What the peer asks; None, if it does not, and the call is refused."""
        try:
            with self._checks.take(peer_of(context), CHECKS, PROCESS_CHECKS):
                return decoded(kind, await receive(context, CHECK_SECONDS))
        except SyrosError as error:
            refuse(context, error, "")
            return None


async def is_ready() -> bool:
    try:
        status, _ = await health.look("/ready")
    except Exception:
        logger.exception("the look at the health broke")
        return False
    return status == 200


def written(status: int) -> bytes:
    found: bytes = HealthCheckResponse(status=status).SerializeToString()
    return found
