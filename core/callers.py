"""Who calls, where, and whether they may."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from time import monotonic
from typing import TYPE_CHECKING, Any

from django.conf import settings

from core.errors import Forbidden, Internal, NotFound, SyrosError, Unauthenticated, Unavailable

logger = logging.getLogger("syros.callers")

if TYPE_CHECKING:
    from core.operations import Operation

# A verdict is kept this long: a revoked key or a disabled user is out within 5 s in every process, even
# where no wake-up arrives.
VERDICT_SECONDS = 3.0
VERDICTS = 10_000
NAMESPACES = "select name, number, locks from core_namespace where name = any(%s)"
REVIEW_SECONDS = 1.5  # between two looks at a caller who is served for long; thousands may wait
NAMESPACE_LENGTH = 63
_LOOPBACK = r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?"
LOOPBACK_HOST = re.compile(_LOOPBACK, re.IGNORECASE)
LOOPBACK_ORIGIN = re.compile(f"https?://{_LOOPBACK}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Namespace:
    name: str
    number: int
    volatile: bool = False  # whether its locks are


@dataclass(frozen=True, slots=True)
class Caller:
    """A principal (`user:alice`, `key:9f2c…`, `developer`) and what its credential carries."""

    principal: str
    namespace: str = "default"
    is_admin: bool = False
    is_confined: bool = False  # to that namespace: for the others it is as if they were not there


Who = Callable[[], Awaitable[Caller]]


@dataclass(slots=True)
class Call:
    """One use of an operation: the caller, the namespace it works in, and what the transport was told."""

    caller: Caller
    namespace: Namespace
    request_id: str = ""
    idempotency_key: str | None = None
    correlation_id: str | None = None
    traceparent: str | None = None  # W3C: the span on whose behalf it is
    size: int = 0  # bytes of the body
    who: Who | None = None  # asks again who calls; None, where the connection as a whole is looked at


def authorize(caller: Caller, operation: "Operation", params: Mapping[str, Any]) -> None:
    """May this caller do this? The one place that says so, for every transport.

    Raises: Forbidden.
    """
    if operation.admin and not caller.is_admin:
        raise Forbidden(f"{operation.name} is for administrators.", operation=operation.name)


class Verdicts:
    """What a credential turned out to be, remembered for a few seconds: bounded, and dropped all at once."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, Caller]] = {}

    def get(self, credential: str) -> Caller | None:
        kept = self._kept.get(credential)
        return kept[1] if kept and kept[0] > monotonic() else None

    def put(self, credential: str, caller: Caller) -> None:
        if len(self._kept) >= VERDICTS:
            self._kept.clear()
        self._kept[credential] = (monotonic() + VERDICT_SECONDS, caller)

    def clear(self) -> None:
        self._kept.clear()


verdicts = Verdicts()
Authenticator = Callable[[Sequence[str]], Awaitable[dict[str, Caller]]]
_authenticators: list[Authenticator] = []
_reviews: dict[str, "asyncio.Task[dict[str, Caller]]"] = {}  # under way


def authenticator(function: Authenticator) -> Authenticator:
    """Register a way to tell whom credentials belong to; it answers for those of its kind that are good."""
    _authenticators.append(function)
    return function


async def identify(credential: str | None, *, peer: str, host: str, origin: str | None) -> Caller:
    """The caller behind a credential, or the developer on this machine who needs none.

    Parameters: the bare token or key; the socket's peer address (never a header's); the Host and Origin.
    Raises: Unauthenticated, Forbidden.
    """
    if not credential:
        return developer(peer, host, origin)
    if known := verdicts.get(credential):
        return known
    if found := (await review_together(credential)).get(credential):
        return found
    raise Unauthenticated


async def review_together(credential: str) -> dict[str, Caller]:
    """A review that all share who ask for the same credential meanwhile: thousands may wait with one, and look again
    in the moment its verdict is over."""
    task = _reviews.get(credential)
    if task is None:
        task = _reviews[credential] = asyncio.create_task(review([credential]))
        task.add_done_callback(lambda _: _reviews.pop(credential))
    return await asyncio.shield(task)


async def review(credentials: Sequence[str]) -> dict[str, Caller]:
    """The callers behind those of the credentials that are good at this moment, whatever is remembered of them.

    Raises: Unavailable.
    """
    found: dict[str, Caller] = {}
    for authenticate in _authenticators:
        if left := [credential for credential in credentials if credential not in found]:
            found |= await authenticate(left)
    for credential, caller in found.items():
        verdicts.put(credential, caller)
    return found


async def turned_away(who: Who, check: Callable[[Caller], None] = lambda _: None) -> SyrosError:
    """Wait until a caller who was let in would not be let in again, and say why: within 5 seconds of it.

    Parameters: who asks again who it is; `check` raises what it may not do any more.
    """
    while True:
        await asyncio.sleep(REVIEW_SECONDS)
        try:
            check(await who())
        except Unavailable:
            continue
        except SyrosError as error:
            return error
        except Exception:
            logger.exception("it cannot be told whether a caller is still allowed")
            return Internal()


@asynccontextmanager
async def while_allowed(call: Call, operation: "Operation", params: Mapping[str, Any]) -> AsyncIterator[None]:
    """Break what is done here off once the caller is turned away, or may not do it any more. For what takes long.

    Raises: Unauthenticated, Forbidden.
    """
    if call.who is None:
        yield
        return
    who, task, refusals = call.who, asyncio.current_task(), list[SyrosError]()
    assert task

    async def watch() -> None:
        refusals.append(await turned_away(who, lambda caller: authorize(caller, operation, params)))
        task.cancel()  # in the same step, so that it cannot come after the block

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not refusals or task.uncancel():  # it is somebody else who ends it
            raise
        raise refusals[0] from None
    finally:
        watching.cancel()


ANONYMOUS = Caller("anonymous")
SYSTEM = Caller("system", is_admin=True)
DEVELOPER = Caller("developer", is_admin=True)


def developer(peer: str, host: str, origin: str | None) -> Caller:
    if not settings.DEV or not is_loopback(peer):
        raise Unauthenticated
    # A page in a browser on this machine must not drive its Syros: neither under a foreign name that
    # resolves to 127.0.0.1, nor by a form or script of another site.
    if not LOOPBACK_HOST.fullmatch(host):
        raise Forbidden("In development mode Host must be a loopback name.", host=host)
    if origin and not LOOPBACK_ORIGIN.fullmatch(origin):
        raise Forbidden("In development mode a foreign Origin is refused.", origin=origin)
    return DEVELOPER


@lru_cache(maxsize=1024)
def is_loopback(address: str) -> bool:
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def no_namespace(name: str) -> NotFound:
    return NotFound("There is no such namespace.", namespace=name[:NAMESPACE_LENGTH])


class Namespaces:
    """The namespaces there are, by name, remembered: they are never renamed or renumbered. What is set of one is
    looked up again when a process says that access changed, and every few seconds in any case."""

    def __init__(self) -> None:
        self._known: dict[str, Namespace] = {}

    async def of(self, caller: Caller, name: str = "") -> Namespace:
        """The namespace that a caller names, or its credential's own.

        Raises: NotFound, also for one that the caller is not of.
        """
        if caller.is_confined and name not in {"", caller.namespace}:
            raise no_namespace(name)
        return await self.get(name or caller.namespace)

    async def get(self, name: str) -> Namespace:
        if known := self._known.get(name):
            return known
        if len(name) > NAMESPACE_LENGTH or not name.isprintable():
            raise no_namespace(name)
        if found := await self.find(name):
            return found
        raise no_namespace(name)

    async def find(self, name: str) -> Namespace | None:
        """The namespace as the database says."""
        await self._look_up([name])
        return self._known.get(name)

    async def _look_up(self, names: Sequence[str]) -> None:
        from core.database import rows

        for name, number, locks in await rows(NAMESPACES, [names]):
            self._known[name] = Namespace(name, number, locks == "volatile")

    async def refresh(self) -> None:
        """Look all of them up again that are remembered."""
        await self._look_up(list(self._known))

    def clear(self) -> None:
        self._known.clear()


namespaces = Namespaces()
