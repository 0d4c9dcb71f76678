"""The order of the README, twice: once everything goes well, once the card is declined and the goods are released.

`python run.py` uses the Syros at http://localhost:8080; `python run.py --serve` starts one of its own. Exits with 0
when both came out so.
"""

import argparse
import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MANAGE = HERE.parent.parent / "manage.py"
LONGEST = 60.0  # seconds that anything may take
ORDER = {
    "name": "order_fulfillment_saga",
    "steps": [
        {"name": "reserve_inventory", "service": "inventory_service", "action": "reserve",
         "compensation": "release_inventory", "timeout_seconds": 10},
        {"name": "charge_payment", "service": "payment_service", "action": "charge",
         "compensation": "refund_payment", "timeout_seconds": 15},
    ],
}  # fmt: skip


def ask(syros: str, method: str, path: str, body: Any = None) -> Any:
    request = urllib.request.Request(
        f"{syros}{path}", None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"}, method=method,
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def wait_for(what: Any, seconds: float = LONGEST) -> Any:
    """What a function answers, once it answers something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := what():
                return found
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.1)
    raise SystemExit(f"{what} took longer than {seconds:g} s")


@contextmanager
def program(*line: object, **environment: str) -> Iterator[None]:
    """A program that runs beside this one."""
    process = subprocess.Popen(
        [sys.executable, *map(str, line)], env={**os.environ, **environment}, stdout=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def syros_of_its_own(folder: Path) -> Iterator[str]:
    port, *others = free_ports(3)
    line = ("serve", "--host", "127.0.0.1", "--port", port, "--ws-port", others[0], "--grpc-port", others[1])
    with program(MANAGE, *line, SYROS_DEV="1", SYROS_VAR=str(folder / "var"), LOG_LEVEL="error"):
        yield f"http://localhost:{port}"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return found


def is_ready(syros: str) -> Any:
    ask(syros, "GET", "/ready")
    found = [ask(syros, "GET", f"/api/v1/services/{name}")["instances"] for name in SERVICES]
    return all(found)


SERVICES = ("inventory_service", "payment_service")


def order(syros: str) -> Any:
    """Start the saga, and wait until it is over."""
    saga_id = ask(syros, "POST", "/api/v1/sagas", ORDER)["saga_id"]

    def saga_that_is_over() -> Any:
        found = ask(syros, "GET", f"/api/v1/sagas/{saga_id}")
        return found if found["finished_at"] else None

    return wait_for(saga_that_is_over)


def show(syros: str, saga: Any, folder: Path) -> None:
    for event in ask(syros, "GET", f"/api/v1/sagas/{saga['saga_id']}/history")["events"]:
        data = event["data"]
        print(f"  {event['type']:<24}{data.get('step', ''):<20}{data.get('code', '')}")
    print(f"  the saga: {saga['status']}; the ledgers: {ledgers(folder)}\n")


def ledgers(folder: Path) -> list[str]:
    found = []
    for name in SERVICES:
        with closing(sqlite3.connect(folder / f"{name}.db")) as database:
            found += [what for (what,) in database.execute("select what from ledger order by rowid")]
    return found


def play(syros: str, folder: Path) -> list[Any]:
    """How both orders ended, and what the ledgers say."""
    with program(HERE / "participants.py", "--syros", syros, "--folder", folder):
        wait_for(lambda: is_ready(syros))
        print("An order that goes well:")
        good = order(syros)
        show(syros, good, folder)
        (folder / "payment-fails").touch()
        print("An order whose card is declined:")
        bad = order(syros)
        show(syros, bad, folder)
        return [good["status"], bad["status"], ledgers(folder)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--syros", default="http://localhost:8080")
    parser.add_argument("--serve", action="store_true", help="start a Syros for this, and end it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = syros_of_its_own(folder) if options.serve else nullcontext(options.syros)
        with own as syros:
            wait_for(lambda: ask(syros, "GET", "/ready"))
            found = play(syros, folder)
    expected = ["succeeded", "compensated", ["reserved", "reserved", "released", "charged"]]
    return int(found != expected)


if __name__ == "__main__":
    sys.exit(main())
