"""A program as there are many: take the lock, read, think, write. run.py starts it, and suspends it on the way."""

import argparse
import os
import signal
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from syros.client import Client, Refused, SyrosError
from syros.guard import StaleToken, guard

TTL = 1.0  # seconds; so short, and never renewed, only to have the example over soon


@contextmanager
def guarded(account: sqlite3.Connection, resource: str, token: int) -> Iterator[sqlite3.Cursor]:
    """A transaction that a smaller token than the largest does not get into."""
    with account:  # commits, or rolls back what raises
        cursor = account.execute("begin immediate")
        guard(cursor, resource, token)
        yield cursor


@contextmanager
def unguarded(account: sqlite3.Connection, resource: str, token: int) -> Iterator[sqlite3.Cursor]:
    with account:
        yield account.execute("begin immediate")


def deposit(options: argparse.Namespace, account: sqlite3.Connection, token: int) -> None:
    transaction = guarded if options.guard else unguarded
    # Reading is guarded too: from here on nobody with a smaller token writes what would be overwritten below.
    with transaction(account, options.key, token) as cursor:
        (balance,) = cursor.execute("select balance from account").fetchone()
    print(f"  {options.name} reads a balance of {balance}", flush=True)
    think(options)
    with transaction(account, options.key, token) as cursor:
        cursor.execute("update account set balance = ?", [balance + options.amount])
    print(f"  {options.name} writes a balance of {balance + options.amount}", flush=True)


def think(options: argparse.Namespace) -> None:
    """Between reading and writing anything can happen: a long collection of garbage, a laptop that is closed."""
    if options.sleeps:
        options.sleeps = False
        print(f"  {options.name} is suspended (SIGSTOP)", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        print(f"  {options.name} goes on (SIGCONT), and has noticed nothing", flush=True)


def work(options: argparse.Namespace, client: Client) -> bool:
    """Was it done? No: the lock had passed to somebody else."""
    wish = {"key": options.key, "owner": options.name, "ttl_seconds": TTL, "wait_seconds": 30}
    grant = client.call("locks.acquire", wish)
    print(f"  {options.name} has the lock, fencing token {grant['fencing_token']}", flush=True)
    try:
        deposit(
            options, sqlite3.connect(options.file, isolation_level=None, timeout=30), grant["fencing_token"]
        )
    except StaleToken as refusal:
        print(f"  {options.name} is refused: {refusal}", flush=True)
        # Not needed; but now Syros knows of it too, for whoever looks into `$fence`.
        client.call("locks.check", {"key": options.key, "fencing_token": refusal.token})
        return False
    finally:
        with suppress(Refused):  # lock_not_held: it has run out
            client.call("locks.release", {"key": options.key, "lock_id": grant["lock_id"]})
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("amount", type=int)
    parser.add_argument("--key", required=True)
    parser.add_argument("--file", required=True)
    parser.add_argument("--guard", action="store_true")
    parser.add_argument("--sleeps", action="store_true")
    options = parser.parse_args()
    client = Client(
        os.environ.get("SYROS_URL", "http://localhost:8080"),
        credential=os.environ.get("SYROS_API_KEY"),
        namespace=os.environ.get("SYROS_NAMESPACE"),
    )
    try:
        while not work(options, client):
            pass
    except SyrosError as error:
        sys.exit(f"  {options.name} gives up: {error}")


if __name__ == "__main__":
    main()
