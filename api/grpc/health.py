"""grpc.health.v1: what /ready says, for all services alike."""

import asyncio
import logging
from collections.abc import Iterable

from grpc import StatusCode
from grpc.aio import ServicerContext as Context
from grpc_health.v1.health_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)

from api import health
from api.grpc.calls import decoded, receive_from_stranger
from api.grpc.status import refuse
from core.errors import SyrosError

logger = logging.getLogger("syros.grpc")

LOOK_SECONDS, AGAIN_SECONDS = 5.0, 0.5  # while all is well, and while it is not
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """The health of this process's services; the empty name means all of them."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = {"", *services}
        self._status = NOT_SERVING
        self._changed = asyncio.Event()
        self._left = False

    async def follow(self) -> None:
        """Look again and again whether this process can do its work."""
        while not self._left:
            self._set(SERVING if await is_ready() else NOT_SERVING)
            await asyncio.sleep(LOOK_SECONDS if self._status == SERVING else AGAIN_SECONDS)

    def leave(self) -> None:
        """The process stops: say so, and end what watches."""
        self._left = True
        self._set(NOT_SERVING)

    def _set(self, status: HealthCheckResponse.ServingStatus) -> None:
        if status != self._status:
            self._status = NOT_SERVING if self._left else status
            self._changed.set()
            self._changed = asyncio.Event()

    # -- the methods ---------------------------------------------------------------------------------

    async def check(self, _: object, context: Context) -> bytes:
        try:
            service = decoded(HealthCheckRequest, await receive_from_stranger(context)).service
        except SyrosError as error:
            refuse(context, error, "")
            return b""
        if service not in self._services:
            context.set_code(StatusCode.NOT_FOUND)
        return written(self._status)

    async def watch(self, _: object, context: Context) -> None:
        """Say the status and each change of it. What is unknown is said so, and not an error."""
        try:
            service = decoded(HealthCheckRequest, await receive_from_stranger(context)).service
        except SyrosError as error:
            refuse(context, error, "")
            return
        while True:
            changed, status = self._changed, self._status if service in self._services else UNKNOWN
            await context.write(written(status))
            if self._left:
                return
            await changed.wait()

    async def list(self, _: object, context: Context) -> bytes:
        try:
            decoded(HealthListRequest, await receive_from_stranger(context))
        except SyrosError as error:
            refuse(context, error, "")
            return b""
        statuses = {name: HealthCheckResponse(status=self._status) for name in self._services}
        found: bytes = HealthListResponse(statuses=statuses).SerializeToString()
        return found


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
