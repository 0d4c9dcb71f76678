"""Where instances are, as a process remembers it: looked after twice a second, for those who call them often."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import choices
from typing import Protocol, TypeVar

from core.database import rows
from discovery.places import LISTED, OVERDUE, SERVICE_OF

# Whatever changes who is listed is an event of its service; but for time, where the sweep does not come in time.
STATE = f"""select coalesce(sum(version), 0)::bigint, count(*),
    (select count(*) from discovery_instance i where {OVERDUE}) from discovery_service"""
VERSIONS = "select id, version from discovery_service"
PLACES = f"""select i.id, i.address, i.port, i.scheme, i.weight, i.may_be_private
    from discovery_service s join discovery_instance i on i.id > s.id || '#' and i.id < s.id || '$'
    where s.id = any(%s) and {LISTED}"""
ALL_PLACES = f"""select i.id, i.address, i.port, i.scheme, i.weight, i.may_be_private
    from discovery_instance i join discovery_service s on {SERVICE_OF} where {LISTED}"""
MAINTAINED = "select id from discovery_service where maintenance is not null"
FEW = 20  # services that are read one by one


@dataclass(frozen=True, slots=True)
class Place:
    """Where an instance is called. `may_be_private`: also if that is no public address."""

    instance: str
    host: str
    port: int
    scheme: str
    weight: int
    may_be_private: bool


class Weighted(Protocol):
    @property
    def weight(self) -> int: ...


Each = TypeVar("Each", bound=Weighted)


def by_weight(found: Sequence[Each]) -> Each:
    """One of them, each as often as its weight is of the sum; where none has any, each as often as the others."""
    if len(found) == 1:
        return found[0]
    weights = [each.weight for each in found]
    return choices(found, weights if any(weights) else None)[0]


class Directory:
    """The instances of all services that lookups list as healthy, by `namespace/service`."""

    def __init__(self) -> None:
        self._places: dict[str, list[Place]] = {}
        self._versions: dict[str, int] = {}  # of the services, as they were read
        self._state: tuple[int, ...] = ()
        self.is_read = False
        self._maintained: set[str] = set()

    @property
    def services(self) -> list[str]:
        return list(self._places)

    async def refresh(self) -> None:
        """Read again what has changed.

        Raises: Unavailable.
        """
        (state,) = await rows(STATE)
        if state == self._state and not state[-1]:
            return
        versions: dict[str, int] = dict(await rows(VERSIONS))
        changed = [each for each, version in versions.items() if version != self._versions.get(each)]
        if len(changed) > FEW or state[-1] or not self.is_read:
            self._places = await self._read(ALL_PLACES, ())
        else:
            found = await self._read(PLACES, changed)
            for service in changed:
                self._keep(service, found.get(service, []))
        self._versions, self._state, self.is_read = versions, state, True

    @staticmethod
    async def _read(statement: str, services: Collection[str]) -> dict[str, list[Place]]:
        found: dict[str, list[Place]] = {}
        for address, *about in await rows(statement, [services] if services else ()):
            service, _, instance = address.partition("#")
            found.setdefault(service, []).append(Place(instance, *about))
        return found

    def note(self, service: str, place: Place) -> None:
        """An instance that this process has just registered."""
        self._keep(service, [*self._others(service, place.instance), place])

    def forget(self, service: str, instance: str) -> None:
        self._keep(service, self._others(service, instance))

    def forget_all(self, service: str) -> None:
        self._keep(service, [])

    def _others(self, service: str, instance: str) -> list[Place]:
        return [place for place in self._places.get(service, ()) if place.instance != instance]

    def _keep(self, service: str, places: list[Place]) -> None:
        if places:
            self._places[service] = places
        else:
            self._places.pop(service, None)

    def places(self, service: str) -> list[Place]:
        return self._places.get(service, [])

    def has(self, service: str) -> bool:
        return service in self._places

    async def refresh_maintained(self) -> None:
        """Raises: Unavailable."""
        self._maintained = {service for (service,) in await rows(MAINTAINED)}

    def maintain(self, service: str, enabled: bool) -> None:
        """A service that this process has just taken out for maintenance, or let come back."""
        (self._maintained.add if enabled else self._maintained.discard)(service)

    def is_maintained(self, service: str) -> bool:
        """Is all of it out for maintenance? For who does not lock the service to see."""
        return service in self._maintained

    def pick(self, service: str) -> Place | None:
        """One of them, by weight."""
        places = self._places.get(service)
        return by_weight(places) if places else None


directory = Directory()
