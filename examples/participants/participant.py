# examples/participants/participant.py
import json
import os
import sqlite3
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from syros import barrier


class Refused(Exception):
    """Nothing was done: the saga turns back."""


def charge(database, asked):
    if asked["amount"] > 100:
        raise Refused("card_declined")
    database.execute("insert into charges (amount) values (?)", (asked["amount"],))
    return {"charged": asked["amount"]}


def refund(database, asked):
    database.execute("insert into charges (amount) values (?)", (-asked["input"]["amount"],))
    return {"refunded": asked["input"]["amount"]}


ACTIONS = {"/charge": charge, "/refund": refund}


def open_database():
    database = sqlite3.connect(os.environ.get("DATABASE", "payments.db"), timeout=10)
    database.execute("create table if not exists charges (amount real not null)")
    barrier.install(database.cursor())
    database.commit()
    return database


def carry_out(path, headers, body):
    if path not in ACTIONS:
        return 404, {"code": "no_such_action"}
    with closing(open_database()) as database:
        work = partial(ACTIONS[path], database, body["input"])
        try:
            with database:  # one transaction: what is done, and that it was
                return 200, barrier.once(database.cursor(), headers, work)
        except Refused as refusal:
            return 409, {"code": str(refusal)}
        except barrier.Hanging:
            return 409, {"code": "hanging"}


class Participant(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, value = carry_out(self.path, self.headers, body)
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8000"))), Participant).serve_forever()
