"""What a recorded history must look like, whatever the interleaving was. Pure; each check raises Violation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

SLACK = 0.001  # seconds between two readings of one machine's clock that prove nothing
PROMPT = 1.0 + 1.5  # seconds in which a lock passes on, and what a busy machine may take on top


class Violation(AssertionError):
    """The history breaks a promise."""


def require(condition: object, text: str) -> None:
    if not condition:
        raise Violation(text)


# -- locks -------------------------------------------------------------------------------------------


def seconds(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp()


@dataclass(slots=True)
class Window:
    """A span of time, as all here in seconds since 1970."""

    start: float
    end: float


def overlap(windows: Iterable[Window], start: float, end: float) -> float:
    """How many seconds of the span from `start` to `end` these windows cover."""
    return sum(max(0.0, min(window.end, end) - max(window.start, start)) for window in windows)


@dataclass(slots=True)
class Hold:
    """A hold as its holder saw it: it was its own from when it was told until it gave it back, or it ran out."""

    key: str
    owner: str
    token: int
    told_at: float
    expires_at: float  # as it was last told
    given_back_at: float | None = None  # when the release was sent
    released: bool = False  # the release was confirmed
    mode: str = "exclusive"
    permits: int = 1
    acquired_at: float = 0.0  # by the database's clock
    lock_id: str = ""
    latest: float = 0.0  # when it ends at the latest, if a renewal took effect whose answer was lost
    refused_at: float | None = None  # when it was told that it does not hold
    revived_at: float | None = None  # when a renewal was asked for that came too late and was granted
    forced_at: float | None = None  # when an operator ended it, of which its holder knows nothing

    @property
    def until(self) -> float:
        ends = (self.expires_at, self.given_back_at, self.forced_at)
        return min(end for end in ends if end is not None)

    @property
    def was_believed(self) -> bool:
        """Who was told only after its time had run out never believed that it held."""
        return self.told_at + SLACK < self.until


@dataclass(slots=True)
class Room:
    """What the holds of a lock leave free."""

    capacity: int = 1
    used: int = 0
    shared: int = 0

    def fits(self, mode: str, permits: int) -> bool:
        if mode == "shared":
            return self.used == 0
        return self.shared == 0 and self.used + permits <= self.capacity

    def add(self, mode: str, permits: int, sign: int = 1) -> None:
        if mode == "shared":
            self.shared += sign
        else:
            self.used += sign * permits


def check_holds(holds: Iterable[Hold], capacities: Mapping[str, int] = {}) -> None:
    """At no instant more holds than a lock has room for, and tokens that rise in the order of the holds."""
    by_key: dict[str, list[Hold]] = {}
    for hold in holds:
        by_key.setdefault(hold.key, []).append(hold)
    for key, found in by_key.items():
        found.sort(key=lambda hold: hold.token)
        for first, second in pairwise(found):
            require(first.token < second.token, f"{key}: token {first.token} was given twice")
            require(
                first.acquired_at <= second.acquired_at,
                f"{key}: {first.owner} has the smaller token, but took it after {second.owner}",
            )
        check_room(key, [hold for hold in found if hold.was_believed], Room(capacities.get(key, 1)))


def check_room(key: str, holds: Sequence[Hold], room: Room) -> None:
    changes = [(hold.told_at + SLACK, 1, hold.token, hold) for hold in holds]
    changes += [(hold.until, -1, hold.token, hold) for hold in holds]
    present: dict[int, str] = {}
    for _, sign, token, hold in sorted(changes, key=lambda change: change[:3]):
        if sign > 0:
            fits = room.fits(hold.mode, hold.permits)
            require(fits, f"{key}: {hold.owner} held at once with {list(present.values())}")
            present[token] = hold.owner
        else:
            del present[token]
        room.add(hold.mode, hold.permits, sign)


@dataclass(slots=True)
class Granted:
    """A hold as the log tells it."""

    owner: str
    mode: str
    permits: int
    session: str | None
    at: float
    expires_at: float


@dataclass(slots=True)
class Ended:
    """The end of a hold; `how` is the event's verb, or for whom somebody else released it."""

    how: str
    at: float
    expired_at: float | None = None

    @property
    def over_at(self) -> float:
        """What ran out is over before that is noticed."""
        return self.at if self.expired_at is None else self.expired_at


@dataclass(slots=True)
class Party:
    """Claims that are granted together, of one caller."""

    owner: str
    deadline: str
    claims: "list[Claim]" = field(default_factory=list)
    had_to_wait: bool = False
    ready_since: float | None = None  # since when there is room for all of them


@dataclass(slots=True)
class Claim:
    key: str
    ticket: int
    mode: str
    permits: int
    party: Party


@dataclass(slots=True)
class Queue:
    """A lock as its events tell it."""

    key: str
    room: Room = field(default_factory=Room)
    version: int = 0
    last_token: int = 0
    last_ticket: int = 0
    holds: dict[int, Granted] = field(default_factory=dict)  # by token, as all here
    waiting: dict[int, Claim] = field(default_factory=dict)  # by ticket, in that order
    waited_since: float = 0.0  # when the queue last ceased to be empty
    opens_at: float = 0.0  # the end of a lock-delay: not before this
    is_open_at: float = 0.0  # and then at the latest
    grants: dict[int, Granted] = field(default_factory=dict)
    endings: dict[int, Ended] = field(default_factory=dict)

    @property
    def first(self) -> Claim | None:
        return next(iter(self.waiting.values()), None)

    def has_room_for(self, claim: Claim) -> bool:
        return self.first is claim and self.room.fits(claim.mode, claim.permits)


class LockLog:
    """The locks of a namespace as the `$lock:` and `$session:` streams tell them, in position order: room for
    every hold, tokens that rise, tickets served in order, nobody served after leaving, all or none of what is wanted
    at once, lock-delays kept, and everything in time.

    Parameters: `capacities` of the locks that have another than 1; `away`, when the database or who held its rows
    stood still, so that nothing is expected in time.
    """

    def __init__(self, capacities: Mapping[str, int] = {}, away: Sequence[Window] = ()) -> None:
        self.capacities, self.away = capacities, away
        self.locks: dict[str, Queue] = {}
        self.now = 0.0
        self._position = 0
        self._delays: dict[str, float] = {}  # by session
        self._forming: Party | None = None
        self._due: list[tuple[str, Claim, int | None]] = []  # what must come next, and with which token

    def take(self, event: dict[str, Any]) -> None:
        kind, _, name = event["stream_id"].partition(":")
        require(event["position"] > self._position, f"{name}: position {event['position']} goes back")
        self._position = event["position"]
        verb, data = event["event_type"].partition(".")[2], event["data"]
        if kind == "$session":
            if verb == "opened":
                self._delays[name] = data["lock_delay_seconds"]
            return
        self.now = seconds(event["recorded_at"])
        lock = self.lock(name)
        require(event["version"] == lock.version + 1, f"{name}: version {event['version']} is not dense")
        lock.version = event["version"]
        self._form(verb, data)
        self._together(lock, verb, data)
        takers = {"queued": self._queued, "withdrawn": self._withdrawn, "acquired": self._acquired}
        takers.get(verb, self._ended)(lock, verb, data)
        self._look(lock)

    def close(self) -> None:
        """There is no more."""
        self._form("", {})
        require(not self._due, f"{self._due} is missing")
        for lock in self.locks.values():
            if lock.first:
                self._in_time(lock.first)

    def lock(self, key: str) -> Queue:
        return self.locks.setdefault(key, Queue(key, Room(self.capacities.get(key, 1))))

    # -- several at once -----------------------------------------------------------------------------

    def _form(self, verb: str, data: dict[str, Any]) -> None:
        """Claims of one caller are queued together; at least one of them has to wait."""
        party, self._forming = self._forming, None
        if party and verb == "queued" and (party.owner, party.deadline) == (data["owner"], data["deadline"]):
            self._forming = party
        elif party:
            place = party.claims[0].key
            require(party.had_to_wait, f"{place}: {party.owner} queues for a free lock")

    def _together(self, lock: Queue, verb: str, data: dict[str, Any]) -> None:
        """All claims of a party are granted, or leave, together: nothing comes between."""
        if self._due:
            due, claim, token = self._due.pop(0)
            expected, found = (due, claim.key, claim.ticket), (verb, lock.key, data.get("ticket"))
            require(expected == found, f"{found} comes instead of {expected}")
            told = data.get("fencing_token") == token
            require(told, f"{lock.key}: its token is {data.get('fencing_token')}, told was {token}")
            return
        first = lock.waiting.get(data.get("ticket", 0))
        if verb == "queued" or first is None or len(first.party.claims) == 1:
            return
        claims = first.party.claims
        require(claims[0] is first, f"{lock.key}: ticket {first.ticket} goes without those it came with")
        tokens = {grant["key"]: grant["fencing_token"] for grant in data.get("grants", ())}
        require(not tokens or len(tokens) == len(claims), f"{lock.key}: {tokens} for {len(claims)} claims")
        self._due = [(verb, claim, tokens.get(claim.key)) for claim in claims[1:]]

    # -- in time -------------------------------------------------------------------------------------

    def _look(self, lock: Queue) -> None:
        """Note since when the first waiter could be served."""
        if lock.first is None:
            return
        party = lock.first.party
        locks = [self.locks[claim.key] for claim in party.claims]
        pairs = zip(locks, party.claims, strict=True)
        if not all(each.has_room_for(claim) for each, claim in pairs):
            party.ready_since = None
        elif party.ready_since is None:
            party.ready_since = max(self.now, *(each.is_open_at for each in locks))

    def _in_time(self, claim: Claim) -> None:
        since = claim.party.ready_since
        if since is not None:
            self._require_prompt(since, f"{claim.key}: {claim.party.owner} waits, and there is room")

    def _require_prompt(self, since: float, text: str) -> None:
        late = self.now - since
        if late > PROMPT:
            late -= overlap(self.away, since, self.now)
            require(late <= PROMPT, f"{text} for {late:.1f} s")

    # -- what the events say -------------------------------------------------------------------------

    def _queued(self, lock: Queue, verb: str, data: dict[str, Any]) -> None:
        ticket, mode, permits = data["ticket"], data["mode"], data["permits"]
        require(ticket == lock.last_ticket + 1, f"{lock.key}: ticket {ticket} is not the next")
        party = self._forming or Party(data["owner"], data["deadline"])
        is_delayed = self.now < lock.is_open_at
        party.had_to_wait |= bool(lock.waiting) or is_delayed or not lock.room.fits(mode, permits)
        if not lock.waiting:
            lock.waited_since = self.now
        lock.last_ticket = ticket
        lock.waiting[ticket] = claim = Claim(lock.key, ticket, mode, permits, party)
        party.claims.append(claim)
        party.ready_since = None
        self._forming = party

    def _withdrawn(self, lock: Queue, verb: str, data: dict[str, Any]) -> None:
        claim = lock.waiting.get(data["ticket"])
        owner = claim and claim.party.owner
        require(owner == data["owner"], f"{lock.key}: ticket {data['ticket']} was withdrawn out of no queue")
        assert claim
        self._in_time(claim)
        del lock.waiting[claim.ticket]

    def _acquired(self, lock: Queue, verb: str, data: dict[str, Any]) -> None:
        key, owner, token, ticket = lock.key, data["owner"], data["fencing_token"], data.get("ticket")
        mode, permits = data["mode"], data["permits"]
        holders = [hold.owner for hold in lock.holds.values()]
        require(lock.room.fits(mode, permits), f"{key}: {owner} has it while {holders} hold it")
        require(token > lock.last_token, f"{key}: token {token} after {lock.last_token}")
        first = lock.first and lock.first.ticket
        if ticket is not None:
            require(ticket in lock.waiting, f"{key}: ticket {ticket} is served, but does not wait")
        require(ticket == first, f"{key}: {owner} (ticket {ticket}) overtakes ticket {first}")
        if lock.first:
            require(lock.first.party.owner == owner, f"{key}: ticket {ticket} is not {owner}'s")
            self._in_time(lock.first)
            del lock.waiting[lock.first.ticket]
        at, until = seconds(data["acquired_at"]), seconds(data["expires_at"])
        require(at + SLACK >= lock.opens_at, f"{key}: {owner} has it before its lock-delay is over")
        hold = Granted(owner, mode, permits, data.get("session_id"), at, until)
        lock.room.add(mode, permits)
        lock.holds[token] = lock.grants[token] = hold
        lock.last_token = token

    def _ended(self, lock: Queue, verb: str, data: dict[str, Any]) -> None:
        known = verb in {"released", "expired", "force_released"}
        require(known, f"{lock.key}: lock.{verb} is unknown")
        owner, token = data["owner"], data["fencing_token"]
        hold = lock.holds.pop(token, None)
        is_held = hold is not None and hold.owner == owner
        require(is_held, f"{lock.key}: {owner}'s {token} ends, but {hold} holds")
        assert hold
        lock.room.add(hold.mode, hold.permits, -1)
        ended = Ended(data.get("by") or verb, hold.at + data["held_seconds"])
        lock.endings[token] = ended
        if verb == "expired":
            ended.expired_at = seconds(data["expired_at"])
            self._ran_out(lock, hold, ended.expired_at)

    def _ran_out(self, lock: Queue, hold: Granted, expired_at: float) -> None:
        if lock.waiting:
            since = max(expired_at, lock.waited_since)
            self._require_prompt(since, f"{lock.key}: {hold.owner} is gone, and somebody waits")
        delay = self._delays.get(hold.session or "", 0.0)
        if delay:
            lock.opens_at = max(lock.opens_at, expired_at + delay)
            lock.is_open_at = max(lock.is_open_at, self.now + delay)


def check_lock_log(
    events: Iterable[dict[str, Any]], capacities: Mapping[str, int] = {}, away: Sequence[Window] = ()
) -> dict[str, Queue]:
    """A whole LockLog. Returns the locks as they are after the last event."""
    log = LockLog(capacities, away)
    for event in events:
        log.take(event)
    log.close()
    return log.locks


def mind_force(holds: Iterable[Hold], locks: Mapping[str, Queue]) -> None:
    """Note in the holds what operators did to them."""
    for hold in holds:
        ended = locks[hold.key].endings.get(hold.token) if hold.key in locks else None
        if ended and ended.how == "force_released":
            hold.forced_at = ended.at


def check_agreement(holds: Iterable[Hold], locks: Mapping[str, Queue]) -> None:
    """Whatever a client was told is in the log, in the same words."""
    for hold in holds:
        lock = locks.get(hold.key, Queue(hold.key))
        granted = lock.grants.get(hold.token)
        told = (hold.owner, hold.mode, hold.permits)
        found = granted and (granted.owner, granted.mode, granted.permits)
        require(found == told, f"{hold.key}: {told} was told {hold.token}, the log says {found}")
        ended = lock.endings.get(hold.token)
        require(
            not hold.released or (ended and ended.how == "released"),
            f"{hold.key}: {hold.owner}'s release was confirmed, the log says {ended}",
        )


def check_endings(
    holds: Iterable[Hold],
    locks: Mapping[str, Queue],
    untold: Mapping[str, float] = {},
    sessions: Mapping[str, float] = {},
    extensions: Sequence[Window] = (),
) -> None:
    """Every hold has ended, by whom it may and when it may.

    Parameters: `untold`, owners that were told of no hold: of one that was over when they were refused, or ever, if
    they went away or were not told what became of their request; `sessions`, until when each was kept alive at the
    latest; `extensions`, absences by which leases were extended.
    """
    told = {(hold.key, hold.token): hold for hold in holds}
    for lock in locks.values():
        for token, granted in lock.grants.items():
            hold = told.get((lock.key, token))
            name = f"{lock.key}: {granted.owner}'s {token}"
            ended = lock.endings.get(token)
            require(ended, f"{name} has not ended")
            assert ended
            extended = sum(window.end - window.start for window in extensions if window.end >= granted.at)
            latest = max(granted.expires_at, sessions.get(granted.session or "", 0.0))
            if hold:
                latest = max(latest, hold.expires_at, hold.latest)
                check_ending(name, hold, ended, extended)
            else:
                excused = ended.over_at <= untold.get(granted.owner, 0.0) and ended.how != "released"
                require(excused, f"{name} is known to nobody, and ended: {ended.how}")
            latest += extended
            if granted.session:
                latest += PROMPT  # a session holds until its end is noticed
            late = ended.over_at - latest
            require(late <= SLACK, f"{name} lasted {late:.3f} s longer than its time")


def check_ending(name: str, hold: Hold, ended: Ended, extended: float) -> None:
    if ended.how in {"released", "session_closed"}:
        require(hold.given_back_at is not None, f"{name} was {ended.how}, but not by its holder")
    require(ended.how != "client_gone", f"{name} was taken back, although its client was told")
    if ended.expired_at is not None:
        require(ended.expired_at + SLACK >= hold.expires_at, f"{name} expired before its time")
    if hold.refused_at is not None:
        # One that had just run out when the database went away is extended too, although its holder was refused.
        over_at = ended.over_at if ended.expired_at is None else ended.expired_at - extended
        text = f"{name} was refused while it was held: {hold}, {ended}, leases extended by {extended:.1f} s"
        require(over_at <= hold.refused_at + SLACK, text)
    require(hold.revived_at is None or extended, f"{name} was over, and a renewal revived it")


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
