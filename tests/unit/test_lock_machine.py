"""The lock operations, through real batches over a database in memory, under the eyes of a referee who knows what
locks promise; then broken operations, each of which he must find out."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RULE_MARKER,
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

import core.sessions
from core import batch
from core.batch import Job
from core.errors import SyrosError
from core.models import Process
from core.models import Session as StoredSession
from core.operations import Waiting
from core.sessions import OVERDUE
from locks import rules, waits
from locks.models import Claim, Hold, Lock
from locks.rules import ENDINGS, MARK, TOKEN_BITS
from locks.services import deadlocks, elections, holds, queues, upkeep
from tests.unit.memory import START, Memory, job
from tests.unit.referee import Command, Referee, Request, Session, seconds

KEYS = ("a", "b", "c")
ELECTION = "$election:e"
SLOTS = 2  # processes that serve at a time
ANY = st.integers(0, 1000)  # one of those there are
TTLS = st.integers(1, 15)
WAITS = st.sampled_from([0, 0, 3, 10, 40])
DELAYS = st.sampled_from([0.0, 0.0, 3.0])
SESSION = st.integers(-4, 5)  # one of those there are; none, below 0
WANTS = st.sampled_from([
    ("exclusive", 1, None), ("exclusive", 1, None), ("shared", 1, None), ("shared", 1, None), ("shared", 1, 3),
    ("exclusive", 1, 2), ("exclusive", 1, 3), ("exclusive", 2, 3), ("exclusive", 3, 3), ("exclusive", 1, 1),
])  # fmt: skip
MANY = st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True)
Judge = Callable[[Job], Any]


def held(machine: "LockMachine") -> bool:
    return any(KEYS[0] <= key and lock.holds for key, lock in machine.referee.locks.items())


def led(machine: "LockMachine") -> bool:
    return bool(machine.referee.lock(ELECTION).holds)


def asked(machine: "LockMachine") -> bool:
    return bool(machine.requests)


def sessions(machine: "LockMachine") -> bool:
    return bool(machine.referee.sessions)


def outcome(job: Job) -> str:
    if job.error:
        return job.error.code
    return "waiting" if isinstance(job.value, Waiting) else "granted"


class LockMachine(RuleBasedStateMachine):
    """Three locks and an election, sessions, two processes. Commands are put together to batches."""

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.referee = Memory(), Referee()
        self.referee.now = START
        self.processes: list[str] = []
        for slot in range(SLOTS):
            self.processes.append("")
            self.begin_process(slot)
        self.batch: list[tuple[Job, Command, Judge]] = []
        self.size = 1  # commands a batch
        self.is_sound = True  # until something is found
        self.asked = 0
        self.batches = 0
        self.requests: list[Request] = []

    def begin_process(self, slot: int) -> None:
        """In the place of one that died; a name is used once."""
        name = f"system/{slot}:{len(self.memory.rows(Process))}"
        self.memory.rows(Process)[name] = {
            "id": name, "host": "h", "pid": 1, "started_at": START, "beat_at": START,
            "expires_at": START + seconds(10**9),
        }  # fmt: skip
        self.referee.alive.add(name)
        self.processes[slot] = name

    @property
    def process(self) -> str:
        return self.processes[self.batches % SLOTS]

    # -- batches -------------------------------------------------------------------------------------

    def add(self, name: str, params: dict[str, Any], judge: Judge, **about: Any) -> None:
        self.batch.append((job(name, **params), Command(name, **about), judge))
        if len(self.batch) >= self.size:
            self.commit()

    def commit(self) -> None:
        """One batch, and everything that can be said of it."""
        if not self.batch:
            return
        steps, self.batch, self.is_sound = self.batch, [], False
        for session in self.referee.sessions.values():
            session.was_until = session.until
        found = self.memory.run([step[0] for step in steps], self.process)
        self.batches += 1
        for each, command, judge in steps:
            after = judge(each)
            self.referee.hear(command, found[each])
            if each.error is None:
                self.referee.what_was_touched_passed_on()
            if after:
                after()
        self.referee.promises()
        self.rows_agree()
        self.is_sound = True

    def rows_agree(self) -> None:
        for key in (*KEYS, ELECTION):
            address = f"n/{key}"
            row, lock = self.memory.rows(Lock).get(address), self.referee.lock(key)
            hold_rows, claims = (self.memory.members(model, address) for model in (Hold, Claim))
            assert [row["ticket"] for row in claims] == [request.tickets[key] for request in lock.queue]
            assert [row["process"] for row in claims] == [request.process for request in lock.queue]
            if row is None:
                assert lock.is_idle
                continue
            sole = [row] if row["lock_id"] is not None else []
            held = [(row["last_token"], row["owner"], "exclusive", row["capacity"], row["session"], row["expires_at"])
                    for row in sole]  # fmt: skip
            held += [
                (h["token"], h["owner"], h["mode"], h["permits"], h["session"], h["expires_at"])
                for h in hold_rows
            ]
            assert sorted(held) == sorted(
                (
                    h.token,
                    h.request.owner,
                    h.mode,
                    h.permits,
                    h.request.session and h.request.session.name,
                    h.until,
                )
                for h in lock.holds.values()
            )
            ids = {row["lock_id"] for row in (*sole, *hold_rows)}
            assert ids == {hold.request.ids[key] for hold in lock.holds.values()}
            assert row["capacity"] == lock.capacity
            assert row["last_token"] == lock.last_token
            assert row["queued"] == len(lock.queue)
            assert row["shared"] == sum(hold["mode"] == "shared" for hold in hold_rows)
            assert row["used"] == sum(hold["permits"] for hold in hold_rows if hold["mode"] != "shared")
            ends = [hold.until for hold in lock.holds.values() if hold.until]
            assert not ends or (row["expires_at"] and row["expires_at"] <= min(ends))
            until = [
                at if at and at > self.referee.now else None for at in (row["not_before"], lock.not_before)
            ]
            assert until[0] == until[1]
            told = "".join(request.ids[key][:MARK] + reason[0] for request, reason in lock.endings[:ENDINGS])
            assert row["endings"].startswith(told)

    # -- who is meant --------------------------------------------------------------------------------

    def session(self, choice: int) -> Session | None:
        known = list(self.referee.sessions.values())[-6:]
        return known[choice % len(known)] if known and choice >= 0 else None

    def pick(self, choice: int, found: list[Any]) -> Any:
        return found[choice % len(found)] if found else None

    def holding(self, choice: int, keys: tuple[str, ...]) -> tuple[str, Request] | None:
        """Somebody who holds a lock, mostly; else somebody who did or waits."""
        held = [(key, hold.request) for key in keys for hold in self.referee.lock(key).holds.values()
                if hold.request.ids]  # fmt: skip
        if choice % 4 and held:
            return held[choice // 4 % len(held)]
        known = [(key, request) for request in self.requests for key in request.ids if key in keys]
        return self.pick(choice // 4, known[-40:])

    def waiting(self, choice: int) -> Request | None:
        found = {
            request: None for lock in self.referee.locks.values() for request in lock.queue if request.ids
        }
        return self.pick(choice, list(found))

    # -- taking --------------------------------------------------------------------------------------

    def ask(self, wants: dict[str, tuple[str, int]], ttl: int, wait: int, session: Session | None) -> Request:
        self.asked += 1
        lasts = session.ttl if session else float(ttl)
        return Request(f"o{self.asked}", wants, self.referee.now, lasts, float(wait), session, self.process)

    def lease(self, request: Request) -> dict[str, Any]:
        if request.session:
            return {"session_id": request.session.name, "wait_seconds": request.wait}
        return {"ttl_seconds": request.ttl, "wait_seconds": request.wait}

    def judge_request(self, request: Request, capacities: dict[str, int | None]) -> Judge:
        def judge(job: Job) -> Callable[[], None] | None:
            expected, found = self.referee.outcomes(request, capacities), outcome(job)
            self.is_deadlock_real(job, request, expected)
            if found == "deadlock":
                return None
            assert found.replace("election_held", "lock_held") in expected, (found, expected, job.error)
            if job.error:
                return None
            for key, capacity in capacities.items():
                self.referee.lock(key).capacity = capacity or self.referee.lock(key).capacity
            self.requests.append(request)
            return lambda: self.is_told(job, request)

        return judge

    def is_told(self, job: Job, request: Request) -> None:
        if isinstance(job.value, Waiting):
            request.ids = {key: lock_id for key, lock_id, _ in job.value.facts["places"]}
            assert job.value.facts["places"] == request.places
            assert job.value.ticket == request.places[0][2]
            return
        places = job.operation.waits.facts(job.value)["places"]
        request.ids = {key: lock_id for key, lock_id, _ in places}
        assert list(request.ids) == sorted(request.wants)
        for grant in getattr(job.value, "grants", [job.value]):
            key = getattr(grant, "key", ELECTION)
            self.is_grant(grant, key, request)

    def is_grant(self, grant: Any, key: str, request: Request) -> None:
        hold = self.referee.hold_of(key, request)
        assert hold
        assert (grant.lock_id, grant.fencing_token) == (request.ids[key], hold.token)
        assert grant.expires_at in (
            {request.session.until, request.session.was_until} if request.session else {hold.until}
        )

    def is_deadlock_real(self, job: Job, request: Request, expected: set[str]) -> None:
        """Commands of the same batch are not seen by who looks for deadlocks, so only a batch of one is judged."""
        found = outcome(job)
        if found == "deadlock":
            assert "waiting" in expected
            assert request.session
        if self.size == 1 and request.session and found in ("deadlock", "waiting"):
            is_stuck = request.session.name in self.referee.stuck(request)
            if found == "deadlock":
                assert is_stuck, "a deadlock that is none"
            elif is_stuck:
                assert self.referee.stuck(), "a deadlock that was not seen"

    def acquire(self, key: str, want: Any, ttl: int, wait: int, session: int) -> None:
        mode, permits, capacity = want
        request = self.ask({key: (mode, permits)}, ttl, wait, self.session(session))
        params = {"key": key, "owner": request.owner, "mode": mode, "permits": permits, "capacity": capacity}
        self.add("locks.acquire", {**params, **self.lease(request)},
                 self.judge_request(request, {key: capacity}), request=request)  # fmt: skip

    # Several rules of the same, so that more of them is drawn.
    one = rule(key=st.sampled_from(KEYS), want=WANTS, ttl=TTLS, wait=WAITS, session=SESSION)
    acquire_1, acquire_2, acquire_3 = one(acquire), one(acquire), one(acquire)

    def acquire_many(self, keys: list[str], want: Any, ttl: int, wait: int, session: int) -> None:
        """The first as it is drawn, the others exclusive or shared."""
        wants = dict.fromkeys(sorted(keys), ("exclusive", 1, None))
        wants[keys[0]] = want
        if ttl % 3 == 0:
            wants[keys[-1]] = ("shared", 1, None)
        request = self.ask({key: w[:2] for key, w in wants.items()}, ttl, wait, self.session(session))
        items = [{"key": key, "mode": w[0], "permits": w[1], "capacity": w[2]} for key, w in wants.items()]
        self.add("locks.acquire_many", {"owner": request.owner, "items": items, **self.lease(request)},
                 self.judge_request(request, {key: w[2] for key, w in wants.items()}), request=request)  # fmt: skip

    many = rule(keys=MANY, want=WANTS, ttl=TTLS, wait=WAITS, session=SESSION)
    acquire_many_1, acquire_many_2 = many(acquire_many), many(acquire_many)

    @rule(ttl=TTLS, wait=WAITS, session=SESSION)
    def campaign(self, ttl: int, wait: int, session: int) -> None:
        request = self.ask({ELECTION: ("exclusive", 1)}, ttl, wait, self.session(session))
        self.add("elections.campaign", {"name": "e", "candidate": request.owner, **self.lease(request)},
                 self.judge_request(request, {}), request=request)  # fmt: skip

    # -- keeping and giving back ---------------------------------------------------------------------

    def is_refused(self, job: Job, key: str, request: Request) -> bool:
        """Whoever does not hold is refused, and told why; nobody else is."""
        if self.referee.holds(key, request):
            assert job.error is None, job.error
            return False
        assert isinstance(job.error, SyrosError)
        assert job.error.code in ("lock_not_held", "not_leader"), job.error
        assert job.error.extra["reason"] in self.referee.why_not(key, request)
        return True

    @precondition(held)
    @rule(choice=ANY, ttl=TTLS)
    def renew(self, choice: int, ttl: int) -> None:
        self._renew("locks.renew", self.holding(choice, KEYS), ttl)

    @precondition(led)
    @rule(choice=ANY, ttl=TTLS)
    def renew_leadership(self, choice: int, ttl: int) -> None:
        self._renew("elections.renew", self.holding(choice, (ELECTION,)), ttl)

    def _renew(self, name: str, found: tuple[str, Request] | None, ttl: int) -> None:
        if found is None:
            return
        key, request = found

        def judge(job: Job) -> None:
            if self.is_refused(job, key, request):
                return
            hold = self.referee.hold_of(key, request)
            assert hold
            if hold.until:
                hold.until = self.referee.now + seconds(ttl)
            self.is_grant(job.value, key, request)

        more = {} if request.session else {"ttl_seconds": float(ttl)}
        self.add(name, {**named(key), "lock_id": request.ids[key], **more}, judge)

    @precondition(held)
    @rule(choice=ANY)
    def release(self, choice: int) -> None:
        self._release("locks.release", self.holding(choice, KEYS))

    @precondition(led)
    @rule(choice=ANY)
    def resign(self, choice: int) -> None:
        self._release("elections.resign", self.holding(choice, (ELECTION,)))

    def _release(self, name: str, found: tuple[str, Request] | None) -> None:
        if found is None:
            return
        key, request = found

        def judge(job: Job) -> Callable[[], None] | None:
            if self.is_refused(job, key, request):
                return None
            hold = self.referee.hold_of(key, request)
            assert hold
            assert job.value.fencing_token == hold.token
            return lambda: self.is_over(key, request)

        self.add(name, {**named(key), "lock_id": request.ids[key]}, judge, target=request)

    def is_over(self, key: str, request: Request) -> None:
        assert self.referee.hold_of(key, request) is None

    @precondition(asked)
    @rule(choice=ANY)
    def release_with_the_id_of_another(self, choice: int) -> None:
        """Of somebody who waits for this lock, or of another lock."""
        request = self.pick(choice, [each for each in self.requests if each.ids])
        if request is None:
            return
        key = KEYS[choice % len(KEYS)]
        lock_id = next(iter(request.ids.values()))
        if request.ids.get(key) == lock_id:
            return

        def judge(job: Job) -> None:
            assert job.error
            assert job.error.extra["reason"] == "never_held"

        self.add("locks.release", {"key": key, "lock_id": lock_id}, judge)

    @precondition(led)
    @rule(choice=ANY, candidate=ANY)
    def transfer(self, choice: int, candidate: int) -> None:
        found, others = self.holding(choice, (ELECTION,)), self.requests
        standing = self.referee.lock(ELECTION).queue or [each for each in others if ELECTION in each.ids]
        if found is None or not standing:
            return
        key, request = found
        to = self.pick(candidate, standing)

        def judge(job: Job) -> Callable[[], None] | None:
            if self.referee.holds(key, request) and not self.may_follow(to):
                assert job.error
                assert job.error.code == "not_candidate"
                return None
            if self.is_refused(job, key, request):
                return None
            return lambda: self.leads(to, job.value.fencing_token)

        params = {"name": "e", "lock_id": request.ids[key], "to": to.owner}
        self.add("elections.transfer", params, judge, target=request)

    def may_follow(self, to: Request) -> bool:
        is_waiting = to in self.referee.lock(ELECTION).queue and not self.referee.is_gone(to)
        return is_waiting and (to.session is None or to.session.lives(self.referee.now))

    def leads(self, request: Request, token: int) -> None:
        hold = self.referee.hold_of(ELECTION, request)
        assert hold
        assert hold.token == token

    @precondition(led)
    @rule(choice=ANY)
    def proclaim(self, choice: int) -> None:
        found = self.holding(choice, (ELECTION,))
        if found is None:
            return
        key, request = found
        params = {"name": "e", "lock_id": request.ids[key], "value": f'"{choice}"'}
        self.add("elections.proclaim", params, lambda job: self.is_refused(job, key, request) and None,
                 target=request)  # fmt: skip

    @precondition(lambda self: held(self) or led(self))
    @rule(key=st.sampled_from((*KEYS, ELECTION)), delay=DELAYS)
    def force_release(self, key: str, delay: float) -> None:
        def judge(job: Job) -> Callable[[], None] | None:
            lock = self.referee.lock(key)
            owners = [hold.request.owner for hold in lock.holds.values() if hold.lasts(self.referee.now)]
            if not owners:
                assert outcome(job) in ("lock_not_held", "not_leader")
                return None
            assert job.error is None, job.error
            if key != ELECTION:
                assert sorted(job.value.owners) == sorted(owners)
            # One token is burnt: what they hold in their hands is stale, whoever is next.
            lock.last_token = max(lock.last_token, self.referee.epoch << TOKEN_BITS, self.referee.floor) + 1
            return None

        name = "elections.depose" if key == ELECTION else "locks.force_release"
        params = {**named(key), "reason": "because", "lock_delay_seconds": delay}
        self.add(name, params, judge, key=key, about=delay)

    @precondition(asked)
    @rule(key=st.sampled_from((*KEYS, ELECTION)), choice=ANY)
    def check(self, key: str, choice: int) -> None:
        """Is a token current? One of the last, or of the present ones."""
        tokens = [*self.referee.lock(key).holds, self.referee.lock(key).last_token, 0]
        token = max(0, self.pick(choice, tokens) - choice % 2)

        def judge(job: Job) -> None:
            lock = self.referee.lock(key)
            hold = lock.holds.get(token)
            assert job.value.current == (hold is not None and hold.lasts(self.referee.now))
            assert job.value.last_token == lock.last_token

        if key != ELECTION:
            self.add("locks.check", {"key": key, "fencing_token": token}, judge)

    @precondition(asked)
    @rule(choice=ANY, keep=st.booleans())
    def withdraw(self, choice: int, keep: bool) -> None:
        """A waiter's time is up, or its client is gone. It may have been granted meanwhile, or be long gone."""
        request = self.waiting(choice) if choice % 4 else self.pick(choice // 4, self.requests[-20:])
        if request:
            self._withdraw(request, keep)

    def _withdraw(self, request: Request, keep: bool) -> None:
        def judge(job: Job) -> Callable[[], None]:
            assert job.error is None, job.error
            held = [key for key in request.ids if self.referee.holds(key, request)]
            if not keep or 0 < len(held) < len(request.ids):  # of several, some were taken away meanwhile
                return lambda: self.has_nothing(request, held)
            if held:
                for grant in getattr(job.value, "grants", [job.value]):
                    self.is_grant(grant, getattr(grant, "key", ELECTION), request)
            return lambda: self.waits_no_more(request)

        name = "elections.withdraw" if ELECTION in request.ids else "locks.withdraw"
        reason = "timed_out" if keep else "client_gone"
        params = {"places": request.places, "reason": reason, "keep": keep}
        self.add(name, params, judge, target=request, about=keep)

    def waits_no_more(self, request: Request) -> None:
        assert not any(request in lock.queue for lock in self.referee.locks.values())

    def has_nothing(self, request: Request, held: list[str]) -> None:
        self.waits_no_more(request)
        assert not any(self.referee.hold_of(key, request) for key in held)

    # -- sessions ------------------------------------------------------------------------------------

    @rule(ttl=st.integers(2, 20), delay=DELAYS)
    def open_session(self, ttl: int, delay: float) -> None:
        now = self.referee.now

        def judge(job: Job) -> None:
            assert job.error is None, job.error
            name = job.value.session_id
            session = Session(name, float(ttl), delay, now + seconds(ttl))
            self.referee.sessions[name] = session
            assert job.value.expires_at == session.until

        about = {"owner": "me", "ttl_seconds": float(ttl), "lock_delay_seconds": delay}
        self.add("sessions.open", about, judge)

    def is_over_for(self, job: Job, session: Session) -> bool:
        """A session that is over never comes back."""
        if session.lives(self.referee.now):
            assert job.error is None, job.error
            return False
        assert job.error, "a session was revived"
        assert (job.error.code, job.error.extra["reason"]) == ("session_ended", session.ended or "expired")
        return True

    @precondition(sessions)
    @rule(choice=ANY)
    def keepalive(self, choice: int) -> None:
        session = self.session(choice)

        def judge(job: Job) -> None:
            assert session
            if not self.is_over_for(job, session):
                session.until = self.referee.now + seconds(session.ttl)
                assert job.value.expires_at == session.until

        if session:
            self.add("sessions.keepalive", {"session_id": session.name}, judge)

    @precondition(sessions)
    @rule(choice=ANY)
    def close(self, choice: int) -> None:
        session = self.session(choice)

        def judge(job: Job) -> Callable[[], None] | None:
            assert session
            return None if self.is_over_for(job, session) else lambda: self.is_ended(session, "closed")

        if session:
            self.add("sessions.close", {"session_id": session.name}, judge, session=session)

    @precondition(sessions)
    @rule(choice=ANY)
    def expire(self, choice: int) -> None:
        if session := self.session(choice):
            self._expire(session)

    def _expire(self, session: Session) -> None:
        def judge(job: Job) -> Callable[[], None]:
            assert job.error is None, job.error
            is_due = session.ended is None and session.until <= self.referee.now
            reason = "expired" if is_due else session.ended
            return lambda: self.is_ended(session, reason)

        self.add("sessions.expire", {"session_id": session.name}, judge, session=session)

    def is_ended(self, session: Session, reason: str | None) -> None:
        assert session.ended == reason

    # -- what nobody asks for ------------------------------------------------------------------------

    @rule(key=st.sampled_from((*KEYS, ELECTION)))
    def sweep(self, key: str) -> None:
        self._sweep([key])

    def _sweep(self, keys: list[str]) -> None:
        def judge(job: Job) -> Callable[[], None]:
            assert job.error is None, job.error
            return lambda: self.referee.nothing_is_due(keys)

        self.add("locks.sweep", {"keys": keys}, judge)

    @precondition(asked)
    @rule(choice=ANY)
    def bury(self, choice: int) -> None:
        if (request := self.waiting(choice)) and request.places:
            key, _, ticket = self.pick(choice, request.places)
            self._bury([f"{key}#{ticket:015d}"])

    def _bury(self, names: list[str]) -> None:
        def judge(job: Job) -> Callable[[], None]:
            assert job.error is None, job.error
            return lambda: self.are_buried(names)

        self.add("locks.bury", {"names": names}, judge)

    def are_buried(self, names: list[str]) -> None:
        for key, _, ticket in (name.partition("#") for name in names):
            for request in self.referee.lock(key).queue:
                assert request.tickets[key] != int(ticket) or request.process in self.referee.alive

    @rule()
    def upkeep(self) -> None:
        """What all processes do several times a second; then nothing is left that should have happened."""
        self.commit()
        self.size = 1
        for request in list({each: None for lock in self.referee.locks.values() for each in lock.queue}):
            if request.deadline <= self.referee.now and request.process in self.referee.alive:
                self._withdraw(request, keep=True)
        for (address,) in self.memory.look(OVERDUE):
            self._expire(self.referee.sessions[address.partition("/")[2]])
        for statement, act in (
            (upkeep.ORPHANS, self._bury),
            (upkeep.CONTENDED, self._sweep),
            (upkeep.FORGOTTEN, self._sweep),
        ):
            if found := sorted(address.partition("/")[2] for (address,) in self.memory.look(statement)):
                act(found)
        self.break_deadlocks()
        self.nothing_is_left()

    def break_deadlocks(self) -> None:
        look = deadlocks.PICTURE.format("$1", "$2"), *deadlocks.between("n")
        while found := list(waits.cycles(deadlocks.picture(self.memory.look(*look)).values())):
            for cycle in found:
                youngest = max(cycle, key=lambda claim: (claim.since, claim.ticket))
                self._break(youngest.lock.key, youngest.ticket)

    def _break(self, key: str, ticket: int) -> None:
        request = next(each for each in self.referee.lock(key).queue if each.tickets[key] == ticket)

        def judge(job: Job) -> Callable[[], None]:
            assert job.value is True
            assert request.session
            assert request.session.name in self.referee.stuck()
            return lambda: self.waits_no_more(request)

        self.add("locks.break_deadlock", {"name": f"{key}#{ticket:015d}"}, judge, target=request)

    def nothing_is_left(self) -> None:
        self.referee.nothing_is_due((*KEYS, ELECTION))
        assert not self.referee.stuck(), "somebody waits for ever"
        assert not self.memory.look(OVERDUE)
        assert not self.memory.look(upkeep.ORPHANS)

    # -- what happens to everybody -------------------------------------------------------------------

    @rule(size=st.integers(1, 4))
    def together(self, size: int) -> None:
        self.commit()
        self.size = size

    @rule(count=st.integers(1, 10))
    def time_passes(self, count: int) -> None:
        self.commit()
        self.memory.now = self.referee.now = self.memory.now + seconds(count)

    @rule(slot=st.integers(0, SLOTS - 1))
    def process_dies(self, slot: int) -> None:
        self.commit()
        self.bury_process(slot)

    def bury_process(self, slot: int) -> None:
        name = self.processes[slot]
        self.memory.rows(Process)[name]["expires_at"] = self.memory.now
        self.referee.alive.discard(name)
        self.begin_process(slot)

    @rule()
    def crash(self) -> None:
        """In the middle of a batch: nobody hears of what was decided, and nothing of it is there."""
        steps, self.batch = self.batch, []
        if steps:
            self.memory.run([step[0] for step in steps], self.process, commits=False)
            self.bury_process(self.batches % SLOTS)
            self.batches += 1
            self.rows_agree()

    @rule()
    def lost_race(self) -> None:
        """A batch that lost a race is decided again, from the beginning."""
        if self.batch:
            self.memory.run([step[0] for step in self.batch], self.process, commits=False)
        self.commit()

    @rule()
    def epoch_rises(self) -> None:
        self.commit()
        self.memory.epoch = self.referee.epoch = self.memory.epoch + 1

    @rule(key=st.sampled_from((*KEYS, ELECTION)))
    def idle_lock_is_pruned(self, key: str) -> None:
        """Its row goes, and the floor rises to its last token."""
        self.commit()
        lock, row = self.referee.lock(key), self.memory.rows(Lock).get(f"n/{key}")
        if row is None or not lock.is_idle or (lock.not_before and lock.not_before > self.memory.now):
            return
        del self.memory.rows(Lock)[f"n/{key}"], self.referee.locks[key]
        self.memory.floor = self.referee.floor = max(self.memory.floor, lock.last_token)

    def teardown(self) -> None:
        if self.is_sound:
            self.upkeep()


def named(key: str) -> dict[str, str]:
    return {"name": "e"} if key == ELECTION else {"key": key}


QUIET = settings(
    derandomize=True,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def short_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues are longer than what is loaded of them at first."""
    monkeypatch.setattr(batch, "HEAD", 2)


def run(examples: int, machine: type[LockMachine] = LockMachine, **more: Any) -> None:
    run_state_machine_as_test(machine, settings=settings(QUIET, max_examples=examples, **more))


def test_operations_do_what_locks_promise() -> None:
    run(200, stateful_step_count=50)


@pytest.mark.long
def test_operations_do_what_locks_promise_for_60_000_steps() -> None:
    run(1200, stateful_step_count=50)


# -- histories that once went wrong ------------------------------------------------------------------

ONE, HALF, SHARED = ("exclusive", 1, None), ("exclusive", 1, 2), ("shared", 1, None)


def test_permits_that_run_out_while_another_lock_is_passed_on_go_to_the_first_waiter() -> None:
    machine = LockMachine()
    machine.acquire("b", HALF, ttl=5, wait=0, session=-1)
    machine.acquire("b", HALF, ttl=15, wait=0, session=-1)
    machine.acquire("a", ONE, ttl=15, wait=0, session=-1)
    machine.acquire("b", ONE, ttl=15, wait=40, session=-1)
    machine.acquire_many(["a", "b"], ONE, ttl=10, wait=40, session=-1)
    machine.time_passes(count=6)
    machine._release("locks.release", ("a", machine.requests[2]))
    assert machine.referee.hold_of("b", machine.requests[3])


def test_room_that_a_late_waiter_leaves_while_another_lock_is_passed_on_goes_to_the_next() -> None:
    machine = LockMachine()
    machine.acquire("b", HALF, ttl=15, wait=0, session=-1)
    machine.acquire("a", ONE, ttl=15, wait=0, session=-1)
    machine.acquire("b", ("exclusive", 2, None), ttl=15, wait=3, session=-1)
    machine.acquire("b", ONE, ttl=15, wait=40, session=-1)
    machine.acquire_many(["a", "b"], ONE, ttl=10, wait=40, session=-1)
    machine.time_passes(count=4)
    machine._release("locks.release", ("a", machine.requests[1]))
    assert machine.referee.hold_of("b", machine.requests[3])


def test_lock_delay_of_one_of_several_holders_ends() -> None:
    machine = LockMachine()
    machine.open_session(ttl=2, delay=3.0)
    machine.acquire("b", HALF, ttl=5, wait=0, session=0)
    machine.acquire("b", HALF, ttl=15, wait=0, session=-1)
    machine.acquire("b", ONE, ttl=15, wait=40, session=-1)
    machine.time_passes(count=3)
    machine.expire(choice=0)
    machine.time_passes(count=4)
    machine.upkeep()
    assert machine.referee.hold_of("b", machine.requests[2])


def test_deadlock_behind_a_request_for_several_locks_is_refused() -> None:
    machine = LockMachine()
    machine.open_session(ttl=20, delay=0.0)
    machine.acquire("b", ONE, ttl=5, wait=0, session=0)
    machine.acquire("a", ONE, ttl=15, wait=0, session=-1)
    machine.acquire_many(["a", "b"], SHARED, ttl=10, wait=40, session=-1)
    machine.acquire("a", SHARED, ttl=15, wait=40, session=0)
    assert len(machine.requests) == 3


def test_hold_that_two_commands_of_a_batch_look_for_at_once_ends_once() -> None:
    """One wants all holders, the other the first few, to say who they are."""
    machine = LockMachine()
    machine.acquire("a", SHARED, ttl=1, wait=0, session=-1)
    machine.together(size=2)
    machine.force_release(delay=0.0, key="a")
    machine.acquire("a", ONE, ttl=1, wait=0, session=-1)
    assert machine.referee.hold_of("a", machine.requests[1])


def test_waiter_with_a_key_may_come_and_go_in_one_batch() -> None:
    machine = LockMachine()
    machine.open_session(ttl=20, delay=0.0)
    machine.acquire("a", ONE, ttl=15, wait=0, session=-1)
    machine.together(size=2)
    machine.acquire("a", ONE, ttl=15, wait=40, session=0)
    machine.batch[0][0].answer_id = "n/kept"
    machine.close(choice=0)
    assert not machine.referee.lock("a").queue


def test_candidate_that_stands_again_after_its_process_died_is_transferred_to() -> None:
    memory = Memory()
    for name, lasts in (("dead", 3), ("alive", 1000)):
        memory.rows(Process)[name] = {
            "id": name, "host": "h", "pid": 1, "started_at": START, "beat_at": START,
            "expires_at": START + seconds(lasts),
        }  # fmt: skip

    def campaign(candidate: str, process: str) -> Job:
        found = job(
            "elections.campaign", name="e", candidate=candidate, ttl_seconds=900.0, wait_seconds=100.0
        )
        memory.run([found], process)
        return found

    led = campaign("n1", "alive")
    campaign("n2", "dead")
    memory.now += seconds(4)
    campaign("n2", "alive")
    moved = job("elections.transfer", name="e", lock_id=led.value.lock_id, to="n2")
    memory.run([moved], "alive")
    assert (moved.error, moved.value.leader) == (None, "n2")


# -- operations that are broken, to see that they are found out --------------------------------------

true_token, true_fits, true_held = rules.next_token, rules.fits, holds.held
true_withdraw, true_acquire = rules.withdraw, holds.acquire.function


def token_repeats(lock: Lock, epoch: int, floor: int) -> int:
    return lock.last_token or true_token(lock, epoch, floor)


def epoch_is_ignored(lock: Lock, epoch: int, floor: int) -> int:
    return true_token(lock, 1, floor)


def floor_is_ignored(lock: Lock, epoch: int, floor: int) -> int:
    return true_token(lock, epoch, 0)


def queue_is_last_in_first_out(tx: Any, lock: Lock, todo: list[Lock]) -> Claim | None:
    claims = [claim for claim in tx.queue(Claim, lock, whole=True) if queues.why_gone(tx, claim) is None]
    return claims[-1] if claims else None


def anybody_releases(tx: Any, key: str, lock_id: str) -> Any:
    lock = tx.get(Lock, key)
    found = queues.all_holds(tx, lock) if lock else []
    return (lock, found[0]) if found else true_held(tx, key, lock_id)


def renew_revives(tx: Any, key: str, lock_id: str) -> Any:
    lock = tx.get(Lock, key)
    hold = holds.hold_of(tx, lock, lock_id) if lock else None
    return (lock, hold) if hold else true_held(tx, key, lock_id)


def shared_fits_beside_exclusive(lock: Lock, claim: Claim, now: Any) -> bool:
    if claim.mode == "shared":
        return lock.lock_id is None and not rules.is_delayed(lock, now)
    return true_fits(lock, claim, now)


def capacity_is_one_more(lock: Lock, claim: Claim, now: Any) -> bool:
    is_more = lock.lock_id is None and lock.shared == 0 and claim.mode == "exclusive" and lock.used > 0
    return true_fits(lock, claim, now) or (is_more and lock.used + claim.permits == lock.capacity + 1)


def half_of_a_request_is_granted(tx: Any, claim: Claim) -> Any:
    return [(queues.lock_of(tx, claim.id), claim)]


def session_is_revived(tx: Any, session_id: str) -> Any:
    return tx.get(StoredSession, session_id)


def try_overtakes(tx: Any, *, key: str, **params: Any) -> Any:
    lock = tx.get(Lock, key)
    if params["wait_seconds"] or lock is None:
        return true_acquire(tx, key=key, **params)
    waiting, lock.queued = lock.queued, 0
    found = true_acquire(tx, key=key, **params)
    lock.queued += waiting
    return found


def withdrawn_is_not_counted(lock: Lock, *about: Any, **more: Any) -> Any:
    fact = true_withdraw(lock, *about, **more)
    lock.queued += 1
    return fact


def nothing(*_: Any, **__: Any) -> None:
    """It does not happen at all."""


def never(*_: Any, **__: Any) -> bool:
    return False


BROKEN: dict[str, tuple[Any, str, Any]] = {
    "token repeats": (rules, "next_token", token_repeats),
    "epoch is ignored": (rules, "next_token", epoch_is_ignored),
    "floor is ignored": (rules, "next_token", floor_is_ignored),
    "queue is last in, first out": (queues, "first", queue_is_last_in_first_out),
    "expiry is ignored": (queues, "expire", never),
    "anybody releases": (holds, "held", anybody_releases),
    "renew revives an expired hold": (holds, "held", renew_revives),
    "shared beside exclusive": (rules, "fits", shared_fits_beside_exclusive),
    "capacity is one more": (rules, "fits", capacity_is_one_more),
    "half of a request is granted": (queues, "party_of", half_of_a_request_is_granted),
    "session is revived": (core.sessions, "live", session_is_revived),
    "lock of a session is left over": (queues, "take_back", nothing),
    "lock-delay is ignored": (rules, "is_delayed", never),
    "dead process is served": (queues, "is_orphan", never),
    "queue is overtaken by a try": (holds.acquire, "function", try_overtakes),
    "candidate that is gone leads": (elections, "why_gone", nothing),
    "withdrawn is not counted": (rules, "withdraw", withdrawn_is_not_counted),
    "endings are forgotten": (rules, "remember", nothing),
    "end of one of several is not minded": (rules, "mind", nothing),
    "deadlock is not refused": (holds, "refuse_deadlock", nothing),
    "lock is not passed on": (holds, "pass_on", nothing),
    "refused command leaves its traces": (batch.Transaction, "undo", nothing),
    "batch that runs again is not reset": (batch.Batch, "_reset", nothing),
}


RARE = {
    "candidate that is gone leads": (
        "campaign",
        "transfer",
        "open_session",
        "close",
        "time_passes",
        "together",
    ),
}


def with_no_other_rule(names: tuple[str, ...]) -> type[LockMachine]:
    """What takes a long story to happen by chance happens soon where nothing else can."""
    found = {name: each for name, each in vars(LockMachine).items() if hasattr(each, RULE_MARKER)}
    others = {name: no_rule(each) for name, each in found.items() if name not in names}
    return type("Focused", (LockMachine,), others)


def no_rule(method: Any) -> Any:
    return lambda *given, **named: method(*given, **named)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_operation_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*BROKEN[name])
    monkeypatch.setattr(batch.logger, "exception", nothing)
    machine = with_no_other_rule(RARE[name]) if name in RARE else LockMachine
    with pytest.raises(AssertionError):
        run(1500, machine, stateful_step_count=50, phases=[Phase.generate])
