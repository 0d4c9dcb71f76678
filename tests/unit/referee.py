"""What locks promise, as a referee who knows only commands, events and answers, and is too simple to be wrong.

He hears the events one by one and blows the whistle at the first that was not allowed, judges the answers, and
looks whether what should have happened did. He decides nothing: no order of work is his, only what is legal.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from core.encoding import decode
from core.log import Entry

ELECTION_WORDS = {
    "elected": "acquired", "joined": "queued", "withdrawn": "withdrawn", "resigned": "released",
    "expired": "expired", "deposed": "force_released", "proclaimed": "proclaimed",
}  # fmt: skip


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


@dataclass
class Session:
    name: str
    ttl: float
    delay: float
    until: datetime
    ended: str | None = None
    was_until: datetime | None = None  # before this batch: what a statement sees

    def lives(self, now: datetime) -> bool:
        return self.ended is None and self.until > now


@dataclass(eq=False)
class Request:
    """What somebody asked for: one lock or several, each as mode and permits."""

    owner: str
    wants: dict[str, tuple[str, int]]
    since: datetime
    ttl: float
    wait: float
    session: Session | None
    process: str
    ids: dict[str, str] = field(default_factory=dict)  # lock_ids, once they are answered
    tickets: dict[str, int] = field(default_factory=dict)

    @property
    def deadline(self) -> datetime:
        return self.since + seconds(self.wait)

    @property
    def places(self) -> list[list[Any]]:
        return [[key, self.ids[key], self.tickets.get(key, 0)] for key in self.ids]


@dataclass(eq=False)
class Hold:
    request: Request
    mode: str
    permits: int
    token: int
    since: datetime
    until: datetime | None  # None: with the session

    def lasts(self, now: datetime) -> bool:
        return self.until is None or self.until > now


@dataclass
class Lock:
    capacity: int = 1
    holds: dict[int, Hold] = field(default_factory=dict)
    queue: list[Request] = field(default_factory=list)
    last_token: int = 0
    last_ticket: int = 0
    version: int = 0
    not_before: datetime | None = None
    endings: list[tuple[Request, str]] = field(default_factory=list)  # newest first
    said: Any = None  # by the leader

    def has_room(self, mode: str, permits: int, now: datetime) -> bool:
        if self.not_before and self.not_before > now:
            return False
        holds = [hold for hold in self.holds.values() if hold.lasts(now)]
        if mode == "shared":
            return all(hold.mode == "shared" for hold in holds)
        return all(hold.mode != "shared" for hold in holds) and permits <= self.capacity - sum(
            hold.permits for hold in holds
        )

    @property
    def is_idle(self) -> bool:
        return not self.holds and not self.queue


@dataclass
class Command:
    """What the referee is told of a command beforehand."""

    name: str
    request: Request | None = None  # that asks
    target: Request | None = None  # whose hold or place it is about
    key: str = ""
    session: Session | None = None
    about: Any = None


class Referee:
    def __init__(self) -> None:
        self.locks: dict[str, Lock] = {}
        self.sessions: dict[str, Session] = {}
        self.alive: set[str] = set()
        self.now = datetime.min.replace(tzinfo=UTC)
        self.epoch, self.floor = 1, 0
        self._served: list[tuple[Request, str]] = []
        self._left: list[Request] = []
        self._touched: set[str] = set()

    # -- what is so ----------------------------------------------------------------------------------

    def lock(self, key: str) -> Lock:
        return self.locks.setdefault(key, Lock())

    def is_gone(self, request: Request) -> bool:
        return request.deadline <= self.now or request.process not in self.alive

    def first(self, key: str) -> Request | None:
        """Whose turn it is: who has given up or whose process died counts for nothing."""
        return next((each for each in self.lock(key).queue if not self.is_gone(each)), None)

    def may_be_served(self, request: Request) -> bool:
        """All or nothing, and strictly in order."""
        return (request.session is None or request.session.lives(self.now)) and all(
            self.first(key) is request and self.lock(key).has_room(mode, permits, self.now)
            for key, (mode, permits) in request.wants.items()
        )

    def due(self, key: str) -> Hold | Request | None:
        """What should have happened to a lock by now: a hold that should be over, or a request to be granted."""
        for hold in self.lock(key).holds.values():
            if not hold.lasts(self.now):
                return hold
        request = self.first(key)
        return request if request and self.may_be_served(request) else None

    def hold_of(self, key: str, request: Request) -> Hold | None:
        return next((hold for hold in self.lock(key).holds.values() if hold.request is request), None)

    def holds(self, key: str, request: Request) -> bool:
        hold = self.hold_of(key, request)
        return hold is not None and hold.lasts(self.now)

    def why_not(self, key: str, request: Request) -> set[str]:
        """What its holder may be told: for sure of the last 32 holds."""
        if self.hold_of(key, request):
            return {"expired"}
        for place, (ended, reason) in enumerate(self.lock(key).endings):
            if ended is request:
                return {reason} if place < 32 else {reason, "never_held"}
        return {"never_held"}

    def foresee(self, keys: Iterable[str]) -> "Referee":
        """A copy, in which everything that is due of these locks has happened."""
        copy = Referee()
        copy.now, copy.alive = self.now, self.alive
        for key, lock in self.locks.items():
            copy.locks[key] = Lock(
                lock.capacity, dict(lock.holds), list(lock.queue), not_before=lock.not_before
            )
        todo = list(keys)
        while todo:
            while due := copy.due(todo[-1]):
                todo[:0] = copy.settle(todo[-1], due)
            lock = copy.lock(todo.pop())
            if not lock.holds and lock.has_room("exclusive", 1, self.now):
                gone = [each for each in lock.queue if copy.is_gone(each)]
                lock.queue = [] if len(gone) == len(lock.queue) else lock.queue
        return copy

    def settle(self, key: str, due: Hold | Request) -> list[str]:
        if isinstance(due, Hold):
            del self.lock(key).holds[due.token]
            return []
        for each, (mode, permits) in due.wants.items():
            lock = self.lock(each)
            lock.queue = lock.queue[lock.queue.index(due) + 1 :]
            lock.holds[-len(lock.holds) - 1] = Hold(due, mode, permits, 0, self.now, self.now + seconds(1))
        return list(due.wants)

    # -- what is asked -------------------------------------------------------------------------------

    def outcomes(self, request: Request, capacities: dict[str, int | None]) -> set[str]:
        """What a request may be answered."""
        if request.session and not request.session.lives(self.now):
            return {"session_ended"}
        then = self.foresee(request.wants)
        is_free, is_certain = True, True
        for key, (mode, permits) in request.wants.items():
            lock, capacity = then.lock(key), capacities.get(key)
            if capacity is not None and lock.is_idle:
                lock.capacity = capacity
            if (capacity or lock.capacity) != lock.capacity or permits > lock.capacity:
                return {"capacity_mismatch"}
            is_free &= not lock.queue and lock.has_room(mode, permits, self.now)
            # Those who are gone may be noticed only when somebody clears them away.
            is_certain &= not lock.queue or then.first(key) is not None
        refused = "waiting" if request.wait else "lock_held"
        if is_free:
            return {"granted", refused} if self.hides_the_gone(request) else {"granted"}
        return {refused} if is_certain else {refused, "granted"}

    def hides_the_gone(self, request: Request) -> bool:
        """Behind holds that last nobody looks who is gone, but the sweep: until then they are in the way."""
        wanted = [self.lock(key) for key in request.wants]
        is_kept = any(lock.queue and lock.holds and all(hold.lasts(self.now) for hold in lock.holds.values())
                      for lock in wanted)  # fmt: skip
        return is_kept and any(self.is_gone(each) for lock in self.locks.values() for each in lock.queue)

    # -- what is heard -------------------------------------------------------------------------------

    def hear(self, command: Command, entries: Iterable[Entry]) -> None:
        """The events of one command, one after another; then whether they are complete."""
        self._served, self._left, self._touched = [], [], set()
        for entry in entries:
            self._hear(command, entry)
        self._parties_are_whole()

    def _hear(self, command: Command, entry: Entry) -> None:
        kind, data = entry.type, decode(entry.data)
        if kind.startswith("session."):
            self._on_session(command, entry.stream.removeprefix("$session:"), kind, data)
            return
        if kind == "fence.refused":
            return
        word = kind.partition(".")[2]
        if kind.startswith("lock."):
            key = entry.stream.removeprefix("$lock:")
        else:
            key, word = entry.stream, ELECTION_WORDS[word]
        lock = self.lock(key)
        lock.version += 1
        assert entry.version == lock.version, "an event is missing from the lock's stream"
        if word != "queued":  # who queues up behind somebody who is gone is next only when that is noticed
            self._touched.add(key)
        getattr(self, f"_on_{word}")(command, key, lock, data)

    def _on_session(self, command: Command, name: str, kind: str, data: dict[str, Any]) -> None:
        if kind == "session.opened":
            return
        session, reason = self.sessions[name], kind.removeprefix("session.")
        assert session.ended is None, "a session ended twice"
        assert command.session is session
        assert command.name == ("sessions.close" if reason == "closed" else "sessions.expire")
        session.ended = reason
        if reason == "expired":
            assert session.until <= self.now, "a session ended before its time"
        left = [key for key, lock in self.locks.items()
                if any(hold.request.session is session for hold in lock.holds.values())
                or any(request.session is session for request in lock.queue)]  # fmt: skip
        assert not left, f"a session left something in {left}"

    def _on_queued(self, command: Command, key: str, lock: Lock, data: dict[str, Any]) -> None:
        request = command.request
        assert request
        assert data["owner"] == request.owner
        assert (data["mode"], data["permits"]) == request.wants[key]
        assert data["ticket"] > lock.last_ticket, "a ticket did not increase"
        assert instant(data["deadline"]) == request.deadline
        assert data.get("session_id") == (request.session and request.session.name)
        request.tickets[key] = lock.last_ticket = data["ticket"]
        lock.queue.append(request)

    def _on_acquired(self, command: Command, key: str, lock: Lock, data: dict[str, Any]) -> None:
        request = command.request
        if "ticket" in data:
            request = self._called(command, key, lock, data)
        assert request
        assert data["owner"] == request.owner
        mode, permits = request.wants[key]
        assert (data["mode"], data["permits"]) == (mode, permits)
        self._has_room(lock, mode, permits)
        self._is_larger(lock, data["fencing_token"])
        assert data["waited_seconds"] == (self.now - request.since).total_seconds()
        assert data["ttl_seconds"] == (request.session.ttl if request.session else request.ttl)
        hold = Hold(request, mode, permits, data["fencing_token"], self.now, self._until(request))
        self._ends_at(hold, instant(data["expires_at"]))
        lock.last_token = hold.token
        lock.holds[hold.token] = hold

    def _called(self, command: Command, key: str, lock: Lock, data: dict[str, Any]) -> Request:
        request = next((each for each in lock.queue if each.tickets[key] == data["ticket"]), None)
        assert request, "a grant for a ticket that nobody has"
        if command.name != "elections.transfer":
            assert request is lock.queue[0], "somebody was overtaken"
        assert request.deadline > self.now, "a grant to somebody who no longer waits"
        assert request.process in self.alive, "a grant to a dead process"
        assert request.session is None or request.session.lives(self.now), "a grant to a session that is over"
        lock.queue.remove(request)
        self._served.append((request, key))
        return request

    def _until(self, request: Request) -> datetime | None:
        return None if request.session else self.now + seconds(request.ttl)

    def _ends_at(self, hold: Hold, told: datetime) -> None:
        """A statement sees a session as it was before the batch."""
        session = hold.request.session
        assert told in ({session.until, session.was_until} if session else {hold.until})

    def _has_room(self, lock: Lock, mode: str, permits: int) -> None:
        assert lock.not_before is None or lock.not_before <= self.now, "the lock-delay was ignored"
        holds = lock.holds.values()
        if mode == "shared":
            assert all(hold.mode == "shared" for hold in holds), "shared beside exclusive"
        else:
            assert all(hold.mode != "shared" for hold in holds), "exclusive beside shared"
            assert sum(hold.permits for hold in holds) + permits <= lock.capacity, "more than the capacity"

    def _is_larger(self, lock: Lock, token: int) -> None:
        assert token > lock.last_token, "a token did not increase"
        assert token > self.floor, "a token of a pruned lock came again"
        assert token >> 40 == self.epoch, "a token of another epoch"

    def _on_withdrawn(self, command: Command, key: str, lock: Lock, data: dict[str, Any]) -> None:
        request = next((each for each in lock.queue if each.tickets[key] == data["ticket"]), None)
        assert request, "withdrawn without waiting"
        assert request.owner == data["owner"]
        assert self._may_leave(command, request, data["reason"]), f"withdrawn: {data['reason']}"
        lock.queue.remove(request)
        self._left.append(request)

    def _may_leave(self, command: Command, request: Request, reason: str) -> bool:
        is_own = command.target is request
        session = request.session
        return {
            "timed_out": request.deadline <= self.now or (is_own and command.about is True),
            "client_gone": is_own and command.about is False,
            "process_gone": request.process not in self.alive,
            "deadlock": is_own and command.name == "locks.break_deadlock",
            "session_expired": session is not None
            and session is command.session
            and session.until <= self.now,
            "session_closed": session is not None and session is command.session,
        }[reason]

    def _over(self, lock: Lock, data: dict[str, Any], reason: str) -> Hold:
        hold = lock.holds.pop(data["fencing_token"], None)
        assert hold, "a hold ended that was not there"
        assert hold.request.owner == data["owner"]
        assert data["held_seconds"] == (self.now - hold.since).total_seconds()
        lock.endings.insert(0, (hold.request, reason))
        lock.said = None
        return hold

    def _on_expired(self, command: Command, key: str, lock: Lock, data: dict[str, Any]) -> None:
        hold = self._over(lock, data, "expired")
        session = hold.request.session
        ended_at = session.until if session else hold.until
        assert ended_at
        assert ended_at <= self.now, "a hold expired before its time"
        assert instant(data["expired_at"]) == ended_at
        if session:
            assert command.session is session
            assert command.name == "sessions.expire"
            self._delay(lock, session.delay)

    def _delay(self, lock: Lock, delay: float) -> None:
        if delay:
            lock.not_before = max(lock.not_before or self.now, self.now + seconds(delay))

    def _on_released(self, command: Command, key: str, lock: Lock, data: dict[str, Any]) -> None:
        hold = self._over(lock, data, "released")
        if command.name == "sessions.close":
            assert hold.request.session is command.session
        else:
            assert hold.request is command.target, "somebody else's hold was released"
            assert hold.lasts(self.now), "a hold was released after its end"
            assert command.name.endswith(("release", "withdraw", "resign", "transfer"))

    def _on_force_released(self, command: Command, key: str, lock: Lock, data: dict[str, Any]) -> None:
        hold = self._over(lock, data, "force_released")
        assert command.name in ("locks.force_release", "elections.depose")
        assert command.key == key
        assert hold.lasts(self.now), "a hold was taken away after its end"
        self._delay(lock, command.about)

    def _on_proclaimed(self, command: Command, key: str, lock: Lock, data: dict[str, Any]) -> None:
        hold = lock.holds[data["fencing_token"]]
        assert hold.request is command.target
        assert hold.lasts(self.now)
        lock.said = data["value"]

    def _parties_are_whole(self) -> None:
        for request in {request for request, _ in self._served}:
            keys = {key for each, key in self._served if each is request}
            assert keys == set(request.wants), "half of a request was granted"
        for request in self._left:
            assert not any(request in lock.queue for lock in self.locks.values()), "half a request withdrawn"

    # -- what should have happened -------------------------------------------------------------------

    def nothing_is_due(self, keys: Iterable[str]) -> None:
        for key in keys:
            assert self.due(key) is None, f"{key} did not pass on"

    def what_was_touched_passed_on(self) -> None:
        self.nothing_is_due(self._touched)

    def promises(self) -> None:
        """What is so at any time."""
        for lock in self.locks.values():
            shared = [hold for hold in lock.holds.values() if hold.mode == "shared"]
            assert not shared or len(shared) == len(lock.holds), "shared beside exclusive"
            assert shared or sum(h.permits for h in lock.holds.values()) <= lock.capacity, "over capacity"
            for request in lock.queue:
                assert all(request in self.lock(key).queue for key in request.wants), "half a request waits"

    # -- who waits for ever --------------------------------------------------------------------------

    def stuck(self, asking: Request | None = None) -> set[str]:
        """The parties that wait for ever, if somebody queues up as well."""
        locks = {}
        for key, lock in self.locks.items():
            queue, capacity = lock.queue, lock.capacity
            if asking and key in asking.wants:
                queue = [*queue, asking]
                capacity = max(capacity, asking.wants[key][1])  # which an idle lock has just taken over
            locks[key] = Queue(
                capacity,
                [(party(hold.request), hold.mode, hold.permits) for hold in lock.holds.values()],
                [(party(request), request.owner, *request.wants[key]) for request in queue],
            )
        return stuck(locks)


def party(request: Request) -> str:
    return request.session.name if request.session else request.owner


@dataclass
class Queue:
    """A lock as seen by those who wait: holds as party, mode, permits; claims as party, request, mode, permits."""

    capacity: int
    holds: list[tuple[str, str, int]]
    claims: list[tuple[str, str, str, int]]

    def has_room(self, mode: str, permits: int) -> bool:
        if mode == "shared":
            return all(other == "shared" for _, other, _ in self.holds)
        taken = sum(count for _, _, count in self.holds)
        return all(other != "shared" for _, other, _ in self.holds) and taken + permits <= self.capacity


def stuck(locks: Mapping[str, Queue]) -> set[str]:
    """Who waits for ever. By brute force: give every request that is the first of all its queues and has room there
    what it wants, let every party that waits for nothing give back all it has, until neither changes anything."""
    while any([*grant_all(locks), *give_back(locks)]):
        pass
    return {claim[0] for lock in locks.values() for claim in lock.claims}


def grant_all(locks: Mapping[str, Queue]) -> Iterable[bool]:
    for request in {claim[1] for lock in locks.values() for claim in lock.claims}:
        wanted = [lock for lock in locks.values() if any(claim[1] == request for claim in lock.claims)]
        is_next = all(lock.claims[0][1] == request and lock.has_room(*lock.claims[0][2:]) for lock in wanted)
        for lock in wanted if is_next else ():
            name, _, mode, permits = lock.claims.pop(0)
            lock.holds.append((name, mode, permits))
        yield is_next


def give_back(locks: Mapping[str, Queue]) -> Iterable[bool]:
    waiting = {claim[0] for lock in locks.values() for claim in lock.claims}
    for lock in locks.values():
        left = [hold for hold in lock.holds if hold[0] in waiting]
        yield len(left) < len(lock.holds)
        lock.holds = left
