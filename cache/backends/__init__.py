"""Where values are kept: what every backend does, whatever it is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from core.callers import Namespace
from core.errors import SyrosError


@dataclass(slots=True)
class Item:
    """A value on its way in. `kind` says how the bytes of `data` are to be read; to the backend it means nothing.

    `as_of`: the reading of the clock, or the lease, with which it was loaded.
    """

    data: bytes
    kind: str
    etag: str
    ttl_ms: int
    stale_ms: int
    tags: Sequence[str] = ()
    as_of: str | None = None
    if_etag: str | None = None
    only_if_absent: bool = False


@dataclass(slots=True)
class Found:
    """What there is for a key: a `hit`, something `stale`, or a `miss`. Times are milliseconds since 1970.

    `as_of` is the reading of the clock for who loads it now, and `lease` is there for the one who should, if leases
    were asked for; `lease_ms` is for the others: so long somebody else has it.
    """

    state: str
    as_of: str | None = None
    lease: str | None = None
    lease_ms: int = 0
    created: int = 0
    fresh: int = 0
    ends: int = 0
    etag: str = ""
    kind: str = ""
    tags: list[str] = field(default_factory=list)
    data: bytes = b""
    size: int = 0  # where only that was asked for


class Backend(Protocol):
    """Values by namespace and key. Each method is one atomic step, may raise Unavailable, and fails fresh: what it
    cannot vouch for is a miss."""

    async def get(self, namespace: Namespace, key: str, token: str = "", lease_ms: int = 0) -> Found:
        """What there is. Parameters: `token` asks for the lease, for that long."""

    async def peek(self, namespace: Namespace, key: str) -> str:
        """`ready`, `loading` (somebody has the lease) or `free`."""

    async def get_many(self, namespace: Namespace, keys: Sequence[str]) -> list[Found]:
        """What there is for each key: `left`, where what was found already is enough for one answer."""

    async def put(self, namespace: Namespace, key: str, item: Item) -> int:
        """Until when it is fresh.

        Raises: StaleLoad, EtagMismatch, AlreadyCached, CacheFull.
        """

    async def put_many(
        self, namespace: Namespace, items: Sequence[tuple[str, Item]]
    ) -> list[int | SyrosError]:
        """For each what `put` answers or raises."""

    async def delete(self, namespace: Namespace, key: str) -> bool:
        """Whether there was something. Loads that began before are refused."""

    async def touch(self, namespace: Namespace, key: str, ttl_ms: int, stale_ms: int) -> tuple[int, str]:
        """Until when it is fresh now, and its etag.

        Raises: CacheMiss.
        """

    async def incr(
        self, namespace: Namespace, key: str, by: int, initial: int, ttl_ms: int, tags: Sequence[str]
    ) -> tuple[int, int, str]:
        """The number, until when it is fresh, its etag.

        Raises: NotANumber.
        """

    async def invalidate(self, namespace: Namespace, tags: Sequence[str], mode: str, version: int) -> None:
        """Nothing that was loaded before this is served after it (hard), or only as stale (soft). `version`: of the
        namespace's stream `$cache`; doing it twice is safe."""

    async def applied(self, namespace: Namespace) -> int:
        """Up to which version of `$cache` everything has been applied."""

    async def begin_anew(self, namespace: Namespace) -> None:
        """Forget all there is."""
