"""A cluster of Redis or Valkey: which node has which name, and a connection to each."""

import asyncio
from binascii import crc_hqx
from collections.abc import Callable, Iterator

from hiredis import ReplyError

from core.errors import Unavailable
from core.valkey import Address, Connection, Valkey, away, place

SLOTS = 16384
REST_SECONDS = 0.1  # between two looks at the map of slots
# What a node says that has not what was asked for: any more, yet, or because the cluster is not whole.
ELSEWHERE = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")


def slot_of(name: str) -> int:
    """The slot of a name: of what is in its first braces, if there is anything."""
    _, opened, rest = name.partition("{")
    tag, closed, _ = rest.partition("}")
    return crc_hqx((tag if opened and closed and tag else name).encode(), 0) % SLOTS


class Cluster:
    """The nodes. Parameters: `seed`, the connection to one of them, which says where the others are; `lost()`, when a
    connection is gone."""

    def __init__(self, seed: Valkey, lost: Callable[[], None]) -> None:
        self._seed, self._lost = seed, lost
        self._nodes: dict[Address, Valkey] = {}
        self._map: list[Address | None] = []
        self._looking: asyncio.Task[None] | None = None

    async def at(self, name: str) -> Connection:
        """The connection to the node that has this name. If it is gone, the map is read again for who asks next.

        Raises: Unavailable.
        """
        if not self._map:
            await self.look_up()
        address = self._map[slot_of(name)]
        try:
            if address is None:
                raise away()
            return await self._node(address).ready()
        except Unavailable:
            self._look_up_soon()
            raise

    def _node(self, address: Address) -> Valkey:
        if address not in self._nodes:
            self._nodes[address] = Valkey(None, lambda _: None, self._lost, as_text=False, address=address)
        return self._nodes[address]

    def _look_up_soon(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look_up_later())

    async def _look_up_later(self) -> None:
        await asyncio.sleep(REST_SECONDS)
        try:
            await self.look_up()
        except Unavailable:
            return

    async def look_up(self) -> None:
        """Ask whichever node answers which of them has what.

        Raises: Unavailable.
        """
        for each in [*self._nodes.values(), self._seed]:
            try:
                connection = await each.ready()
                found = await connection.ask("CLUSTER", "SLOTS")
            except Unavailable:
                continue
            if not isinstance(found, ReplyError) and found:
                self._map = slots(found)
                self._forget_others()
                return
        raise away()

    def _forget_others(self) -> None:
        for address in set(self._nodes) - set(self._map):
            self._nodes.pop(address).close()

    def connections(self) -> Iterator[Valkey]:
        yield from self._nodes.values()


def slots(ranges: list[list[object]]) -> list[Address | None]:
    """Who has each slot, from what CLUSTER SLOTS answers: ranges, each with its node first and replicas after it."""
    found: list[Address | None] = [None] * SLOTS
    for start, end, node, *_ in ranges:
        assert isinstance(start, int)
        assert isinstance(end, int)
        assert isinstance(node, list)
        host = node[0].decode() if node[0] else place().get("host", "localhost")
        found[start : end + 1] = [(host, int(node[1]))] * (end + 1 - start)
    return found
