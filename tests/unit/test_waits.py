"""Deadlocks against brute force, over random pictures of locks; and that the work grows with what there is."""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locks import waits
from locks.waits import Contention, Reduction, Stake, cycle_through, cycles, in_words
from tests.unit.referee import Queue, stuck

PARTIES = "stuvw"
KEYS = "abcd"
FEW = settings(max_examples=200, derandomize=True, deadline=None, database=None)
WANT = st.sampled_from([("exclusive", 1), ("exclusive", 1), ("exclusive", 2), ("shared", 1)])


class Scene:
    """Locks with holds and queues, as several parties could have made them, one request after another."""

    def __init__(self, capacities: Iterable[int]) -> None:
        self.locks = {key: Contention(key, capacity) for key, capacity in zip(KEYS, capacities, strict=True)}
        self.count = 0

    def ask(self, party: str, wants: dict[str, tuple[str, int]]) -> None:
        """A request is granted if all it wants is free, and waits in all queues if not."""
        self.count += 1
        request, is_free = f"r{self.count}", True
        for key, (mode, permits) in wants.items():
            lock = self.locks[key]
            lock.used = lock.shared = 0
            for hold in lock.holds:
                lock.add(hold)
            is_free &= not lock.queue and lock.fits(Stake(party, party, mode, permits, lock))
        for key, (mode, permits) in wants.items():
            lock = self.locks[key]
            claim = Stake(party, party, mode, permits, lock, self.count, float(self.count), True, request)
            (lock.holds if is_free else lock.queue).append(claim)

    @property
    def contended(self) -> list[Contention]:
        return [lock for lock in self.locks.values() if lock.queue]

    def stuck(self, without: str | None = None) -> set[str]:
        """By brute force; of those who are left if one party had given everything back, if that is asked."""
        return stuck({
            key: Queue(
                lock.capacity,
                [(hold.party, hold.mode, hold.permits) for hold in lock.holds if hold.party != without],
                [(c.party, c.request, c.mode, c.permits) for c in lock.queue if c.party != without],
            )
            for key, lock in self.locks.items()
        })  # fmt: skip


# Each is made once: a strategy that is made while another one draws is examined anew at every draw.
SIZES = st.tuples(*[st.integers(2, 3) | st.just(1)] * len(KEYS))
TURNS = st.integers(2, 12)
ASKED = st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True)
ASKING = st.sampled_from(PARTIES)


@st.composite
def scenes(draw: Any) -> Scene:
    scene = Scene(draw(SIZES))
    for _ in range(draw(TURNS)):
        keys = draw(ASKED)
        wants = {key: draw(WANT) for key in sorted(keys)}
        wants = {k: (mode, min(permits, scene.locks[k].capacity)) for k, (mode, permits) in wants.items()}
        scene.ask(draw(ASKING), wants)
    return scene


def is_cycle(reduction: Reduction, cycle: list[Stake]) -> bool:
    """Is each claim really kept by the party of the next?"""
    following = [*cycle[1:], cycle[0]]
    return all(
        any(blocker.party == then.party for blocker in reduction.blockers(claim))
        for claim, then in zip(cycle, following, strict=True)
    )


@given(scenes())
@FEW
def test_who_is_left_is_who_waits_for_ever(scene: Scene) -> None:
    assert Reduction(scene.contended).left == scene.stuck()


@given(scenes())
@FEW
def test_blocked_claims_have_blockers_and_the_first_with_room_has_none(scene: Scene) -> None:
    reduction = Reduction(scene.contended)
    blocked = waits.claims_left(reduction)
    assert set(blocked) == reduction.left
    for claims in blocked.values():
        for claim in claims:
            blockers = reduction.blockers(claim)
            assert blockers
            assert {blocker.party for blocker in blockers} <= reduction.left
            assert all(blocker.lock is claim.lock for blocker in blockers)
            assert claim not in blockers


@given(scenes())
@FEW
def test_cycles_are_real_and_have_no_party_in_common(scene: Scene) -> None:
    reduction, found = Reduction(scene.contended), list(cycles(scene.contended))
    parties = [claim.party for cycle in found for claim in cycle]
    assert len(parties) == len(set(parties))
    for cycle in found:
        assert is_cycle(reduction, cycle)


@given(scenes())
@FEW
def test_there_is_a_cycle_if_and_only_if_somebody_waits_for_ever(scene: Scene) -> None:
    assert bool(list(cycles(scene.contended))) == bool(scene.stuck())


@given(scenes())
@FEW
def test_refusing_one_of_each_cycle_by_and_by_sets_everybody_free(scene: Scene) -> None:
    for _ in range(50):
        found = list(cycles(scene.contended))
        if not found:
            break
        for cycle in found:
            youngest = max(cycle, key=lambda claim: claim.since)
            for lock in scene.locks.values():
                lock.queue = [claim for claim in lock.queue if claim.request != youngest.request]
    assert scene.stuck() == set()


@given(scenes(), st.sampled_from(PARTIES))
@FEW
def test_cycle_through_a_party_begins_with_it_and_is_the_shortest(scene: Scene, party: str) -> None:
    reduction = Reduction(scene.contended)
    found, length = cycle_through(reduction, party), way_back(reduction, party)
    assert (found and len(found)) == length
    if found:
        assert found[0].party == party
        assert is_cycle(reduction, found)


def way_back(reduction: Reduction, party: str) -> int | None:
    """How many claims lead from a party back to it: by trying all ways of one, two, three … steps."""
    claims = waits.claims_left(reduction)
    reached = {party}
    for length in range(1, len(PARTIES) + 1):
        reached = {
            b.party for each in reached for claim in claims.get(each, ()) for b in reduction.blockers(claim)
        }
        if party in reached:
            return length
    return None


@given(scenes())
@FEW
def test_who_queues_last_is_on_a_cycle_if_its_request_brought_the_deadlock(scene: Scene) -> None:
    """What is asked before somebody queues: nobody waited for ever before, so it is on a cycle itself, or nobody is."""
    last = max((claim.request for lock in scene.locks.values() for claim in lock.queue), default="", key=len)
    queues = {key: list(lock.queue) for key, lock in scene.locks.items()}
    for lock in scene.locks.values():
        lock.queue = [claim for claim in lock.queue if claim.request != last]
    if not last or scene.stuck() or any(
        claim.request == last for queue in queues.values() for claim in queue[:-1]
    ):  # fmt: skip
        return
    for key, lock in scene.locks.items():
        lock.queue = queues[key]
    (party,) = {claim.party for queue in queues.values() for claim in queue if claim.request == last}
    is_refused = cycle_through(Reduction(scene.contended), party) is not None
    assert is_refused == (party in scene.stuck())
    assert is_refused or not scene.stuck()


# -- in exact values ---------------------------------------------------------------------------------


def scene_of(*requests: tuple[str, dict[str, tuple[str, int]]], capacity: int = 1) -> Scene:
    scene = Scene([capacity] * len(KEYS))
    for party, wants in requests:
        scene.ask(party, wants)
    return scene


X, SHARED = ("exclusive", 1), ("shared", 1)


def told(found: Iterable[list[Stake]]) -> list[list[tuple[str, str]]]:
    return [[(claim.party, claim.lock.key) for claim in cycle] for cycle in found]


def test_two_who_wait_for_each_other() -> None:
    scene = scene_of(("s", {"a": X}), ("t", {"b": X}), ("s", {"b": X}), ("t", {"a": X}))
    assert told(cycles(scene.contended)) == [[("s", "b"), ("t", "a")]]
    cycle = cycle_through(Reduction(scene.contended), "t")
    assert cycle
    assert in_words(cycle) == "t (t) waits at a for s (s); s (s) waits at b for t (t)"


def test_a_lock_is_not_reentrant() -> None:
    scene = scene_of(("s", {"a": X}), ("s", {"a": X}))
    assert told(cycles(scene.contended)) == [[("s", "a")]]


def test_two_shared_holders_who_both_want_it_alone() -> None:
    scene = scene_of(("s", {"a": SHARED}), ("t", {"a": SHARED}), ("s", {"a": X}), ("t", {"a": X}))
    assert Reduction(scene.contended).left == {"s", "t"}


def test_another_holders_permit_may_come_free() -> None:
    scene = scene_of(
        ("s", {"a": X}), ("t", {"a": X}), ("t", {"b": X, "c": ("exclusive", 2)}), ("s", {"b": ("exclusive", 2)}),
        capacity=2,
    )  # fmt: skip
    assert list(cycles(scene.contended)) == []


def test_who_stands_behind_a_request_that_waits_for_it_elsewhere_is_seen() -> None:
    """Both could share a; but nobody overtakes the first, who waits for b as well."""
    scene = scene_of(
        ("s", {"b": X}), ("u", {"a": X}), ("t", {"a": SHARED, "b": X}), ("s", {"a": SHARED})
    )  # fmt: skip
    assert told(cycles(scene.contended)) == [[("s", "a"), ("t", "b")]]


def test_two_requests_of_a_party_need_not_be_granted_together() -> None:
    """t waits for a and, by another request, for b: it has a as soon as u gives it back, and s has it with it."""
    scene = scene_of(
        ("s", {"b": X}), ("u", {"a": X}), ("t", {"a": SHARED}), ("t", {"b": X}), ("s", {"a": SHARED})
    )  # fmt: skip
    assert list(cycles(scene.contended)) == []


# -- how much work it is -----------------------------------------------------------------------------


def chain(length: int) -> list[Contention]:
    """Everybody holds one lock and waits for the next: nobody waits for ever, but only the last can go on at first."""
    locks = [Contention(f"k{n}", 1) for n in range(length + 1)]
    for n in range(length + 1):
        locks[n].holds.append(Stake(f"p{n}", "o", "exclusive", 1, locks[n]))
    for n in range(length):
        locks[n + 1].queue.append(Stake(f"p{n}", "o", "exclusive", 1, locks[n + 1], 1, n, True, f"r{n}"))
    return locks


def ring(length: int) -> list[Contention]:
    """The last waits for the first as well."""
    locks = chain(length)
    locks[0].queue.append(Stake(f"p{length}", "o", "exclusive", 1, locks[0], 1, length, True, "last"))
    return locks


def crowd(length: int) -> list[Contention]:
    """All in one queue, for one who waits for the last of them."""
    lock, other = Contention("a", 1), Contention("b", 1)
    lock.holds.append(Stake("h", "o", "exclusive", 1, lock))
    for n in range(length):
        lock.queue.append(Stake(f"p{n}", "o", "exclusive", 1, lock, n + 1, n, True, f"r{n}"))
    other.holds.append(Stake(f"p{length - 1}", "o", "exclusive", 1, other))
    other.queue.append(Stake("h", "o", "exclusive", 1, other, 1, length, True, "last"))
    return [lock, other]


@pytest.mark.parametrize(("scene", "parties"), [(chain, 0), (ring, 5001), (crowd, 3)])
def test_work_is_proportional_to_the_claims(
    scene: Any, parties: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = dict.fromkeys(("fits", "add", "blockers"), 0)
    for kind, name in ((Contention, "fits"), (Contention, "add"), (Reduction, "blockers")):
        monkeypatch.setattr(kind, name, counted(getattr(kind, name), name, work))
    locks = scene(5000)
    claims = sum(len(lock.queue) + len(lock.holds) for lock in locks)
    length = sum(map(len, cycles(locks)))  # the locks themselves are nothing to print
    assert (length, sum(work.values()) <= 4 * claims) == (parties, True)


def counted(function: Any, name: str, work: dict[str, int]) -> Any:
    def call(*arguments: Any) -> Any:
        work[name] += 1
        return function(*arguments)

    return call
