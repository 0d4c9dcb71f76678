"""`syros lock NAME -- command`: a program that runs only as long as its lock is held.

Three processes: this one renews the lease; the program runs in a session of its own; and a guardian
(syros.cli.guardian) ends all of the program in time, also where this process cannot: it hangs, stands still or is dead.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from syros.cli import guardian
from syros.cli.guardian import GRACE_SECONDS, now
from syros.client import PAUSES, Client, Refused, SyrosError, Unavailable

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONGEST_WAIT = 300.0  # seconds that one request may wait; then it is asked again
AGAIN_SECONDS = 1.0  # between attempts, at most
RELEASE_SECONDS = 3.0  # for an answer to the release
TIME_WAS_UP = 1  # the guardian's exit code
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # as shells have it
OnLost = Literal["kill", "ignore"]


def hold(
    client: Client,
    key: str,
    command: Sequence[str],
    *,
    owner: str,
    ttl: float,
    wait: float,
    on_lost: OnLost,
    **kind: Any,
) -> int:
    """Run a command under a lock; its exit code, 128 + n for one that a signal ended.

    Parameters: `ttl`, seconds from the last renewal to the end of the lease; `wait`, seconds to wait for the lock, may
    be infinite; `on_lost`, what becomes of the program when the lock is lost; `kind`, mode, permits and capacity.
    Raises: Refused, Unavailable, when the lock was not to be had.
    """
    signals = Signals()
    lease = acquire(client, key, owner, ttl, wait, **kind)
    try:
        return Run(lease, on_lost, signals).run(command)
    finally:
        lease.release()


def say(text: str) -> None:
    """Tell people, if anybody reads it: the program is kept and ended all the same."""
    with contextlib.suppress(OSError):
        print(f"syros: {text}", file=sys.stderr, flush=True)


def acquire(client: Client, key: str, owner: str, ttl: float, wait: float, **kind: Any) -> Lease:
    """Take the lock, asking again as long as there is time. Raises: Refused, Unavailable."""
    deadline, told = now() + wait, ""
    while True:
        sent_at = now()
        seconds = max(0.0, min(LONGEST_WAIT, deadline - sent_at))
        params = {"key": key, "owner": owner, "ttl_seconds": ttl, "wait_seconds": seconds, **kind}
        try:
            lease = Lease(client, client.call("locks.acquire", params), ttl, sent_at)
        except SyrosError as error:
            if now() >= deadline or not passes(error):
                raise
            if not isinstance(error, Refused) or error.code != "lock_wait_timeout":
                if str(error) != told:
                    say(f"{error}; asking again")
                told = str(error)
                time.sleep(AGAIN_SECONDS)
            continue
        if confirm(lease):
            return lease
        if now() >= deadline:
            raise Unavailable(f"{key} was granted, and the lease could not be confirmed in time")


def confirm(lease: Lease) -> bool:
    """Is there time to run something under a new lease? Else, and when a signal ends us here, it is given back."""
    is_held = False
    try:
        if now() >= lease.renew_at:  # it was waited for, and is known to be held only from now on
            lease.renew()
        is_held = now() < lease.ask_at and not lease.lost
        return is_held
    finally:
        if not is_held:
            lease.release()


def passes(error: SyrosError) -> bool:
    """May asking again help?"""
    return not isinstance(error, Refused) or error.retryable or error.code == "lock_wait_timeout"


@dataclass
class Lease:
    """A held lock, and until when it is safe to believe so: reckoned from when the last request that was confirmed had
    been sent, which was before the server granted it."""

    client: Client
    grant: dict[str, Any]
    ttl: float
    sent_at: float
    lost: str = ""  # why it is held no more
    answered_at: float = field(default_factory=now)

    @property
    def names(self) -> dict[str, Any]:
        return {"key": self.grant["key"], "lock_id": self.grant["lock_id"]}

    @property
    def renew_at(self) -> float:
        return self.sent_at + self.ttl / 3

    @property
    def end_at(self) -> float:
        """When nothing may run any more: a tenth of the TTL, or a second, before somebody else may have the lock."""
        return self.sent_at + self.ttl - min(1.0, self.ttl / 10)

    @property
    def ask_at(self) -> float:
        """When what runs is asked to end."""
        return self.end_at - self.grace

    @property
    def grace(self) -> float:
        return min(GRACE_SECONDS, self.ttl / 5)

    def renew(self) -> None:
        """Renew, or find that it is lost. An answer that does not come in time leaves everything as it is."""
        sent_at = now()
        patience = max(0.05, min(self.ttl / 3, self.end_at - sent_at))
        try:
            self.client.call(
                "locks.renew", {**self.names, "ttl_seconds": self.ttl}, timeout=patience, pauses=()
            )
        except Refused as refusal:
            if refusal.code == "lock_not_held":
                self.lost = refusal.detail
        except Unavailable:
            pass
        else:
            self.sent_at, self.answered_at = sent_at, now()

    def release(self) -> None:
        """Give it back, if it may be held: after a wait, the server's lease is a younger one than what is safe to
        believe. If that cannot be said, it ends by itself."""
        left = self.answered_at + self.ttl - now()
        if self.lost or left <= 0:
            return
        seconds, pauses = (RELEASE_SECONDS, PAUSES) if left > RELEASE_SECONDS else (left, ())
        try:
            self.client.call("locks.release", self.names, timeout=seconds, pauses=pauses)
        except SyrosError as error:
            say(f"{self.grant['key']} was not released: {error}")


class Signals:
    """What this process is told to do, it tells the program; before there is one, it ends.

    A signal that was ignored when it was started (nohup) stays so.
    """

    def __init__(self) -> None:
        self._deliver: Callable[[int], object] = self._end
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who inherits that it is ignored learns no exit code
        for number in FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda number, _: self._deliver(number))

    @staticmethod
    def _end(number: int) -> None:
        raise SystemExit(128 + number)

    def start(self, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        """Start a program in a group of its own; what comes meanwhile is delivered when it is there."""
        early: list[int] = []
        self._deliver = early.append
        try:
            child = start()
        except OSError:
            self._deliver = self._end
            raise
        self._deliver = lambda number: guardian.hit(child.pid, number)
        for number in early:
            self._deliver(number)
        return child


class Run:
    """One program under one lease."""

    def __init__(self, lease: Lease, on_lost: OnLost, signals: Signals) -> None:
        self._lease, self._on_lost, self._signals = lease, on_lost, signals
        self._over = threading.Event()
        self._mutex = threading.Lock()  # the guardian's stdin, between the two threads

    def run(self, command: Sequence[str]) -> int:
        try:
            self._child = self._signals.start(lambda: self._start(command))
        except OSError as error:
            say(f"{command[0]}: {error.strerror}")
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        try:
            self._guardian = subprocess.Popen(
                [sys.executable, "-IS", guardian.__file__, str(self._child.pid)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0, start_new_session=True,
            )  # fmt: skip
        except OSError:
            guardian.hit(self._child.pid, signal.SIGKILL)
            raise
        self._order(self._lease.ask_at, self._lease.end_at)
        threading.Thread(target=self._keep, name="syros-renew", daemon=True).start()
        code = exit_code(self._child.wait())
        was_ended = self._finish()
        return code or int(was_ended and self._on_lost == "kill")

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        grant = self._lease.grant
        environment = {
            **os.environ,
            "SYROS_LOCK_KEY": grant["key"],
            "SYROS_LOCK_ID": grant["lock_id"],
            "SYROS_FENCING_TOKEN": str(grant["fencing_token"]),
        }
        return subprocess.Popen(command, env=environment, start_new_session=True)

    def _order(self, ask_at: float, end_at: float) -> None:
        """Tell the guardian when to end the program; if there is no guardian any more, end it now."""
        if self._on_lost == "ignore":
            return
        with self._mutex:
            if self._over.is_set():
                return
            assert self._guardian.stdin
            try:
                self._guardian.stdin.write(f"{ask_at} {end_at}\n".encode())
            except BrokenPipeError:
                guardian.hit(self._child.pid, signal.SIGKILL)

    def _keep(self) -> None:
        """Renew until the program is over or the lock is lost."""
        lease = self._lease
        while not self._over.wait(max(lease.renew_at - now(), min(AGAIN_SECONDS, lease.ttl / 10))):
            lease.renew()
            if lease.lost:
                self._order(now(), min(lease.end_at, now() + lease.grace))
                say(f"the lock is lost: {lease.lost}")
                return
            self._order(lease.ask_at, lease.end_at)

    def _finish(self) -> bool:
        """The program is over; what it left running in its group ends as well, before the lock is released.

        True: it was not over by itself.
        """
        with self._mutex:
            self._over.set()
            assert self._guardian.stdin
            self._guardian.stdin.close()
        ended = self._guardian.wait()
        if ended and ended != TIME_WAS_UP:
            guardian.hit(self._child.pid, signal.SIGKILL)
        if ended and not self._lease.lost:
            why = "it could not be renewed in time" if ended == TIME_WAS_UP else "its guardian is gone"
            say(f"the lock is lost: {why}")
        return bool(ended or self._lease.lost)


def exit_code(code: int) -> int:
    return code if code >= 0 else 128 - code
