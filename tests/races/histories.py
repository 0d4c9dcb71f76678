"""What a recorded history must look like, whatever the interleaving was. Pure; each check raises Violation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

SLACK = 0.001  # seconds between two readings of one machine's clock that prove nothing


class Violation(AssertionError):
    """The history breaks a promise."""


def require(condition: object, text: str) -> None:
    if not condition:
        raise Violation(text)


# -- locks -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Hold:
    """A hold as its holder saw it: it was its own from when it was told until it gave it back, or it ran out."""

    key: str
    owner: str
    token: int
    told_at: float  # seconds since 1970, as all here
    expires_at: float
    given_back_at: float | None = None  # when the release was sent
    released: bool = False  # the release was confirmed

    @property
    def until(self) -> float:
        return self.expires_at if self.given_back_at is None else min(self.expires_at, self.given_back_at)


def check_holds(holds: Iterable[Hold]) -> None:
    """No two holders at once, and tokens that strictly increase in the order of the holds."""
    by_key: dict[str, list[Hold]] = {}
    for hold in holds:
        by_key.setdefault(hold.key, []).append(hold)
    for key, found in by_key.items():
        found.sort(key=lambda hold: hold.token)
        for first, second in pairwise(found):
            require(first.token < second.token, f"{key}: token {first.token} was given twice")
        # Who was told only after its time had run out never believed that it held.
        believed = [hold for hold in found if hold.told_at < hold.until]
        for first, second in pairwise(believed):
            require(
                first.until <= second.told_at + SLACK,
                f"{key}: {first.owner} and {second.owner} held at once",
            )


@dataclass
class Queue:
    """A lock as its events tell it."""

    key: str
    version: int = 0
    position: int = 0
    holder: tuple[str, int] | None = None  # owner and token
    last_token: int = 0
    last_ticket: int = 0
    waiting: dict[int, str] = field(default_factory=dict)  # ticket: owner, in ticket order
    grants: dict[int, str] = field(default_factory=dict)  # token: owner
    endings: dict[int, str] = field(default_factory=dict)  # token: how it ended

    def take(self, event: dict[str, Any]) -> None:
        require(event["version"] == self.version + 1, f"{self.key}: version {event['version']} is not dense")
        require(event["position"] > self.position, f"{self.key}: position {event['position']} goes back")
        self.version, self.position = event["version"], event["position"]
        verb = event["event_type"].removeprefix("lock.")
        getattr(self, f"_{verb}", self._ended)(verb, event["data"])

    def _queued(self, verb: str, data: dict[str, Any]) -> None:
        require(
            data["ticket"] == self.last_ticket + 1, f"{self.key}: ticket {data['ticket']} is not the next"
        )
        require(self.holder or self.waiting, f"{self.key}: {data['owner']} queues for a free lock")
        self.last_ticket = data["ticket"]
        self.waiting[data["ticket"]] = data["owner"]

    def _withdrawn(self, verb: str, data: dict[str, Any]) -> None:
        owner = self.waiting.pop(data["ticket"], None)
        require(owner == data["owner"], f"{self.key}: ticket {data['ticket']} was withdrawn out of no queue")

    def _acquired(self, verb: str, data: dict[str, Any]) -> None:
        owner, token, ticket = data["owner"], data["fencing_token"], data.get("ticket")
        require(self.holder is None, f"{self.key}: {owner} has it while {self.holder} holds it")
        require(token > self.last_token, f"{self.key}: token {token} after {self.last_token}")
        first = next(iter(self.waiting), None)
        if ticket is not None:
            require(ticket in self.waiting, f"{self.key}: ticket {ticket} is served, but does not wait")
        require(ticket == first, f"{self.key}: {owner} (ticket {ticket}) overtakes ticket {first}")
        if ticket is not None:
            require(self.waiting.pop(ticket) == owner, f"{self.key}: ticket {ticket} is not {owner}'s")
        self.holder, self.last_token = (owner, token), token
        self.grants[token] = owner

    def _ended(self, verb: str, data: dict[str, Any]) -> None:
        require(verb in {"released", "expired"}, f"{self.key}: lock.{verb} is unknown")
        mine = (data["owner"], data["fencing_token"])
        require(self.holder == mine, f"{self.key}: {mine} ends, but {self.holder} holds")
        self.holder = None
        self.endings[data["fencing_token"]] = verb if data.get("by") is None else data["by"]


def check_lock_log(events: Iterable[dict[str, Any]]) -> dict[str, Queue]:
    """The `$lock:` streams in position order: one holder at a time, tokens that rise, tickets served in order,
    nobody served after leaving. Returns the locks as they are after the last event."""
    locks: dict[str, Queue] = {}
    for event in events:
        key = event["stream_id"].removeprefix("$lock:")
        locks.setdefault(key, Queue(key)).take(event)
    return locks


def check_agreement(holds: Iterable[Hold], locks: dict[str, Queue]) -> None:
    """Whatever a client was told is in the log, in the same words."""
    for hold in holds:
        lock = locks.get(hold.key, Queue(hold.key))
        owner = lock.grants.get(hold.token)
        require(owner == hold.owner, f"{hold.key}: {hold.owner} was told {hold.token}, the log says {owner}")
        ending = lock.endings.get(hold.token)
        require(
            not hold.released or ending == "released",
            f"{hold.key}: {hold.owner}'s release was confirmed, the log says {ending}",
        )


# -- events ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Written:
    """An event that its writer was told of."""

    stream: str
    version: int
    position: int
    event_id: str
    data: Any


def check_log(events: Sequence[dict[str, Any]], first: int = 1) -> None:
    """A whole namespace, system streams included: dense positions, dense versions, times that do not run back."""
    versions: dict[str, int] = {}
    ids: set[str] = set()
    recorded_at = ""
    for position, event in enumerate(events, first):
        require(event["position"] == position, f"position {event['position']} instead of {position}")
        stream, version = event["stream_id"], event["version"]
        expected = versions.get(stream, 0) + 1
        require(version == expected, f"{stream}: version {version} instead of {expected}")
        require(event["event_id"] not in ids, f"{event['event_id']} is there twice")
        require(event["recorded_at"] >= recorded_at, f"position {position} is older than the one before it")
        versions[stream] = version
        ids.add(event["event_id"])
        recorded_at = event["recorded_at"]


def check_written(written: Iterable[Written], events: Iterable[dict[str, Any]]) -> None:
    """Every event that a writer was told of is in the log, exactly there."""
    log = {event["position"]: event for event in events}
    for mine in written:
        event = log.get(mine.position)
        require(event is not None, f"{mine.stream}: the acknowledged position {mine.position} is not there")
        assert event is not None
        found = (event["stream_id"], event["version"], event["event_id"], event["data"])
        told = (mine.stream, mine.version, mine.event_id, mine.data)
        require(found == told, f"position {mine.position}: told {told}, found {found}")


def check_once(values: Iterable[Any], events: Iterable[dict[str, Any]]) -> None:
    """Each of these values was written exactly once (the events' data tell them apart)."""
    counts: dict[Any, int] = {}
    for event in events:
        counts[event["data"]] = counts.get(event["data"], 0) + 1
    for value in values:
        require(counts.get(value, 0) == 1, f"{value} was written {counts.get(value, 0)} times")


def check_seen(seen: Sequence[int], last: int, who: str, first: int = 1) -> None:
    """A reader saw every position once, in order."""
    for position, expected in zip(seen, range(first, last + 1), strict=False):
        require(position == expected, f"{who} saw {position} instead of {expected}")
    require(len(seen) == last - first + 1, f"{who} saw {len(seen)} events of {last - first + 1}")
