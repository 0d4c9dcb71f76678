"""Which addresses may be called: of what instances say of themselves, and of what their names resolve to."""

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from time import monotonic

RESOLVED = 10.0  # seconds that a name's addresses are remembered
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
        self._resolved: dict[tuple[str, int], tuple[float, list[str]]] = {}

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
        until, found = self._resolved.get((host, port), (0.0, []))
        if until > monotonic():
            return found
        try:
            answers = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise NotSent(f"There is no address of {host}: {error}") from None
        found = list(dict.fromkeys(str(answer[4][0]).partition("%")[0] for answer in answers))
        self._resolved[host, port] = (monotonic() + RESOLVED, found)
        return found


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
