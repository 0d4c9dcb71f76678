"""Two programs deposit money under one lock. The first is suspended for longer than its lease, and wakes up.

Once without a guard, and money is lost; once with one, and it is not. Exits with 0 when both came out so.
"""

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeAlias

from syros import guard

Program: TypeAlias = "subprocess.Popen[bytes]"
WORKER = Path(__file__).with_name("worker.py")
LONGEST = 60  # seconds that a program may take


def main() -> int:
    print("Without the guard: 100, and A deposits 10, B deposits 50")
    without = play()
    print(
        f"  The balance is {without}: B's 50 are lost.\n"
        if without == 110
        else f"  {without} was not expected."
    )
    print("With the guard: the same again")
    guarded = play("--guard")
    print(
        f"  The balance is {guarded}: all is there." if guarded == 160 else f"  {guarded} was not expected."
    )
    return int((without, guarded) != (110, 160))


def play(*options: str) -> int:
    """The balance after both have done their work."""
    key = f"examples/fencing/{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bank.db"
        open_account(file)
        options = (f"--key={key}", f"--file={file}", *options)
        with program("A", "10", "--sleeps", *options) as a:
            wait_until_suspended(a)
            with program("B", "50", *options) as b:
                expect_success(b)
            a.send_signal(signal.SIGCONT)
            expect_success(a)
        return balance(file)


def open_account(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("create table account (balance integer not null)")
        database.execute("insert into account values (100)")
        guard.install(database.cursor())


def balance(file: Path) -> int:
    with closing(sqlite3.connect(file)) as database:
        return int(database.execute("select balance from account").fetchone()[0])


@contextmanager
def program(*line: str) -> Iterator[Program]:
    sys.stdout.flush()  # so that the lines of all come in order
    process = subprocess.Popen([sys.executable, WORKER, *line])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until_suspended(process: Program) -> None:
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        process.returncode = os.waitstatus_to_exitcode(status)
        sys.exit("A ended before it was suspended.")


def expect_success(process: Program) -> None:
    if process.wait(LONGEST):
        sys.exit(f"It ended with exit code {process.returncode}.")


if __name__ == "__main__":
    sys.exit(main())
