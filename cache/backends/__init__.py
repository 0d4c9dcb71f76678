"""Where values are kept: what every backend does, whatever it is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from core.callers import Namespace
from core.errors import Invalid, SyrosError


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


ENOUGH = 16 << 20  # bytes of values in one answer, as they are kept and as they are told


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

    @property
    def used(self) -> Sequence[str]:
        """The namespaces that this process has used, as far as they have to be swept."""

    async def sweep(self, namespace: Namespace, oldest_ms: int, most: int, limit: int) -> int:
        """Forget tags that matter no more, up to `limit`; how many these were."""

    async def clean(self) -> None:
        """Clear away some of what ran out."""

    async def scan(
        self, namespace: Namespace, prefix: str, tag: str | None, place: str | None, limit: int
    ) -> tuple[list[tuple[str, Found]], str | None, bool]:
        """Items whose keys begin so and that have this tag; where to go on; whether it ended before it had a page."""

    async def add_counts(self, namespace: Namespace, counts: Mapping[str, int]) -> None:
        """Add to what is counted of a namespace."""

    async def counts(self, namespace: Namespace) -> tuple[dict[str, int], int]:
        """What is counted of a namespace; how many bytes its values take, where it has a quota."""

    def look(self) -> None:
        """Ask whether the server is there, twice a second."""

    def close(self) -> None:
        """The process stops."""


def other_place() -> Invalid:
    """A cursor that another backend gave."""
    return Invalid([{"pointer": "/cursor", "code": "cursor", "detail": "a next_cursor as it was given"}])
