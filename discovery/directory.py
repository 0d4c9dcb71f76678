"""Where instances are, as a process remembers it: read twice a second, for those who call them often."""

from dataclasses import dataclass
from random import choices

from core.database import rows
from discovery.places import LISTED, SERVICE_OF

ALIVE = f"""select i.id, i.address, i.port, i.scheme, i.weight, i.may_be_private
    from discovery_instance i join discovery_service s on {SERVICE_OF} where {LISTED}"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an instance is called. `may_be_private`: also if that is no public address."""

    instance: str
    host: str
    port: int
    scheme: str
    weight: int
    may_be_private: bool


class Directory:
    """The instances of all services that lookups list as healthy, by `namespace/service`."""

    def __init__(self) -> None:
        self._places: dict[str, list[Place]] = {}
        self.is_read = False

    @property
    def services(self) -> list[str]:
        return list(self._places)

    async def refresh(self) -> None:
        """Read them again.

        Raises: Unavailable.
        """
        found: dict[str, list[Place]] = {}
        for address, *about in await rows(ALIVE):
            service, _, instance = address.partition("#")
            found.setdefault(service, []).append(Place(instance, *about))
        self._places, self.is_read = found, True

    def note(self, service: str, place: Place) -> None:
        """An instance that this process has just registered."""
        self.forget(service, place.instance)
        self._places.setdefault(service, []).append(place)

    def forget(self, service: str, instance: str) -> None:
        left = [place for place in self._places.get(service, ()) if place.instance != instance]
        if left:
            self._places[service] = left
        else:
            self._places.pop(service, None)

    def forget_all(self, service: str) -> None:
        self._places.pop(service, None)

    def places(self, service: str) -> list[Place]:
        return self._places.get(service, [])

    def has(self, service: str) -> bool:
        return service in self._places

    def pick(self, service: str) -> Place | None:
        """One of them, by weight."""
        places = self._places.get(service)
        if not places:
            return None
        if len(places) == 1:
            return places[0]
        weights = [place.weight for place in places]
        return choices(places, weights if any(weights) else None)[0]


directory = Directory()
