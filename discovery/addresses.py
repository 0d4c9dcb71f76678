"""Which addresses may be called: of what instances say of themselves, and of what their names resolve to."""

import asyncio
import socket
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from threading import Thread
from time import monotonic
from typing import Any

RESOLVED = 10.0  # seconds that a name's addresses are remembered
UNRESOLVED = 2.0  # seconds that it is remembered that there are none
LOOKUPS = 16  # at a time; a name whose servers do not answer takes one for long
MANY = 10_000  # names; of more, those are forgotten that would have to be looked up again
# Where clouds keep what their machines may do; not all of it is link-local.
METADATA = {
    ip_address(address)
    for address in ("169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254")
}
# IPv6 in which an IPv4 address is meant: translated (NAT64), and the old compatible form.
TRANSLATED = [ip_network(each) for each in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")]


class NotSent(Exception):
    """The request did not leave: nobody can have carried it out."""


class Addresses:
    """The addresses of names: looked up once and used as they are, so that what was allowed is what is called."""

    def __init__(self) -> None:
        # Until when it holds, the addresses, or why there are none.
        self._resolved: dict[tuple[str, int], tuple[float, list[str], str]] = {}
        self._lookups: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(LOOKUPS)

    async def allowed(self, host: str, port: int, may_be_private: bool) -> list[str]:
        """Those that may be called, one at least.

        Raises: NotSent.
        """
        found = await self._addresses(host, port)
        allowed = [each for each in found if is_allowed(ip_address(each), may_be_private)]
        if not allowed:
            raise NotSent(
                f"{host} is {found[-1]}, which may not be called." if found else f"{host} has no address."
            )
        return allowed

    async def _addresses(self, host: str, port: int) -> list[str]:
        try:
            return [str(ip_address(host))]
        except ValueError:
            pass
        place = (host, port)
        if self._resolved.get(place, (0.0,))[0] <= monotonic():
            await self._look_up(place)
        _, found, why = self._resolved[place]
        if why:
            raise NotSent(why)
        return found

    async def _look_up(self, place: tuple[str, int]) -> None:
        """Once for all who need it, also if one of them does not wait for the end."""
        task = self._lookups.get(place)
        if task is None:
            task = self._lookups[place] = asyncio.create_task(self._resolve(place))
            task.add_done_callback(lambda _: self._lookups.pop(place))
        await asyncio.shield(task)

    async def _resolve(self, place: tuple[str, int]) -> None:
        host, port = place
        try:
            async with self._room:
                answers = await aside(partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            self._remember(place, UNRESOLVED, [], f"There is no address of {host}: {error}")
        else:
            found = list(dict.fromkeys(str(answer[4][0]).partition("%")[0] for answer in answers))
            self._remember(place, RESOLVED, found, "")

    def _remember(self, place: tuple[str, int], seconds: float, found: list[str], why: str) -> None:
        now = monotonic()
        if len(self._resolved) > MANY:
            self._resolved = {each: known for each, known in self._resolved.items() if known[0] > now}
        self._resolved[place] = (now + seconds, found, why)


async def aside(look: Any) -> Any:
    """What a function returns that may take long, in a thread which nobody waits for at the end. The loop's own are
    few, and everything that connects by a name needs them."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def work() -> None:
        try:
            what: tuple[Any, Any] = done.set_result, look()
        except Exception as error:
            what = done.set_exception, error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, *what)

    def tell(how: Any, what: Any) -> None:
        if not done.done():
            how(what)

    Thread(target=work, daemon=True, name="resolve").start()
    return await done


def ipv4_in(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that this one leads to, if it does."""
    if address.is_loopback or address.is_unspecified:
        return None
    if any(address in network for network in TRANSLATED):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def is_allowed(address: IPv4Address | IPv6Address, may_be_private: bool) -> bool:
    """May this address be called? Link-local ones and the metadata services of clouds never; others that are not
    public, such as loopback, only for instances that an administrator registered."""
    if isinstance(address, IPv6Address) and (inner := ipv4_in(address)):
        return is_allowed(inner, may_be_private)
    if address in METADATA or address.is_link_local or address.is_multicast or address.is_unspecified:
        return False
    return may_be_private or address.is_global
