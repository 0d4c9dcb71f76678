"""Inventory and payment: two participants of a saga, each with a database of its own and the barrier in it.

`python participants.py --syros http://localhost:8080 --folder /tmp/shop` serves both and registers them. A file named
`payment-fails` in the folder makes the payment refuse.
"""

import argparse
import json
import signal
import sqlite3
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from syros import barrier

TTL = 5.0  # seconds that a registration lasts without a heartbeat


class Refused(Exception):
    """A failure without effect: the saga turns back."""


def reserve(database: sqlite3.Connection, asked: Any) -> Any:
    database.execute("insert into ledger (what, amount) values ('reserved', 1)")
    return {"reservation": database.execute("select count(*) from ledger").fetchone()[0]}


def release(database: sqlite3.Connection, asked: Any) -> Any:
    database.execute("insert into ledger (what, amount) values ('released', -1)")
    return {"released": True}


def charge(database: sqlite3.Connection, asked: Any, switch: Path) -> Any:
    if switch.exists():
        raise Refused("card_declined", "The card was declined.")
    database.execute("insert into ledger (what, amount) values ('charged', 100)")
    return {"charge": database.execute("select count(*) from ledger").fetchone()[0]}


def refund(database: sqlite3.Connection, asked: Any) -> Any:
    database.execute("insert into ledger (what, amount) values ('refunded', -100)")
    return {"refunded": True}


def services(folder: Path) -> dict[str, dict[str, Callable[..., Any]]]:
    """What each service can do, by the path it is asked at."""
    return {
        "inventory_service": {"reserve": reserve, "release_inventory": release},
        "payment_service": {
            "charge": partial(charge, switch=folder / "payment-fails"), "refund_payment": refund,
        },
    }  # fmt: skip


def open_database(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(file, timeout=10)
    database.execute("create table if not exists ledger (what text not null, amount integer not null)")
    barrier.install(database.cursor())
    database.commit()
    return database


def carry_out(file: Path, work: Callable[..., Any], headers: Any, body: bytes) -> tuple[int, Any]:
    """The work and the barrier's note of it, in one transaction."""
    with closing(open_database(file)) as database:
        try:
            with database:
                asked = json.loads(body)
                return 200, barrier.once(database.cursor(), headers, partial(work, database, asked))
        except Refused as refusal:
            code, message = refusal.args
            return 409, {"code": code, "detail": message}
        except barrier.Hanging as error:
            return 409, {"code": "hanging", "detail": str(error)}


class Participant(BaseHTTPRequestHandler):
    """A service: `POST /<action>`."""

    protocol_version = "HTTP/1.1"

    def __init__(self, file: Path, actions: dict[str, Callable[..., Any]], *args: Any) -> None:
        self.file, self.actions = file, actions
        super().__init__(*args)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        work = self.actions.get(self.path.lstrip("/"))
        status, answer = carry_out(self.file, work, self.headers, body) if work else (404, {})
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: Any) -> None:
        """Quiet: the saga's history tells."""


def say(syros: str, method: str, path: str, body: Any = None) -> None:
    request = urllib.request.Request(
        f"{syros}/api/v1/{path}", None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"}, method=method,
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=10):
        pass


def keep(syros: str, path: str, port: int) -> None:
    """Say that the instance is well; register it, where it is not known or its time ran out."""
    try:
        say(syros, "POST", f"{path}/heartbeat")
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        say(syros, "PUT", path, {"address": "127.0.0.1", "port": port, "ttl_seconds": TTL})


def serve(syros: str, folder: Path, ended: threading.Event) -> None:
    """Serve both, on ports that are free, and say so until it is over."""
    places = {}
    for name, actions in services(folder).items():
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Participant, folder / f"{name}.db", actions))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        places[f"services/{name}/instances/example"] = server.server_port
    while not ended.is_set():
        for path, port in places.items():
            keep(syros, path, port)
        ended.wait(TTL / 3)
    for path in places:
        say(syros, "DELETE", path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--syros", default="http://localhost:8080")
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    serve(options.syros, options.folder, ended)


if __name__ == "__main__":
    main()
