"""Group commit: many commands to a transaction, and each as if it were alone."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from core.batch import Job, Order, Transaction
from core.callers import DEVELOPER, Call, namespaces
from core.database import conninfo
from core.engine import Engine
from core.errors import Conflict, Internal, SyrosError, Unavailable
from core.log import Entry
from core.models import Answer, Cluster, Process, Stream
from core.operations import Operation
from core.runtime import runtime
from tests.doors import Lane, Served
from tests.test_locks import until


def command(function: Callable[..., Any], **options: Any) -> Operation:
    """An operation that no transport knows."""
    return Operation(function, None, kind="command", **options)


def append(tx: Transaction, *, stream: str, data: str = "{}") -> Any:
    """Append an event of one's own making to a stream."""
    entry = tx.emit(tx.stream(stream), "t", data)
    return lambda: entry.position


def append_then_refuse(tx: Transaction, *, stream: str) -> None:
    append(tx, stream=stream)
    raise Conflict("No.")


def append_then_break(tx: Transaction, *, stream: str) -> None:
    append(tx, stream=stream)
    raise ZeroDivisionError


def refuse_and_record(tx: Transaction, *, stream: str) -> None:
    append(tx, stream=stream)
    refusal = Conflict("No.")
    refusal.aftermath = lambda tx: append(tx, stream="$record")
    raise refusal


APPEND, REFUSE, BREAK, RECORD = map(
    command, (append, append_then_refuse, append_then_break, refuse_and_record)
)
PATIENT = command(append, patience=0.5)
VERY_PATIENT = command(append, patience=60.0)  # longer than carry_out waits


class Alone:
    """An engine by itself; what it delivers is kept."""

    def __init__(self, namespace: Any, **options: Any) -> None:
        self.namespace = namespace
        self.engine = Engine(self.deliver, lambda jobs: None, **options)
        self.delivered: list[list[Job]] = []
        self.entries: list[Entry] = []
        self.done = threading.Event()
        self.expected = 0

    def deliver(self, jobs: list[Job], entries: list[Entry], orders: list[Order]) -> None:
        self.delivered.append(jobs)
        self.entries += entries
        if sum(map(len, self.delivered)) >= self.expected:
            self.done.set()

    def job(self, operation: Operation, **params: Any) -> Job:
        return Job(operation, params, Call(DEVELOPER, self.namespace))

    def carry_out(self, jobs: list[Job]) -> list[Job]:
        """Queue the jobs and wait for all of them."""
        self.expected = sum(map(len, self.delivered)) + len(jobs)
        self.done.clear()
        for job in jobs:
            self.engine.submit(job)
        if not self.engine.is_alive:
            self.engine.start()
        assert self.done.wait(20)
        return jobs


@pytest.fixture
def alone(served: Served, namespace: str) -> Iterator[Alone]:
    found = Alone(served.do(namespaces.get(namespace)))
    yield found
    found.engine.stop()


def connect() -> psycopg.Connection[Any]:
    return psycopg.connect(conninfo(), autocommit=True)


def versions(alone: Alone, stream: str) -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute(
            "select version from core_event where namespace_id = %s and stream = %s order by id",
            [alone.namespace.number, stream],
        )
        return [row[0] for row in cursor.fetchall()]


# -- a batch -----------------------------------------------------------------------------------------


def test_what_queues_is_committed_together(alone: Alone) -> None:
    jobs = alone.carry_out([alone.job(APPEND, stream=f"s-{n % 3}") for n in range(30)])
    assert [len(batch) for batch in alone.delivered] == [30]
    assert [job.value for job in jobs] == list(range(1, 31))
    assert len({entry.recorded_at for entry in alone.entries}) == 1


def test_a_batch_has_no_more_than_512_commands_and_4_mib(alone: Alone) -> None:
    jobs = [alone.job(APPEND, stream="s") for _ in range(600)]
    alone.carry_out(jobs)
    assert [len(batch) for batch in alone.delivered] == [512, 88]
    large = [alone.job(APPEND, stream="s") for _ in range(6)]
    for job in large:
        job.call.size = 1 << 20
    alone.delivered.clear()
    alone.engine.stop()
    again = Alone(alone.namespace)
    again.carry_out(large)
    again.engine.stop()
    assert [len(batch) for batch in again.delivered] == [4, 2]


def test_patient_commands_share_a_transaction_though_they_come_one_by_one(alone: Alone) -> None:
    alone.carry_out([alone.job(APPEND, stream="s")])
    alone.expected = 4
    alone.done.clear()
    for n in range(3):
        alone.engine.submit(alone.job(VERY_PATIENT if n else PATIENT, stream="s"))
        time.sleep(0.02)
    assert alone.done.wait(20)
    assert [len(batch) for batch in alone.delivered] == [1, 3]


def test_who_is_in_a_hurry_does_not_wait_for_patient_commands(alone: Alone) -> None:
    for _ in range(2):
        alone.carry_out([alone.job(VERY_PATIENT, stream="s"), alone.job(APPEND, stream="s")])


def test_a_command_that_refuses_leaves_nothing_and_fails_alone(alone: Alone) -> None:
    kinds = [APPEND, REFUSE, APPEND, BREAK, APPEND]
    jobs = alone.carry_out([alone.job(kind, stream="s") for kind in kinds])
    assert len(alone.delivered) == 1
    assert [type(job.error) for job in jobs] == [type(None), Conflict, type(None), Internal, type(None)]
    assert versions(alone, "s") == [1, 2, 3]
    assert [entry.position for entry in alone.entries] == [1, 2, 3]


def test_what_a_refusal_records_stays(alone: Alone) -> None:
    (job,) = alone.carry_out([alone.job(RECORD, stream="s")])
    assert isinstance(job.error, Conflict)
    assert (versions(alone, "s"), versions(alone, "$record")) == ([], [1])
    assert not Stream.objects.filter(id=f"{alone.namespace.name}/s").exists()


def test_a_command_that_breaks_the_transaction_fails_alone(alone: Alone) -> None:
    """Its event is no JSON: the database refuses the whole batch, and the engine finds out who it was."""
    jobs = [alone.job(APPEND, stream="s", data="no json" if n == 5 else "{}") for n in range(16)]
    alone.carry_out(jobs)
    assert [n for n, job in enumerate(jobs) if job.error] == [5]
    assert isinstance(jobs[5].error, Internal)
    assert versions(alone, "s") == list(range(1, 16))
    assert sorted(job.value for job in jobs if not job.error) == list(range(1, 16))


def test_a_command_may_look_at_what_it_did_not_announce(alone: Alone) -> None:
    seen: list[int] = []

    def look(tx: Transaction, *, stream: str) -> int:
        seen.append(1)
        found = tx.get(Stream, stream)
        return found.version if found else 0

    jobs = [alone.job(APPEND, stream="s"), alone.job(command(look), stream="s")]
    assert [job.value for job in alone.carry_out(jobs)] == [1, 1]
    assert len(seen) > 1  # it ran again when the stream had been loaded


def test_two_commands_with_one_key_in_one_batch_have_one_effect(alone: Alone) -> None:
    jobs = [alone.job(APPEND, stream="s") for _ in range(3)]
    for job in jobs:
        job.answer_id, job.fingerprint = f"{alone.namespace.name}/key", "same"
    alone.carry_out(jobs)
    assert [job.value for job in jobs] == [1, 1, 1]
    assert [job.replayed for job in jobs] == [False, True, True]
    assert versions(alone, "s") == [1]


# -- several engines ---------------------------------------------------------------------------------


def test_who_makes_a_row_second_sees_the_first_one_s(alone: Alone) -> None:
    """Both find no row; the second to insert it breaks on the key, and its batch runs again."""
    other = Alone(alone.namespace)
    engines, jobs = (alone, other), [alone.job(APPEND, stream="new"), other.job(APPEND, stream="new")]
    for each in engines:
        each.carry_out([each.job(APPEND, stream="connected")])
    try:
        with connect() as blocker:
            blocker.execute("select pg_advisory_lock(7305, %s)", [alone.namespace.number])  # the log's head
            threads = [
                threading.Thread(target=each.carry_out, args=([job],))
                for each, job in zip(engines, jobs, strict=True)
            ]
            for thread in threads:
                thread.start()
            waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
            with connect() as onlooker:
                until(lambda: onlooker.execute(waiting).fetchone() == (2,))
        for thread in threads:
            thread.join()
    finally:
        other.engine.stop()
    assert [job.error for job in jobs] == [None, None]
    assert versions(alone, "new") == [1, 2]


def test_two_engines_race_for_rows_that_are_not_there_yet(alone: Alone) -> None:
    other = Alone(alone.namespace)
    try:
        for turn in range(25):
            jobs = [[each.job(APPEND, stream=f"new-{turn}") for _ in range(4)] for each in (alone, other)]
            threads = [
                threading.Thread(target=each.carry_out, args=(mine,))
                for each, mine in zip((alone, other), jobs, strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [job.error for mine in jobs for job in mine] == [None] * 8
            assert versions(alone, f"new-{turn}") == list(range(1, 9))
    finally:
        other.engine.stop()
    positions = sorted(entry.position for entry in alone.entries + other.entries)
    assert positions == list(range(1, 25 * 8 + 1))


def test_times_do_not_run_backwards(alone: Alone) -> None:
    for _ in range(5):
        alone.carry_out([alone.job(APPEND, stream="s") for _ in range(3)])
    times = [entry.recorded_at for entry in alone.entries]
    assert times == sorted(times)
    assert len(set(times)) == 5


# -- when it is too much, and when it is over --------------------------------------------------------


def test_a_full_queue_refuses(alone: Alone) -> None:
    small = Alone(alone.namespace, limit=2)
    for _ in range(2):
        small.engine.submit(small.job(APPEND, stream="s"))
    with pytest.raises(Unavailable) as refused:
        small.engine.submit(small.job(APPEND, stream="s"))
    assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
    small.expected = 2
    small.engine.start()
    assert small.done.wait(10)
    small.engine.stop()
    assert versions(alone, "s") == [1, 2]


def test_what_is_queued_is_finished_before_the_end(alone: Alone) -> None:
    alone.expected = 700
    for _ in range(700):
        alone.engine.submit(alone.job(APPEND, stream="s"))
    alone.engine.start()
    alone.engine.stop()
    assert versions(alone, "s") == list(range(1, 701))
    with pytest.raises(Unavailable):
        alone.engine.submit(alone.job(APPEND, stream="s"))
    assert Process.objects.get(id=alone.engine.process_id).expires_at < timezone.now()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_replaced_and_its_callers_are_told(alone: Alone) -> None:
    def die(tx: Transaction) -> None:
        raise SystemExit

    (killer,) = alone.carry_out([alone.job(command(die))])
    assert isinstance(killer.error, Unavailable)
    deadline = time.monotonic() + 5
    while alone.engine.is_alive:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    alone.engine.submit(alone.job(APPEND, stream="s"))
    alone.expected, _ = 2, alone.done.clear()
    alone.engine.revive()
    assert alone.done.wait(10)
    assert versions(alone, "s") == [1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_runtime_replaces_a_dead_thread(served: Served, lane: Lane) -> None:
    def die(tx: Transaction) -> None:
        raise SystemExit

    call = Call(DEVELOPER, served.do(namespaces.get(lane.namespace)))
    with pytest.raises(SyrosError):
        served.do(runtime.carry_out(command(die), call, {}))
    assert lane("events.append", stream_id="s", event_type="t", data={})["version"] == 1


# -- the epoch ---------------------------------------------------------------------------------------


def test_another_timeline_raises_the_epoch_and_the_tokens(lane: Lane, alone: Alone) -> None:
    before = lane("locks.acquire", key="a", owner="alice")
    epoch = Cluster.objects.get().epoch
    Cluster.objects.update(timeline=4711)  # as if the log of this database had been another one
    alone.carry_out([alone.job(APPEND, stream="s")])  # this engine connects
    cluster = Cluster.objects.get()
    assert cluster.epoch == epoch + 1
    assert cluster.timeline not in {None, 4711}
    lane("locks.release", key="a", lock_id=before["lock_id"])
    after = lane("locks.acquire", key="a", owner="alice")
    assert after["fencing_token"] == (epoch + 1 << 40) + 1 > before["fencing_token"]
    call_command("raise_epoch", verbosity=0)
    assert lane("locks.acquire", key="b", owner="alice")["fencing_token"] == (epoch + 2 << 40) + 1


# -- housekeeping ------------------------------------------------------------------------------------


def test_answers_are_kept_for_72_hours(served: Served, lane: Lane) -> None:
    from core import housekeeping

    for key in ("old", "new"):
        lane("events.append", stream_id="s", event_type="t", data={}, _={"key": key})
    mine = Answer.objects.filter(id__startswith=f"{lane.namespace}/").order_by("created_at")
    old = mine[0]
    with connection.cursor() as cursor:
        cursor.execute(
            "update core_answer set created_at = created_at - interval '72 hours 1 second' where id = %s",
            [old.id],
        )
    served.do(housekeeping.forget_answers())
    assert [answer.id for answer in mine] != [old.id]
    assert mine.count() == 1
    assert not lane("events.append", stream_id="s", event_type="t", data={}, _={"key": "old"}).replayed
    assert lane("events.append", stream_id="s", event_type="t", data={}, _={"key": "new"}).replayed


def test_processes_long_gone_are_forgotten(served: Served, alone: Alone) -> None:
    from core import housekeeping

    alone.carry_out([alone.job(APPEND, stream="s")])
    alone.engine.stop()
    with connection.cursor() as cursor:
        cursor.execute(
            "update core_process set expires_at = expires_at - interval '2 hours' where id = %s",
            [alone.engine.process_id],
        )
    served.do(housekeeping.forget_processes())
    found = set(Process.objects.values_list("id", flat=True))
    assert alone.engine.process_id not in found
    assert runtime.engine
    assert runtime.engine.process_id in found


def test_a_cancelled_caller_changes_nothing_for_the_others(served: Served, lane: Lane) -> None:
    call = Call(DEVELOPER, served.do(namespaces.get(lane.namespace)))

    async def some_go_away() -> list[Any]:
        tasks = [asyncio.ensure_future(runtime.carry_out(APPEND, call, {"stream": "s"})) for _ in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = served.do(some_go_away())
    assert all(isinstance(each, asyncio.CancelledError) for each in answers[::2])
    kept = [each.value for each in answers[1::2]]
    assert kept == sorted(kept)
    assert len(set(kept)) == 10
