"""Who waits for whom, and who waits for ever. Pure: a picture of the contended locks in, cycles out.

A party is what waits and holds as one: a session; a caller without one, who holds nothing else that is known of,
is a party of its own. A deadlock is found by letting everybody go on who can: a request that is the first in all
its queues and has room there is granted; a party that waits for nothing more gives everything back and is gone.
Whoever is left waits for ever (the reduction of a resource graph, Holt 1972); every one of them is on a cycle or
behind one. Each claim is passed once, so the time is proportional to the claims and holds.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Stake:
    """A hold or a claim of a party in a lock."""

    party: str
    owner: str
    mode: str
    permits: int
    lock: "Contention"
    ticket: int = 0  # of a claim
    since: float = 0.0  # of a claim: the youngest of a cycle is refused
    is_session: bool = False
    request: str = ""  # of a claim: those that are granted together have the same


@dataclass(slots=True, eq=False)
class Contention:
    """A lock that somebody waits for: its holds, and its queue in order."""

    key: str
    capacity: int
    holds: list[Stake] = field(default_factory=list)
    queue: list[Stake] = field(default_factory=list)
    passed: int = 0  # claims at the head of the queue that are granted, or whose parties are gone
    is_ready: bool = False  # the next one has room, but its request waits elsewhere
    used: int = 0
    shared: int = 0

    def fits(self, claim: Stake) -> bool:
        if claim.mode == "shared":
            return self.used == 0
        return self.shared == 0 and self.used + claim.permits <= self.capacity

    def add(self, stake: Stake, sign: int = 1) -> None:
        if stake.mode == "shared":
            self.shared += sign
        else:
            self.used += sign * stake.permits


class Reduction:
    """Everybody who can goes on; `left` has the parties that cannot."""

    def __init__(self, locks: Iterable[Contention]) -> None:
        self.locks = list(locks)
        self._requests: dict[str, list[Stake]] = {}
        self._short: dict[str, int] = {}  # a request's claims that are not first, or have no room
        self._open: dict[str, int] = {}  # a party's requests
        self._stakes: dict[str, list[Stake]] = {}
        for lock in self.locks:
            self._begin(lock)
        self._todo = deque(self.locks)
        for party in [party for party in self._stakes if not self._open.get(party)]:
            self._complete(party)
        while self._todo:
            self._advance(self._todo.popleft())
        self.left = {party for party, count in self._open.items() if count}

    def _begin(self, lock: Contention) -> None:
        lock.passed = lock.used = lock.shared = 0
        lock.is_ready = False
        for hold in lock.holds:
            lock.add(hold)
            self._stakes.setdefault(hold.party, []).append(hold)
        for claim in lock.queue:
            claims = self._requests.setdefault(claim.request, [])
            claims.append(claim)
            self._short[claim.request] = len(claims)
            if len(claims) == 1:
                self._open[claim.party] = self._open.get(claim.party, 0) + 1

    def _advance(self, lock: Contention) -> None:
        if lock.is_ready or lock.passed == len(lock.queue):
            return
        claim = lock.queue[lock.passed]
        if lock.fits(claim):
            lock.is_ready = True
            self._short[claim.request] -= 1
            if not self._short[claim.request]:
                self._grant(claim)

    def _grant(self, first: Stake) -> None:
        for claim in self._requests[first.request]:
            lock = claim.lock
            lock.passed, lock.is_ready = lock.passed + 1, False
            lock.add(claim)
            self._stakes.setdefault(claim.party, []).append(claim)
            self._todo.append(lock)
        self._open[first.party] -= 1
        if not self._open[first.party]:
            self._complete(first.party)

    def _complete(self, party: str) -> None:
        for stake in self._stakes.pop(party, ()):
            stake.lock.add(stake, -1)
            self._todo.append(stake.lock)

    def blockers(self, claim: Stake) -> list[Stake]:
        """Who keeps a claim that is left from going on: the next one in its queue, or whoever has its room."""
        lock = claim.lock
        following = lock.queue[lock.passed]
        if following is not claim:
            return [following]
        taken = [*lock.holds, *lock.queue[: lock.passed]]
        return [stake for stake in taken if stake.party in self.left]


def cycle_through(reduction: Reduction, party: str) -> list[Stake] | None:
    """The shortest way from a party back to itself: each claim waits for the party of the next. None, if it is not on a
    cycle."""
    claims = claims_left(reduction)
    came: dict[Stake, Stake | None] = dict.fromkeys(claims.get(party, ()))
    todo = deque(came)
    while todo:
        claim = todo.popleft()
        for blocker in reduction.blockers(claim):
            if blocker.party == party:
                return way(came, claim)
            for further in claims.get(blocker.party, ()):
                if further not in came:
                    came[further] = claim
                    todo.append(further)
    return None


def way(came: dict[Stake, Stake | None], claim: Stake | None) -> list[Stake]:
    found = []
    while claim is not None:
        found.append(claim)
        claim = came[claim]
    return found[::-1]


def claims_left(reduction: Reduction) -> dict[str, list[Stake]]:
    """The claims that are not first or have no room, by their parties."""
    found: dict[str, list[Stake]] = {}
    for lock in reduction.locks:
        for claim in lock.queue[lock.passed + lock.is_ready :]:
            found.setdefault(claim.party, []).append(claim)
    return found


def cycles(locks: Iterable[Contention]) -> Iterator[list[Stake]]:
    """The cycles there are, no two with a party in common: each as claims, of which each waits for the party of the
    next."""
    reduction = Reduction(locks)
    claims = claims_left(reduction)
    done: set[str] = set()
    for party in sorted(reduction.left):
        if party not in done and (found := follow(reduction, claims, party, done)):
            yield found


def follow(
    reduction: Reduction, claims: dict[str, list[Stake]], party: str, done: set[str]
) -> list[Stake] | None:
    """Go from blocker to blocker until a party comes again: what lies between is a cycle."""
    path: dict[str, Stake] = {}
    while party not in path and party not in done:
        path[party] = claims[party][0]
        party = reduction.blockers(path[party])[0].party
    done.update(path)
    if party not in path:
        return None
    parties = list(path)
    return [path[each] for each in parties[parties.index(party) :]]


def in_words(cycle: list[Stake]) -> str:
    """`alice (s1) waits at b for bob (s2); bob (s2) waits at a for alice (s1)`."""
    following = [*cycle[1:], cycle[0]]
    return "; ".join(
        f"{claim.owner} ({claim.party}) waits at {claim.lock.key} for {then.owner} ({then.party})"
        for claim, then in zip(cycle, following, strict=True)
    )
