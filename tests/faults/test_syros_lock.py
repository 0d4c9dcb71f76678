"""`syros lock`: what it runs is over before anybody else can have the lock, whoever is killed, frozen or away.

Every program notes the instants at which it is alive, a waiter when it was granted the lock: they must not overlap.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.house import Couple
from tests.races.processes import ROOT, Syros, until

SYROS = [sys.executable, "-c", "from syros.cli.app import app; app()"]
# Notes its pid and the instants at which it is alive. Parameters: the file; what it is like.
ALIVE = """
import os, signal, sys, time
file, *nature = sys.argv[1:]
if "stubborn" in nature:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "polite" in nature:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if "parent" in nature:
    os.fork()
if "leaves" in nature and os.fork() > 0:
    time.sleep(0.2)
    os._exit(5)
out = os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
while True:
    os.write(out, f"{os.getpid()} {time.monotonic()}\\n".encode())
    time.sleep(0.01)
"""
KEY = "jobs/nightly"


class Program:
    """A program under `syros lock`, and what it noted."""

    def __init__(self, folder: Path, url: str, namespace: str) -> None:
        self._file = folder / "alive"
        self._environment = {
            **os.environ, "PYTHONPATH": str(ROOT / "sdks/python"), "SYROS_URL": url, "SYROS_NAMESPACE": namespace,
            "SYROS_CONFIG": os.devnull,
        }  # fmt: skip
        self.process: subprocess.Popen[str] | None = None

    def start(self, *options: str, command: list[str] | None = None, nature: str = "") -> "Program":
        program = command or [sys.executable, "-c", ALIVE, str(self._file), *nature.split()]
        self.process = subprocess.Popen(
            [*SYROS, "lock", KEY, *options, "--", *program],
            env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self

    def alive(self, count: int = 1) -> "Program":
        """Wait until this many processes of it are alive."""
        until(lambda: len({pid for pid, _ in self.notes()}) >= count, what=f"{count} processes alive")
        return self

    def notes(self) -> list[tuple[int, float]]:
        if not self._file.exists():
            return []
        lines = self._file.read_text().splitlines(keepends=True)
        return [(int(line.split()[0]), float(line.split()[1])) for line in lines if line.endswith("\n")]

    @property
    def last(self) -> float:
        return self.notes()[-1][1]

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    @property
    def guardian(self) -> int:
        command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(self.pid)]

        def found() -> list[int]:
            lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
            return [int(line.split()[0]) for line in lines if "guardian.py" in line]

        (pid,) = until(found, what="a guardian")
        return int(pid)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def end(self, seconds: float = 30.0) -> tuple[int, str, str]:
        """Its exit code, and what it said."""
        assert self.process
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err

    def is_gone(self) -> bool:
        """Has each of its processes ended? Zombies that nobody has reaped count as ended."""
        return not any(runs(pid) for pid in {pid for pid, _ in self.notes()})

    def clean(self) -> None:
        for pid in {self.pid, *(pid for pid, _ in self.notes())}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
        assert self.process
        self.process.communicate()


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def program(couple: Couple, tmp_path: Path) -> Iterator[Program]:
    """A program whose wrapper talks to process a."""
    found = Program(tmp_path, f"http://127.0.0.1:{couple.a.port}", couple.namespace)
    yield found
    found.clean()


def ask(process: Syros, couple: Couple, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    url = f"http://127.0.0.1:{process.port}/api/v1/{path}"
    return httpx.request(
        method, url, json=body, headers={"Syros-Namespace": couple.namespace}, timeout=60
    ).json()


def state(couple: Couple) -> Any:
    return ask(couple.b, couple, "GET", f"locks/{KEY}")


class Next:
    """Somebody who waits for the lock at process b; `granted_at` is when it was had."""

    def __init__(self, couple: Couple) -> None:
        self.granted_at = 0.0
        self._couple = couple
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()
        until(lambda: state(couple)["queue_length"], what="queued")

    def _wait(self) -> None:
        body = {"key": KEY, "owner": "next", "wait_seconds": 60}
        self.grant = ask(self._couple.b, self._couple, "POST", "locks", body)
        self.granted_at = time.monotonic()

    def granted(self) -> float:
        self._thread.join(60)
        assert "lock_id" in self.grant, self.grant
        return self.granted_at


# -- while all is well -------------------------------------------------------------------------------


def test_a_program_finds_its_lock_and_its_exit_code_is_passed_on(couple: Couple, program: Program) -> None:
    script = f"""
        echo "$SYROS_LOCK_KEY $SYROS_FENCING_TOKEN $SYROS_LOCK_ID"
        {sys.executable} -c 'from syros.cli.app import app; app()' locks get {KEY} --json
        exit 7"""
    code, out, err = program.start("--owner", "me", command=["sh", "-c", script]).end()
    assert (code, err) == (7, "")
    first, second = out.splitlines()
    key, token, lock_id = first.split()
    assert key == KEY
    assert f'"last_token": {token}' in second
    assert '"owner": "me"' in second
    assert lock_id not in second
    after = state(couple)
    assert (after["is_locked"], after["last_token"]) == (False, int(token))


def test_it_is_renewed_as_long_as_the_program_runs(couple: Couple, program: Program) -> None:
    started = time.monotonic()
    program.start("--ttl", "1").alive()
    token = state(couple)["last_token"]
    while time.monotonic() < started + 3:
        found = state(couple)
        assert (found["is_locked"], found["last_token"]) == (True, token)
        time.sleep(0.05)
    program.signal(signal.SIGTERM)
    assert program.end()[0] == 128 + signal.SIGTERM
    assert not state(couple)["is_locked"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_the_program_s(couple: Couple, program: Program, number: signal.Signals) -> None:
    program.start(nature="").alive().signal(number)
    code, _, err = program.end()
    assert code == 128 + number or (number == signal.SIGINT and "KeyboardInterrupt" in err)
    assert program.is_gone()
    assert not state(couple)["is_locked"]


def test_a_program_may_end_in_its_own_way(couple: Couple, program: Program) -> None:
    program.start(nature="polite").alive().signal(signal.SIGTERM)
    assert program.end()[0] == 0
    assert not state(couple)["is_locked"]


def test_what_a_program_leaves_running_is_over_before_the_lock_is_released(
    couple: Couple, program: Program
) -> None:
    program.start("--ttl", "3", nature="leaves stubborn").alive()
    granted = Next(couple).granted()
    assert program.last < granted
    assert program.end()[0] == 5
    assert program.is_gone()


@pytest.mark.parametrize(("command", "expected"), [("/nowhere/at/all", 127), ("/etc/passwd", 126)])
def test_what_cannot_run_leaves_no_lock(
    couple: Couple, program: Program, command: str, expected: int
) -> None:
    code, _, err = program.start(command=[command]).end()
    assert code == expected
    assert command in err
    assert not state(couple)["is_locked"]


# -- waiting -----------------------------------------------------------------------------------------


def take(couple: Couple, seconds: float = 60) -> str:
    body = {"key": KEY, "owner": "first", "ttl_seconds": seconds}
    return str(ask(couple.b, couple, "POST", "locks", body)["lock_id"])


def test_a_held_lock_is_refused_or_waited_for(couple: Couple, program: Program, tmp_path: Path) -> None:
    lock_id = take(couple)
    code, _, err = program.start(command=["true"]).end()
    assert code == 1
    assert f"lock_held: {KEY} is held by first" in err
    program.start("--wait", "forever", command=["echo", "had it"])
    until(lambda: state(couple)["queue_length"])
    ask(couple.b, couple, "POST", f"locks/{KEY}/release", {"lock_id": lock_id})
    assert program.end()[:2] == (0, "had it\n")


def test_a_wait_is_over_in_time(couple: Couple, program: Program) -> None:
    take(couple)
    code, out, err = program.start("--wait", "0.3", command=["echo", "no"]).end()
    assert (code, out) == (1, "")
    assert "lock_wait_timeout" in err


def test_who_is_ended_while_it_waits_leaves_the_queue(couple: Couple, program: Program) -> None:
    take(couple)
    program.start("--wait", "forever", command=["echo", "no"])
    until(lambda: state(couple)["queue_length"])
    program.signal(signal.SIGTERM)
    code, out, _ = program.end()
    assert (code, out) == (128 + signal.SIGTERM, "")
    until(lambda: not state(couple)["queue_length"])


def test_who_waits_forever_outlasts_the_server(couple: Couple, program: Program) -> None:
    lock_id = take(couple)
    program.start("--ttl", "2", "--wait", "forever", command=["echo", "had it"])
    until(lambda: state(couple)["queue_length"])
    couple.a.kill()
    couple.a.start()
    ask(couple.b, couple, "POST", f"locks/{KEY}/release", {"lock_id": lock_id})
    assert program.end(60)[:2] == (0, "had it\n")


# -- when something is lost --------------------------------------------------------------------------

NATURES = ["", "parent stubborn"]


@pytest.mark.parametrize("nature", NATURES)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_is_away(couple: Couple, program: Program, nature: str, number: signal.Signals) -> None:
    """Without it nothing can be confirmed: the program is over before the lease is."""
    program.start("--ttl", "2", nature=nature).alive(2 if "parent" in nature else 1)
    after = Next(couple)
    couple.a.signal(number)
    try:
        granted = after.granted()
        assert program.last < granted
        until(program.is_gone, 1)
        code, _, err = program.end()
    finally:
        couple.a.signal(signal.SIGCONT)
    assert code == 128 + (signal.SIGKILL if "stubborn" in nature else signal.SIGTERM)
    assert "the lock is lost" in err


def test_a_server_that_is_back_in_time_costs_nothing(couple: Couple, program: Program) -> None:
    program.start("--ttl", "20", nature="polite").alive()
    token = state(couple)["last_token"]
    couple.a.kill()
    couple.a.start()
    lease = state(couple)["holders"][0]["expires_at"]
    until(lambda: state(couple)["holders"][0]["expires_at"] > lease, what="renewed")
    program.signal(signal.SIGTERM)
    assert program.end() == (0, "", "")
    assert (state(couple)["is_locked"], state(couple)["last_token"]) == (False, token)


def taken_away(couple: Couple, program: Program) -> None:
    """The lock is released with its lock_id, behind the back of who holds it."""
    row = "select lock_id from syros.locks_lock where id = %s"
    ((lock_id,),) = couple.house.query(row, f"{couple.namespace}/{KEY}")
    assert ask(couple.b, couple, "POST", f"locks/{KEY}/release", {"lock_id": lock_id})["released"]


@pytest.mark.parametrize("nature", ["", "polite", "parent stubborn"])
def test_a_lock_that_was_taken_away(couple: Couple, program: Program, nature: str) -> None:
    program.start("--ttl", "3", nature=nature).alive()
    taken_away(couple, program)
    lease_end = time.monotonic() + 3
    code, _, err = program.end()
    assert program.last < lease_end  # it was told so at the next renewal
    assert code == {"": 143, "polite": 1, "parent stubborn": 137}[nature]
    assert "the lock is lost: You do not hold jobs/nightly: released." in err
    assert program.is_gone()


def test_who_can_tell_nobody_ends_it_as_soon(couple: Couple, program: Program) -> None:
    """Its stderr is a pipe that nobody reads any more."""
    program.start("--ttl", "9", nature="polite").alive()
    assert program.process
    assert program.process.stderr
    program.process.stderr.close()
    taken_away(couple, program)
    taken_at = time.monotonic()
    assert program.process.wait(30) == 1
    assert (
        program.last < taken_at + 4.5
    )  # told so after a third of the TTL; without a renewal it ends after 6.3 s


def test_a_lock_that_may_be_lost(couple: Couple, program: Program) -> None:
    program.start("--ttl", "1", "--on-lost", "ignore", nature="polite").alive()
    taken_away(couple, program)
    ask(couple.b, couple, "POST", "locks", {"key": KEY, "owner": "other", "ttl_seconds": 60})
    lease_end = time.monotonic() + 1
    until(lambda: program.last > lease_end + 0.5, what="still alive")
    program.signal(signal.SIGTERM)
    code, _, err = program.end()
    assert code == 0
    assert err.count("the lock is lost") == 1
    assert state(couple)["holders"][0]["owner"] == "other"


# -- when the wrapper is -----------------------------------------------------------------------------


@pytest.mark.parametrize("nature", NATURES)
def test_a_wrapper_that_is_killed(couple: Couple, program: Program, nature: str) -> None:
    program.start("--ttl", "2", nature=nature).alive(2 if "parent" in nature else 1)
    after = Next(couple)
    program.signal(signal.SIGKILL)
    granted = after.granted()
    assert program.last < granted
    until(program.is_gone, 1)


@pytest.mark.parametrize("nature", NATURES)
def test_a_wrapper_that_stands_still(couple: Couple, program: Program, nature: str) -> None:
    """Its guardian does not: the program is over before the lease is."""
    program.start("--ttl", "2", nature=nature).alive(2 if "parent" in nature else 1)
    after = Next(couple)
    program.signal(signal.SIGSTOP)
    granted = after.granted()
    assert program.last < granted
    until(program.is_gone, 1)
    program.signal(signal.SIGCONT)
    code, _, err = program.end()
    assert code in {128 + signal.SIGTERM, 128 + signal.SIGKILL}
    assert "the lock is lost" in err


def test_all_of_it_stands_still_until_the_lease_is_over(couple: Couple, program: Program) -> None:
    """As when the machine sleeps: then there is nobody who could end the program in time, and it ends on waking."""
    program.start("--ttl", "2", nature="stubborn").alive()
    pids = [program.pid, program.guardian, program.notes()[0][0]]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    Next(couple).granted()
    woken = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    code, _, err = program.end()
    assert code == 128 + signal.SIGKILL
    assert "the lock is lost" in err
    assert program.last < woken + 2


def test_a_guardian_that_is_killed_is_noticed_at_the_next_renewal(couple: Couple, program: Program) -> None:
    program.start("--ttl", "1.5", nature="parent stubborn").alive(2)
    os.kill(program.guardian, signal.SIGKILL)
    code, _, _ = program.end()
    assert code == 128 + signal.SIGKILL
    assert program.is_gone()
    assert not state(couple)["is_locked"]
