"""The barrier in a participant's own database: each call has its effect once, and none after its compensation."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from syros.barrier import Hanging, install, once
from tests.servers import WORKER, database

NEW = "create table account (balance integer not null)"


def headers(op: str = "action", step: str = "pay", saga: str = "s1") -> dict[str, str]:
    return {"Syros-Saga-Id": saga, "Syros-Step": step, "Syros-Op": op}


class Participant:
    """Whoever pays: 10 each time."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self.connect = connect
        with self.connect() as connection:
            cursor = connection.cursor()
            install(cursor)
            install(cursor)  # once more does no harm
            cursor.execute(NEW)
            cursor.execute("insert into account (balance) values (0)")
            connection.commit()

    @property
    def balance(self) -> int:
        return int(self.rows("select balance from account")[0][0])

    def rows(self, query: str) -> list[Any]:
        with self.connect() as connection:
            return list(connection.cursor().execute(query).fetchall())

    def call(self, op: str = "action", answer: Any = None, fails: bool = False, **about: str) -> Any:
        """One request: in a transaction that is rolled back when it raises."""
        with self.connect() as connection:
            cursor = connection.cursor()

            def work() -> Any:
                amount = 10 if op == "action" else -10
                cursor.execute(f"update account set balance = balance + {amount}")
                if fails:
                    raise RuntimeError("out of order")
                return answer

            try:
                found = once(cursor, headers(op, **about), work)
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
            return found


class Closing:
    """A connection to SQLite that is closed when it is left."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> sqlite3.Connection:
        self.connection = sqlite3.connect(self.path, timeout=20)
        return self.connection

    def __exit__(self, *_: Any) -> None:
        self.connection.close()


@pytest.fixture(scope="module")
def postgres() -> str:
    return database(f"syros_barrier_{WORKER}")


@pytest.fixture(params=["sqlite", "postgres"])
def participant(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Participant]:
    if request.param == "sqlite":
        yield Participant(lambda: Closing(tmp_path / "db"))
        return
    url = request.getfixturevalue("postgres")
    with psycopg.connect(url) as connection:
        connection.execute("drop table if exists account, syros_barrier")
    yield Participant(lambda: psycopg.connect(url))


def test_action_and_its_compensation(participant: Participant) -> None:
    assert participant.call(answer={"id": 7}) == {"id": 7}
    assert participant.balance == 10
    assert participant.call("compensate", answer="back") == "back"
    assert participant.balance == 0


def test_steps_and_sagas_are_none_of_each_others_business(participant: Participant) -> None:
    participant.call()
    participant.call(step="ship")
    participant.call(saga="s2")
    assert participant.balance == 30


@pytest.mark.parametrize("answer", [None, 0, False, "", [], {"a": [1, None, "ä"]}])
def test_call_that_comes_again_gets_the_answer_of_the_first_time(
    participant: Participant, answer: Any
) -> None:
    assert [participant.call(answer=each) for each in (answer, "another", "another")] == [answer] * 3
    assert participant.balance == 10


def test_compensation_that_comes_again_gets_its_answer_too(participant: Participant) -> None:
    participant.call()
    assert [participant.call("compensate", answer=each) for each in ("back", "another")] == ["back", "back"]
    assert participant.balance == 0


def test_action_that_comes_again_after_its_compensation_gets_its_answer(participant: Participant) -> None:
    participant.call(answer=1)
    participant.call("compensate")
    assert participant.call(answer=2) == 1
    assert participant.balance == 0


def test_compensation_of_an_action_that_never_came_does_nothing(participant: Participant) -> None:
    assert [participant.call("compensate", answer="back") for _ in range(2)] == [None, None]
    assert participant.balance == 0


def test_action_that_comes_after_its_compensation_is_refused(participant: Participant) -> None:
    participant.call("compensate")
    for _ in range(2):
        with pytest.raises(Hanging, match="pay of saga s1 was compensated already"):
            participant.call()
    assert participant.balance == 0
    assert participant.call("compensate", answer="back") is None


@pytest.mark.parametrize("op", ["action", "compensate"])
def test_failure_leaves_no_trace(participant: Participant, op: str) -> None:
    if op == "compensate":
        participant.call()
    before = participant.rows("select * from syros_barrier")
    with pytest.raises(RuntimeError, match="out of order"):
        participant.call(op, fails=True)
    assert participant.rows("select * from syros_barrier") == before
    assert participant.call(op, answer="done") == "done"
    assert participant.balance == (10 if op == "action" else 0)


def test_answer_that_is_no_json_leaves_no_trace(participant: Participant) -> None:
    with pytest.raises(TypeError):
        participant.call(answer=object())
    assert participant.balance == 0


@pytest.mark.parametrize("name", ["Syros-Saga-Id", "Syros-Step", "Syros-Op"])
def test_request_that_is_from_no_saga_is_refused(participant: Participant, name: str) -> None:
    found = {key: value for key, value in headers().items() if key != name}
    with participant.connect() as connection, pytest.raises(KeyError, match=name):
        once(connection.cursor(), found, lambda: 1)


def test_headers_may_be_in_small_letters(participant: Participant) -> None:
    found = {name.lower(): value for name, value in headers().items()}
    with participant.connect() as connection:
        assert once(connection.cursor(), found, lambda: 1) == 1


def test_of_two_at_once_one_does_the_work(participant: Participant) -> None:
    start = threading.Barrier(2)

    def call(number: int) -> Any:
        start.wait(10)
        return participant.call(answer=number)

    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(call, range(2)))
    assert answers[0] == answers[1]
    assert participant.balance == 10


def test_compensation_waits_for_an_action_that_is_not_committed(participant: Participant) -> None:
    with ThreadPoolExecutor(1) as threads, participant.connect() as connection:
        cursor = connection.cursor()
        once(cursor, headers(), lambda: cursor.execute("update account set balance = balance + 10") and None)
        later = threads.submit(participant.call, "compensate", "back")
        with pytest.raises(TimeoutError):
            later.result(0.1)
        connection.commit()
        assert later.result(10) == "back"
    assert participant.balance == 0


def test_action_that_is_rolled_back_meanwhile_is_refused_after_its_compensation(
    participant: Participant,
) -> None:
    with ThreadPoolExecutor(1) as threads, participant.connect() as connection:
        once(connection.cursor(), headers(), lambda: None)
        later = threads.submit(participant.call, "compensate", "back")
        with pytest.raises(TimeoutError):
            later.result(0.1)
        connection.rollback()
        assert later.result(10) is None
    with pytest.raises(Hanging):
        participant.call()
    assert participant.balance == 0
