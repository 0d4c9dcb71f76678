# examples/participants/participant_grpc.py
import json
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import grpc

from syros import barrier

# Needs grpcio-tools, and Syros's folder `proto` on the Python path; or have protoc write the two modules.
messages, services = grpc.protos_and_services("syros/v1/participant_service.proto")


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


ACTIONS = {"charge": charge, "refund": refund}


def open_database():
    database = sqlite3.connect(os.environ.get("DATABASE", "payments.db"), timeout=10)
    database.execute("create table if not exists charges (amount real not null)")
    barrier.install(database.cursor())
    database.commit()
    return database


class Participant(services.ParticipantServiceServicer):
    def CarryOut(self, request, context):
        if request.action not in ACTIONS:
            context.abort(grpc.StatusCode.NOT_FOUND, "There is no such action.")
        known = {"Syros-Saga-Id": request.saga_id, "Syros-Step": request.step, "Syros-Op": request.op}
        with closing(open_database()) as database:
            work = partial(ACTIONS[request.action], database, json.loads(request.body)["input"])
            try:
                with database:  # one transaction: what is done, and that it was
                    output = barrier.once(database.cursor(), known, work)
            except Refused as refusal:
                return messages.CarryOutResponse(failed={"code": str(refusal)})
            except barrier.Hanging:
                return messages.CarryOutResponse(failed={"code": "hanging"})
        return messages.CarryOutResponse(succeeded={"output": json.dumps(output).encode()})


server = grpc.server(ThreadPoolExecutor(8))
services.add_ParticipantServiceServicer_to_server(Participant(), server)
server.add_insecure_port(f"127.0.0.1:{os.environ.get('PORT', '8000')}")
server.start()
server.wait_for_termination()
