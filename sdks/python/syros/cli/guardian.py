"""The process that ends a group of processes in time, whatever becomes of who started it.

Run as a script of its own, in a session of its own, by `syros.cli.lock`: it reads lines of two instants from stdin,
when to ask the group to end and when to end it, and the last line holds. The end of stdin, which is also the end of
who writes there, means now. It needs nothing but the standard library, and nothing that could block.
"""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import time

# The clock that goes on while the machine sleeps, where there is one: the lease goes on as well.
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
GRACE_SECONDS = 5.0  # between being asked to end and being ended, at most
LOOK_SECONDS = 0.1  # select sleeps with the machine, so it looks at the clock this often


def now() -> float:
    return time.clock_gettime(CLOCK)


def guard(group: int, orders: int) -> bool:
    """End the group when the orders say so. Parameters: its id, and the descriptor to read from. True: its time was up;
    False: the orders ended before."""
    ask_at = end_at = math.inf
    rest = b""
    while there_is_time := now() < ask_at:
        if not select.select([orders], [], [], LOOK_SECONDS)[0]:
            continue
        read = os.read(orders, 4096)
        if not read:
            break
        *lines, rest = (rest + read).split(b"\n")
        if lines:
            ask_at, end_at = map(float, lines[-1].split())
    end(group, min(end_at, now() + GRACE_SECONDS))
    return not there_is_time


def end(group: int, end_at: float) -> None:
    """TERM, and KILL at that instant for who is still there."""
    if not hit(group, signal.SIGTERM):
        return
    hit(group, signal.SIGCONT)  # who is stopped would not hear
    while now() < end_at:
        time.sleep(0.02)
        if not hit(group, 0):
            return
    hit(group, signal.SIGKILL)


def hit(group: int, number: int) -> bool:
    """Send a signal to a group; False: there is nobody left in it."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # it became somebody else's; there is nothing more to be done
        return number == 0
    return True


if __name__ == "__main__":
    sys.exit(guard(int(sys.argv[1]), sys.stdin.fileno()))
