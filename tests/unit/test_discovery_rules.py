"""The rules of discovery, driven by Hypothesis against what they promise."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.encoding import encode
from discovery import rules
from discovery.models import Instance, Service
from discovery.rules import FAILED, GONE, HEALTHY, KEPT, Tally

MANY = settings(max_examples=400, derandomize=True, deadline=None, database=None)
START = datetime(2026, 1, 1, tzinfo=UTC)
TTL = timedelta(seconds=15)
SHARE = 0.5
NAMES = [f"n/s#{number}" for number in range(6)]
CHECK = {
    "kind": "http",
    "path": "",
    "interval_seconds": 1,
    "timeout_seconds": 1,
    "failures": 3,
    "successes": 2,
}


def an_instance(name: str = NAMES[0], **more: Any) -> Instance:
    about = {"status": rules.DEREGISTERED, "expires_at": START + TTL, **more}
    return Instance(id=name, **about)


class World:
    """A service, its instances, and everything that can happen to them, as the operations use the rules."""

    def __init__(self) -> None:
        self.now = START
        self.service = Service(id="n/s")
        self.instances = {name: an_instance(name) for name in NAMES}
        self.meant = False  # somebody took one out on purpose in this step

    def register(self, one: Instance) -> None:
        if rules.is_overdue(one, self.now) and one.status not in GONE:
            self.expire(one)
        self.service.last_incarnation += 1
        one.incarnation, one.expires_at = self.service.last_incarnation, self.now + TTL
        rules.turn(self.service, one, self.now, SHARE)

    def heartbeat(self, one: Instance) -> None:
        if rules.silent_because(one, one.incarnation, self.now) is None:
            one.expires_at = self.now + TTL
            if one.status == rules.EXPIRED:
                rules.turn(self.service, one, self.now, SHARE)

    def expire(self, one: Instance) -> None:
        if one.status not in GONE and rules.is_overdue(one, self.now):
            rules.move(self.service, one, rules.EXPIRED, "expired", self.now, SHARE)

    def sweep(self, one: Instance) -> None:
        for each in self.instances.values():
            self.expire(each)
            if each.status not in GONE:
                rules.turn(self.service, each, self.now, SHARE)
        for each in sorted(self.instances.values(), key=lambda i: (i.changed_at or self.now, i.id)):
            rules.release(self.service, each, self.now, SHARE)
        rules.settle(self.service, self.now)

    def deregister(self, one: Instance) -> None:
        if not rules.is_gone(one):
            self.meant = True
            rules.move(self.service, one, rules.DEREGISTERED, "deregistered", self.now, SHARE)

    def maintain(self, one: Instance) -> None:
        if not rules.is_gone(one):
            self.meant = True
            one.maintenance = None if one.maintenance else "why"
            if one.status != rules.EXPIRED:
                rules.turn(self.service, one, self.now, SHARE)

    def check(self, one: Instance, state: str) -> None:
        one.checks = encode([{**CHECK, "state": state, "message": "no"}]).decode()
        if one.status not in GONE:
            rules.turn(self.service, one, self.now, SHARE)

    def fail(self, one: Instance) -> None:
        self.check(one, "failing")

    def recover(self, one: Instance) -> None:
        self.check(one, "passing")

    def listed(self) -> list[Instance]:
        return [one for one in self.instances.values() if one.status == HEALTHY or one.protected]


DEEDS: list[Callable[[World, Instance], None]] = [
    World.register, World.heartbeat, World.sweep, World.deregister, World.maintain, World.fail, World.recover,
]  # fmt: skip
STEPS = st.lists(
    st.tuples(st.sampled_from(DEEDS), st.sampled_from(NAMES), st.sampled_from([0, 1, 16, 40, 400, 4000])),
    max_size=60,
)


@MANY
@given(STEPS)
def test_what_a_service_counts_is_so(steps: Any) -> None:
    world = World()
    for deed, name, seconds in steps:
        world.now += timedelta(seconds=seconds)
        deed(world, world.instances[name])
        service, all_of_it = world.service, world.instances.values()
        assert service.healthy == sum(one.status == HEALTHY for one in all_of_it)
        assert service.protected == sum(one.protected for one in all_of_it)
        assert service.last_healthy >= service.healthy
        for one in all_of_it:
            assert not one.protected or one.status in FAILED
            assert (one.status == HEALTHY) <= (one.reason is None)


@MANY
@given(STEPS)
def test_never_are_fewer_listed_than_the_share_of_those_that_were_well(steps: Any) -> None:
    """Whatever fails at once: unless somebody takes instances out, or one was kept for an hour."""
    world = World()
    for deed, name, seconds in steps:
        before, was = world.service.last_healthy, len(world.listed())
        world.now += timedelta(seconds=seconds)
        old = [one for one in world.listed() if one.protected and world.now - one.changed_at >= KEPT]
        world.meant = False
        deed(world, world.instances[name])
        if before >= rules.CROWD and not world.meant and not old and was >= ceil(SHARE * before):
            assert len(world.listed()) >= ceil(SHARE * before)


@MANY
@given(STEPS)
def test_nothing_that_is_gone_is_revived_but_by_registering(steps: Any) -> None:
    world = World()
    for deed, name, seconds in steps:
        gone = {each for each, one in world.instances.items() if rules.is_gone(one)}
        world.now += timedelta(seconds=seconds)
        deed(world, world.instances[name])
        revived = {each for each in gone if not rules.is_gone(world.instances[each])}
        assert revived <= ({name} if deed is World.register else set())


@MANY
@given(STEPS)
def test_no_tombstone_is_listed(steps: Any) -> None:
    world = World()
    for deed, name, seconds in steps:
        world.now += timedelta(seconds=seconds)
        deed(world, world.instances[name])
        for one in world.instances.values():
            if rules.is_gone(one) or one.status == rules.MAINTENANCE:
                assert not rules.is_listed(world.service, one, world.now)


# -- one by one --------------------------------------------------------------------------------------


def crowd(count: int) -> World:
    world = World()
    world.instances = {f"n/s#{number}": an_instance(f"n/s#{number}") for number in range(count)}
    for one in world.instances.values():
        world.register(one)
    return world


@pytest.mark.parametrize(("count", "kept"), [(1, 0), (2, 0), (3, 2), (4, 2), (5, 3), (6, 3)])
def test_of_a_crowd_that_dies_at_once_half_is_kept(count: int, kept: int) -> None:
    world = crowd(count)
    world.now += TTL
    world.sweep(world.instances["n/s#0"])
    listed = world.listed()
    assert len(listed) == kept
    assert all(one.protected and one.status == rules.EXPIRED for one in listed)
    world.sweep(world.instances["n/s#0"])  # nor does another look wear them away
    assert len(world.listed()) == kept


def test_those_that_are_kept_are_let_go_when_others_are_well_again() -> None:
    world = crowd(4)
    world.now += TTL
    world.sweep(world.instances["n/s#0"])
    kept = world.listed()
    for one in world.instances.values():
        if one not in kept:
            world.register(one)
    world.sweep(kept[0])
    assert [one.status for one in kept] == [rules.EXPIRED] * 2
    assert not any(one.protected for one in kept)
    assert len(world.listed()) == 2


def test_one_that_was_kept_comes_back_with_a_heartbeat() -> None:
    world = crowd(4)
    world.now += TTL
    world.sweep(world.instances["n/s#0"])
    for one in world.instances.values():
        world.heartbeat(one)
    assert sorted(one.status for one in world.instances.values()) == [
        "expired",
        "expired",
        "healthy",
        "healthy",
    ]
    assert world.service.protected == 0


def test_nothing_is_kept_for_ever() -> None:
    world = crowd(4)
    world.now += TTL
    world.sweep(world.instances["n/s#0"])
    world.now += KEPT
    world.sweep(world.instances["n/s#0"])
    assert world.listed() == []
    assert world.service.last_healthy == 0


def test_those_that_die_slowly_are_not_missed() -> None:
    world = crowd(6)
    for number in range(5):
        world.now += rules.SETTLED
        for one in list(world.instances.values())[number + 1 :]:
            one.expires_at = world.now + TTL
        world.sweep(world.instances["n/s#0"])
        world.now += rules.SETTLED
        for one in list(world.instances.values())[number + 1 :]:
            one.expires_at = world.now + TTL
        world.sweep(world.instances["n/s#0"])
        assert len(world.listed()) == 5 - number
    assert world.service.last_healthy == 1


# -- flapping ----------------------------------------------------------------------------------------


def fall(world: World, one: Instance) -> None:
    world.fail(one)
    world.now += timedelta(seconds=1)
    world.recover(one)


def test_one_that_fails_again_and_again_is_held_back_longer_and_longer() -> None:
    world = crowd(1)
    one = world.instances["n/s#0"]
    one.expires_at = None
    holds = []
    for _ in range(7):
        falls = 0
        while one.status == HEALTHY:
            fall(world, one)
            falls += 1
        assert (falls, one.reason) == (rules.FALLS + 1, "flapping")
        assert one.held_until
        holds.append((one.held_until - world.now).total_seconds())
        world.now = one.held_until
        world.sweep(one)
        assert one.status == HEALTHY
    assert holds == [30, 60, 120, 240, 480, 900, 900]
    world.now += 2 * rules.WITHIN + timedelta(seconds=1)  # it was quiet: that is forgotten
    while one.status == HEALTHY:
        fall(world, one)
    assert one.held_until
    assert one.held_until - world.now == rules.HOLD


def test_one_that_fails_now_and_then_is_not_flapping() -> None:
    world = crowd(1)
    one = world.instances["n/s#0"]
    one.expires_at = None
    for _ in range(20):
        fall(world, one)
        assert one.status == HEALTHY
        world.now += rules.WITHIN / rules.FALLS


def test_a_restart_in_order_is_no_failure() -> None:
    world = crowd(1)
    one = world.instances["n/s#0"]
    for _ in range(10):
        world.deregister(one)
        world.register(one)
        assert one.status == HEALTHY


# -- checks ------------------------------------------------------------------------------------------


@MANY
@given(
    st.lists(st.booleans(), max_size=30), st.integers(1, 5), st.integers(1, 5),
    st.sampled_from(["pending", "passing", "failing"]),
)  # fmt: skip
@example([True], 3, 2, "pending")
def test_a_check_turns_after_so_many_running(
    results: list[bool], failures: int, successes: int, state: str
) -> None:
    check, tally = {**CHECK, "failures": failures, "successes": successes, "state": state}, Tally()
    for number, passed in enumerate(results, 1):
        tally = rules.tried(tally, passed)
        was, check["state"] = check["state"], rules.verdict(check, tally)
        last = results[:number]
        running = next((n for n, each in enumerate(reversed(last)) if each != passed), number)
        if check["state"] != was:
            needed = failures if not passed else 1 if was == "pending" else successes
            assert running == needed
        if running >= max(failures, successes):
            assert check["state"] == ("passing" if passed else "failing")


def test_one_is_not_healthy_before_each_check_passed() -> None:
    world, one = World(), an_instance()
    one.checks = rules.begun([CHECK, {**CHECK, "path": "/two"}], [])
    world.register(one)
    assert (one.status, one.reason, world.service.last_healthy) == ("failing", "not_checked", 0)
    checks = rules.checks_of(one)
    checks[0]["state"] = "passing"
    again = rules.begun([{**CHECK, "path": "/two"}, CHECK], checks)
    assert again
    one.checks = again
    assert [check["state"] for check in rules.checks_of(one)] == ["pending", "passing"]
    one.checks = encode([{**check, "state": "passing"} for check in checks]).decode()
    rules.turn(world.service, one, START, SHARE)
    assert one.status == HEALTHY
