"""The lock's rules against a model that is too simple to be wrong; then broken rules, which must be found out."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from locks import rules
from locks.models import Claim, Lock
from locks.rules import ENDINGS, TOKEN_BITS

START = datetime(2026, 1, 1, tzinfo=UTC)
SLOTS = 2  # processes that serve at a time
TTLS = st.integers(1, 15)
WAITS = st.integers(-5, 40).map(lambda count: max(0, count))
ANY = st.integers(0, 1000)  # one of those there are


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


class Service:
    """The rules as the services use them, on a lock and a queue in memory."""

    def __init__(self) -> None:
        self.lock = Lock(id="n/a")
        self.claims: dict[int, Claim] = {}
        self.now, self.epoch = START, 1
        self.alive: set[str] = set()
        self.facts: list[rules.Fact] = []

    def pass_on(self) -> None:
        self.facts += rules.expire(self.lock, self.now)
        self.facts += rules.promote(
            self.lock, list(self.claims.values()), self.now, self.epoch,
            is_alive=lambda claim: claim.process in self.alive,
            leave=lambda claim: self.claims.pop(claim.ticket),
        )  # fmt: skip

    def acquire(self, lock_id: str, ttl: int, wait: int, process: str) -> str:
        self.pass_on()
        claim = Claim(
            lock_id=lock_id, owner=f"owner of {lock_id}", ttl_seconds=float(ttl), since=self.now, ticket=0
        )
        if self.lock.lock_id is None and self.lock.queued == 0:
            self.facts.append(rules.take(self.lock, claim, self.now, self.epoch))
            return "held"
        if not wait:
            return "refused"
        claim.ticket, claim.process = self.lock.last_ticket + 1, process
        claim.deadline = self.now + seconds(wait)
        self.claims[claim.ticket] = claim
        self.facts.append(rules.enqueue(self.lock, claim))
        return "queued"

    def holds(self, lock_id: str) -> bool:
        return self.lock.lock_id == lock_id and rules.is_held(self.lock, self.now)

    def renew(self, lock_id: str, ttl: int) -> str:
        if not self.holds(lock_id):
            return rules.why_not_held(self.lock, lock_id)
        self.lock.expires_at = self.now + seconds(ttl)
        return "held"

    def release(self, lock_id: str) -> str:
        if not self.holds(lock_id):
            return rules.why_not_held(self.lock, lock_id)
        self.facts.append(rules.end(self.lock, "released"))
        self.pass_on()
        return "released"

    def withdraw(self, ticket: int, reason: str) -> None:
        claim = self.claims.pop(ticket)
        self.lock.queued -= 1
        self.facts.append(rules.withdrawn(claim, reason))
        self.pass_on()


class Model:
    """What should be: a holder, a list of who waits, and what became of the holds before."""

    def __init__(self) -> None:
        self.holder: tuple[str, datetime] | None = None
        self.waiting: list[dict[str, Any]] = []
        self.endings: list[tuple[str, str]] = []
        self.skipped: list[tuple[int, str]] = []

    def give(self, lock_id: str, now: datetime, ttl: int) -> None:
        self.holder = (lock_id, now + seconds(ttl))

    def end(self, reason: str) -> None:
        assert self.holder
        self.endings.insert(0, (self.holder[0], reason))
        self.holder = None

    def holds(self, lock_id: str, now: datetime) -> bool:
        return self.holder is not None and self.holder[0] == lock_id and self.holder[1] > now

    def settle(self, now: datetime, alive: set[str]) -> None:
        if self.holder and self.holder[1] <= now:
            self.end("expired")
        while self.holder is None and self.waiting:
            first = self.waiting.pop(0)
            if first["deadline"] <= now:
                self.skipped.append((first["ticket"], "timed_out"))
            elif first["process"] not in alive:
                self.skipped.append((first["ticket"], "process_gone"))
            else:
                self.give(first["lock_id"], now, first["ttl"])

    def why_not(self, lock_id: str) -> str:
        if self.holder and self.holder[0] == lock_id:
            return "expired"
        return dict(reversed(self.endings[:ENDINGS])).get(lock_id, "never_held")


class Story:
    """Who holds and who waits, from nothing but the facts; it breaks off where they make no sense."""

    def __init__(self) -> None:
        self.holder: tuple[str, int] | None = None
        self.waiting: list[int] = []
        self.tokens: list[int] = []
        self.withdrawn: list[tuple[int, str]] = []

    def hear(self, fact: rules.Fact) -> None:
        getattr(self, fact.type.replace("lock.", "on_"))(fact.data)

    def on_queued(self, data: dict[str, Any]) -> None:
        self.waiting.append(data["ticket"])

    def on_withdrawn(self, data: dict[str, Any]) -> None:
        assert data["ticket"] in self.waiting
        self.waiting.remove(data["ticket"])
        self.withdrawn.append((data["ticket"], data["reason"]))

    def on_acquired(self, data: dict[str, Any]) -> None:
        assert self.holder is None, "two holders"
        assert self.waiting[:1] == ([data["ticket"]] if "ticket" in data else []), "somebody was overtaken"
        assert not self.tokens or data["fencing_token"] > self.tokens[-1], "a token did not increase"
        self.waiting = self.waiting[1:]
        self.tokens.append(data["fencing_token"])
        self.holder = (data["owner"], data["fencing_token"])

    def on_released(self, data: dict[str, Any]) -> None:
        assert self.holder == (data["owner"], data["fencing_token"])
        self.holder = None

    on_expired = on_released


class LockMachine(RuleBasedStateMachine):
    """One lock, lived through by the service, the model and the story at once."""

    service_class: ClassVar[type[Service]] = Service

    def __init__(self) -> None:
        super().__init__()
        self.service, self.model, self.story = self.service_class(), Model(), Story()
        self.processes = [f"process {n}" for n in range(SLOTS)]
        self.service.alive = set(self.processes)
        self.ids: list[str] = []
        self.withdrawn: list[tuple[int, str]] = []
        self.heard = 0

    def pick(self, choice: int) -> str:
        """The present holder half of the time, else anyone who ever asked."""
        if choice % 2 and self.model.holder:
            return self.model.holder[0]
        return self.ids[choice // 2 % len(self.ids)]

    def settle(self) -> None:
        self.model.settle(self.service.now, self.service.alive)

    # -- what happens --------------------------------------------------------------------------------

    @rule(ttl=TTLS, wait=WAITS, slot=st.integers(0, SLOTS - 1))
    def acquire(self, ttl: int, wait: int, slot: int) -> None:
        lock_id, process, now = f"{len(self.ids):x}", self.processes[slot], self.service.now
        self.ids.append(lock_id)
        self.settle()
        if self.model.holder is None and not self.model.waiting:
            self.model.give(lock_id, now, ttl)
            expected = "held"
        elif not wait:
            expected = "refused"
        else:
            deadline, ticket = now + seconds(wait), self.service.lock.last_ticket + 1
            place = {
                "lock_id": lock_id,
                "ticket": ticket,
                "deadline": deadline,
                "process": process,
                "ttl": ttl,
            }
            self.model.waiting.append(place)
            expected = "queued"
        assert self.service.acquire(lock_id, ttl, wait, process) == expected

    @precondition(lambda self: self.ids)
    @rule(choice=ANY, ttl=TTLS)
    def renew(self, choice: int, ttl: int) -> None:
        lock_id = self.pick(choice)
        expected = self.model.why_not(lock_id)
        if self.model.holds(lock_id, self.service.now):
            self.model.give(lock_id, self.service.now, ttl)
            expected = "held"
        assert self.service.renew(lock_id, ttl) == expected

    @precondition(lambda self: self.ids)
    @rule(choice=ANY)
    def release(self, choice: int) -> None:
        lock_id = self.pick(choice)
        expected = self.model.why_not(lock_id)
        if self.model.holds(lock_id, self.service.now):
            self.model.end("released")
            self.settle()
            expected = "released"
        assert self.service.release(lock_id) == expected

    @precondition(lambda self: self.model.waiting)
    @rule(choice=ANY)
    def wait_out(self, choice: int) -> None:
        """A waiter's time is up and it is the first to notice."""
        waiter = self.model.waiting[choice % len(self.model.waiting)]
        self.service.now = max(self.service.now, waiter["deadline"])
        self.leave_queue(waiter, "timed_out")

    @precondition(lambda self: self.model.waiting)
    @rule(choice=ANY)
    def hang_up(self, choice: int) -> None:
        self.leave_queue(self.model.waiting[choice % len(self.model.waiting)], "client_gone")

    def leave_queue(self, waiter: dict[str, Any], reason: str) -> None:
        self.model.waiting.remove(waiter)
        self.model.skipped.append((waiter["ticket"], reason))
        self.settle()
        self.service.withdraw(waiter["ticket"], reason)

    @rule(count=st.integers(1, 10))
    def time_passes(self, count: int) -> None:
        self.service.now += seconds(count)

    @rule()
    def sweep(self) -> None:
        self.settle()
        self.service.pass_on()

    @rule(slot=st.integers(0, SLOTS - 1))
    def process_dies(self, slot: int) -> None:
        """It never comes back: the next one in its place has a name of its own."""
        self.service.alive.discard(self.processes[slot])
        self.processes[slot] = f"{self.processes[slot]}+"
        self.service.alive.add(self.processes[slot])

    @rule()
    def epoch_rises(self) -> None:
        self.service.epoch += 1

    # -- what is always so ---------------------------------------------------------------------------

    @invariant()
    def facts_tell_the_story(self) -> None:
        lock = self.service.lock
        before = len(self.story.tokens)
        for fact in self.service.facts[self.heard :]:
            self.story.hear(fact)
        self.heard = len(self.service.facts)
        epochs = {token >> TOKEN_BITS for token in self.story.tokens[before:]}
        assert epochs <= {self.service.epoch}, "a token of another epoch"
        assert self.story.holder == (None if lock.lock_id is None else (lock.owner, lock.last_token))
        assert self.story.waiting == list(self.service.claims)
        assert self.story.withdrawn == self.model.skipped

    @invariant()
    def holder_is_the_models(self) -> None:
        lock = self.service.lock
        assert (lock.lock_id and (lock.lock_id, lock.expires_at)) == self.model.holder

    @invariant()
    def queue_is_the_models_and_counted(self) -> None:
        assert list(self.service.claims) == [waiter["ticket"] for waiter in self.model.waiting]
        assert self.service.lock.queued == len(self.model.waiting)

    @invariant()
    def only_the_last_token_is_current_and_only_while_held(self) -> None:
        lock, now = self.service.lock, self.service.now
        held = self.model.holder is not None and self.model.holder[1] > now
        current = [token for token in self.story.tokens if rules.is_current(lock, token, now)]
        assert current == (self.story.tokens[-1:] if held else [])

    @invariant()
    def everyone_is_told_what_became_of_their_hold(self) -> None:
        lock = self.service.lock
        for lock_id in self.ids:
            assert rules.why_not_held(lock, lock_id) == self.model.why_not(lock_id)


QUIET = settings(
    derandomize=True,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def test_rules_do_what_the_model_says() -> None:
    run_state_machine_as_test(LockMachine, settings=settings(QUIET, max_examples=150, stateful_step_count=40))


# -- rules that are broken, to see that the machine finds them --------------------------------------

true_take, true_end, true_promote, true_enqueue = rules.take, rules.end, rules.promote, rules.enqueue


def promote_the_last(lock: Lock, queue: list[Claim], *about: Any, **how: Any) -> list[rules.Fact]:
    return true_promote(lock, queue[::-1], *about, **how)


def promote_to_dead_process(lock: Lock, queue: list[Claim], *about: Any, **how: Any) -> list[rules.Fact]:
    return true_promote(lock, queue, *about, **{**how, "is_alive": lambda claim: True})


def promote_overdue(
    lock: Lock, queue: list[Claim], now: datetime, *about: Any, **how: Any
) -> list[rules.Fact]:
    for claim in queue:
        claim.deadline = now + seconds(1)
    return true_promote(lock, queue, now, *about, **how)


def promote_over_a_holder(lock: Lock, *about: Any, **how: Any) -> list[rules.Fact]:
    if lock.queued:
        lock.lock_id = None
    return true_promote(lock, *about, **how)


def promote_without_leaving(lock: Lock, queue: list[Claim], *about: Any, **how: Any) -> list[rules.Fact]:
    return true_promote(lock, queue, *about, **{**how, "leave": lambda claim: None})


def promote_without_counting(lock: Lock, *about: Any, **how: Any) -> list[rules.Fact]:
    before = lock.queued
    facts = true_promote(lock, *about, **how)
    lock.queued = before
    return facts


def promote_silently(lock: Lock, *about: Any, **how: Any) -> list[rules.Fact]:
    return [fact for fact in true_promote(lock, *about, **how) if fact.type != "lock.withdrawn"]


def take_a_used_token(lock: Lock, *about: Any, **how: Any) -> rules.Fact:
    before = lock.last_token
    fact = true_take(lock, *about, **how)
    if before:
        fact.data["fencing_token"] = lock.last_token = before
    return fact


def take_in_the_first_epoch(
    lock: Lock, claim: Claim, now: datetime, epoch: int, floor: int = 0
) -> rules.Fact:
    return true_take(lock, claim, now, 1, floor)


def take_for_ever(lock: Lock, claim: Claim, now: datetime, *about: Any) -> rules.Fact:
    fact = true_take(lock, claim, now, *about)
    lock.expires_at = now + timedelta(days=1)
    return fact


def expire_regardless_of_time(lock: Lock, now: datetime) -> list[rules.Fact]:
    return [true_end(lock, "expired")] if lock.lock_id else []


def expire_never(lock: Lock, now: datetime) -> list[rules.Fact]:
    return []


def end_and_forget(lock: Lock, reason: str, **more: Any) -> rules.Fact:
    fact = true_end(lock, reason, **more)
    lock.endings = ""
    return fact


def enqueue_without_counting(lock: Lock, claim: Claim) -> rules.Fact:
    fact = true_enqueue(lock, claim)
    lock.queued -= 1
    return fact


def is_current_for_every_past_token(lock: Lock, token: int, now: datetime) -> bool:
    return token <= lock.last_token and rules.is_held(lock, now)


def is_held_at_its_last_instant(lock: Lock, now: datetime) -> bool:
    return lock.expires_at is not None and lock.expires_at >= now


@pytest.mark.parametrize(
    "bug",
    [
        promote_the_last,
        promote_to_dead_process,
        promote_overdue,
        promote_over_a_holder,
        promote_without_leaving,
        promote_without_counting,
        promote_silently,
        take_a_used_token,
        take_in_the_first_epoch,
        take_for_ever,
        expire_regardless_of_time,
        expire_never,
        end_and_forget,
        enqueue_without_counting,
        is_current_for_every_past_token,
        is_held_at_its_last_instant,
    ],
    ids=lambda bug: bug.__name__,
)
def test_broken_rule_is_found_out(bug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(name for name in ("promote", "take", "expire", "enqueue", "end", "is_current", "is_held")
                if bug.__name__.startswith(name))  # fmt: skip
    monkeypatch.setattr(rules, name, bug)
    few = settings(QUIET, max_examples=300, stateful_step_count=30, phases=[Phase.generate])
    with pytest.raises((AssertionError, KeyError)):
        run_state_machine_as_test(LockMachine, settings=few)


# -- single rules, in exact values -------------------------------------------------------------------


def claim(lock_id: str = "1", **values: Any) -> Claim:
    usual = {"owner": "me", "ttl_seconds": 10.0, "since": START, "ticket": 0}
    return Claim(lock_id=lock_id, **{**usual, **values})


def test_first_token_of_an_epoch_is_the_epoch_times_2_to_the_40_plus_1() -> None:
    lock = Lock(id="n/a")
    rules.take(lock, claim(), START, 3)
    assert lock.last_token == 3 * 2**40 + 1


def test_token_goes_on_from_the_floor() -> None:
    lock = Lock(id="n/a")
    rules.take(lock, claim(), START, 1, floor=2**40 + 500)
    assert lock.last_token == 2**40 + 501


def test_token_never_falls_when_the_epoch_does() -> None:
    lock = Lock(id="n/a", last_token=5 * 2**40 + 7)
    rules.take(lock, claim(), START, 4)
    assert lock.last_token == 5 * 2**40 + 8


def test_acquired_says_everything_but_the_lock_id() -> None:
    fact = rules.take(Lock(id="n/a"), claim("secret", ticket=4), START + seconds(2.5), 1)
    assert fact.type == "lock.acquired"
    assert fact.data == {
        "owner": "me",
        "mode": "exclusive",
        "permits": 1,
        "fencing_token": 2**40 + 1,
        "acquired_at": START + seconds(2.5),
        "expires_at": START + seconds(12.5),
        "ttl_seconds": 10.0,
        "waited_seconds": 2.5,
        "ticket": 4,
    }


def test_hold_ends_at_its_last_instant() -> None:
    lock = Lock(id="n/a")
    rules.take(lock, claim(), START, 1)
    assert rules.is_held(lock, START + timedelta(seconds=10, microseconds=-1))
    assert not rules.is_held(lock, START + seconds(10))


def test_expired_hold_that_nobody_ended_is_already_told_as_expired() -> None:
    lock = Lock(id="n/a")
    rules.take(lock, claim("1"), START, 1)
    assert rules.why_not_held(lock, "1") == "expired"


def test_unknown_lock_was_never_held() -> None:
    assert rules.why_not_held(None, "1") == "never_held"
    assert rules.is_current(None, 1, START) is False


def test_no_more_than_the_last_endings_are_remembered() -> None:
    lock = Lock(id="n/a")
    reasons = ["released", "expired", "force_released"] * 12
    for number, reason in enumerate(reasons):
        rules.take(lock, claim(str(number)), START, 1)
        rules.end(lock, reason)
    told = [rules.why_not_held(lock, str(number)) for number in range(len(reasons))]
    forgotten = len(reasons) - ENDINGS
    assert told == ["never_held"] * forgotten + reasons[forgotten:]


def test_end_leaves_nothing_of_the_holder_on_the_lock() -> None:
    lock = Lock(id="n/a")
    rules.take(lock, claim(metadata='{"a":1}'), START, 1)
    rules.end(lock, "force_released", by="operator")
    left = (lock.lock_id, lock.owner, lock.metadata, lock.acquired_at, lock.expires_at, lock.ttl_seconds)
    assert left == (None,) * 6
    assert lock.last_token == 2**40 + 1


def test_wait_never_counts_below_zero_when_the_clock_steps_back() -> None:
    fact = rules.take(Lock(id="n/a"), claim(since=START + seconds(1)), START, 1)
    assert fact.data["waited_seconds"] == 0.0
