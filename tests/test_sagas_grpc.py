"""Participants over gRPC: what they are asked, what becomes of a saga, and whom a bad one harms."""

import asyncio
import hmac
import json
import logging
import socket
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from discovery import grpc_client
from discovery.addresses import Addresses, NotSent
from discovery.grpc_client import Client, Reply
from discovery.http import Broken
from sagas.participant_messages import METHOD, Request
from tests.doors import Door, Lane, Refused, free_port
from tests.grpc_participant import GrpcParticipant, Refuse, after_a_request, something_else
from tests.participant import Participant
from tests.test_grpc import Certificates
from tests.test_sagas import RETRY, reaches, start, step

OK = {"succeeded": {"output": b"1"}}
ONE = {**RETRY, "max_attempts": 1}


@pytest.fixture
def participant() -> Iterator[GrpcParticipant]:
    with GrpcParticipant() as found:
        yield found


def register(door: Door, port: int, scheme: str = "grpc", address: str = "127.0.0.1", **more: Any) -> None:
    about = {"service": "shop", "instance_id": "one", **more}
    door("services.register", address=address, port=port, scheme=scheme, **about)


def refuses(*about: Any) -> Callable[[Any], Any]:
    def script(asked: Any) -> Any:
        raise Refuse(*about)

    return script


def retry_after(seconds: float) -> RetryInfo:
    found = RetryInfo()
    found.retry_delay.FromNanoseconds(int(seconds * 1e9))
    return found


# -- through every door ------------------------------------------------------------------------------


def test_a_saga_over_grpc_succeeds(call: Door, participant: GrpcParticipant) -> None:
    register(call, participant.port)
    participant.script["reserve"] = lambda asked: {"succeeded": {"output": b'{"id": 9007199254740993}'}}
    saga_id = start(
        call, step("reserve"), step("charge", input={"for": "${steps.reserve.output.id}"}),
        input={"sku": "x"}, output={"paid": "${steps.charge.output.did}"},
    )  # fmt: skip
    saga = reaches(call, saga_id, "succeeded")
    assert saga["output"] == {"paid": "charge"}
    assert participant.actions() == ["reserve", "charge"]
    charge = participant.asked[1]
    # Exactly as it was answered, though no double is that number.
    assert json.loads(charge.body)["input"] == {"for": 9007199254740993}
    assert (charge.idempotency_key, charge.saga_id, charge.saga_name, charge.step, charge.op, charge.attempt) == (
        f"{saga_id}.charge.a", saga_id, "order", "charge", "action", 1,
    )  # fmt: skip
    left = charge.deadline.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
    assert 20 < left.total_seconds() < 31


def test_a_refusal_over_grpc_is_taken_back(call: Door, participant: GrpcParticipant) -> None:
    register(call, participant.port)
    participant.script["c"] = lambda asked: {"failed": {"code": "declined", "message": "No."}}
    saga_id = start(call, step("a"), step("b"), step("c"))
    saga = reaches(call, saga_id, "compensated")
    assert participant.actions() == ["a", "b", "c", "undo_b", "undo_a"]
    assert saga["error"] == {"step": "c", "code": "declined", "message": "No."}
    undo = participant.asked[3]
    assert (undo.idempotency_key, undo.op, undo.outcome) == (f"{saga_id}.b.c", "compensate", "succeeded")
    assert json.loads(undo.body)["input"] == {"input": None, "output": {"did": "b"}, "outcome": "succeeded"}


def test_an_instance_says_how_it_is_called(call: Door) -> None:
    for scheme in ("grpc", "grpcs"):
        register(call, 80, scheme)
        assert call("services.get", service="shop")["instances"][0]["scheme"] == scheme
    with pytest.raises(Refused):
        register(call, 80, "ftp")


# -- how participants are understood -----------------------------------------------------------------

FAILED = ["INVALID_ARGUMENT", "FAILED_PRECONDITION", "ABORTED", "ALREADY_EXISTS", "OUT_OF_RANGE"]
MISCONFIGURED = ["UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "UNIMPLEMENTED"]
DOUBT = [
    "CANCELLED",
    "UNKNOWN",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
]


def test_no_status_is_forgotten() -> None:
    assert {*FAILED, *MISCONFIGURED, *DOUBT, "OK"} == {code.name for code in StatusCode}


@pytest.mark.parametrize("status", FAILED)
def test_a_status_that_says_that_nothing_was_done(
    lane: Lane, participant: GrpcParticipant, status: str
) -> None:
    register(lane, participant.port)
    participant.script["b"] = refuses(
        StatusCode[status], "Not now.", ErrorInfo(reason="SOLD_OUT", domain="shop")
    )
    saga = reaches(lane, start(lane, step("a"), step("b")), "compensated")
    assert participant.actions() == ["a", "b", "undo_a"]
    assert saga["error"] == {"step": "b", "code": "SOLD_OUT", "message": "Not now."}
    assert saga["steps"][1]["status"] == "failed"


@pytest.mark.parametrize("status", MISCONFIGURED)
def test_a_status_that_says_that_it_is_set_up_wrongly(
    lane: Lane, participant: GrpcParticipant, status: str
) -> None:
    register(lane, participant.port)
    participant.script["a"] = refuses(StatusCode[status], "")
    saga_id = start(lane, step("a", retry_policy=RETRY))
    time.sleep(0.7)
    found = lane("sagas.get", saga_id=saga_id)["steps"][0]
    assert (found["status"], participant.actions()) == ("backoff", ["a"])
    assert found["error"]["code"] == f"grpc_{status.lower()}"


@pytest.mark.parametrize("status", DOUBT)
def test_a_status_after_which_nobody_knows(lane: Lane, participant: GrpcParticipant, status: str) -> None:
    register(lane, participant.port)
    participant.script["b"] = refuses(StatusCode[status], "Hm.")
    saga = reaches(
        lane, start(lane, step("a"), step("b", retry_policy=ONE, timeout_seconds=1)), "compensated"
    )
    assert participant.actions() == ["a", "b", "undo_b", "undo_a"]
    assert participant.asked[2].outcome == "unknown"
    assert (saga["steps"][1]["status"], saga["error"]["message"]) == ("unknown", "Hm.")


@pytest.mark.parametrize(
    "answer",
    [
        60.0,
        b"\xff\xff\xff",
        b"",
        b"\xfa\x01\x01x",
        {"succeeded": {"output": b"{"}},
        {"succeeded": {"output": b"[" * 400 + b"]" * 400}},
        {"succeeded": {"output": b" " * (1 << 20) + b"1"}},
        {"succeeded": {"output": b"1" * (100 << 20)}},
    ],
    ids=["hangs", "garbage", "nothing", "unknown fields", "no json", "deep", "large", "100 MB"],
)
def test_a_step_in_doubt_is_compensated(lane: Lane, participant: GrpcParticipant, answer: Any) -> None:
    register(lane, participant.port)
    participant.script["b"] = lambda asked: answer
    seconds = 0.3 if answer == 60.0 else 10
    saga_id = start(lane, step("a"), step("b", timeout_seconds=seconds, retry_policy=ONE))
    saga = reaches(lane, saga_id, "compensated")
    assert participant.actions() == ["a", "b", "undo_b", "undo_a"]
    assert saga["steps"][1]["status"] == "unknown"
    if answer == 60.0:
        assert saga["error"] == {"step": "b", "code": "timeout", "message": "No answer within 0.3 s."}


@pytest.mark.parametrize("ends", [b"", b"\xff" * 4096], ids=["reset", "garbage"])
def test_a_connection_that_breaks_after_the_request_leaves_doubt(
    lane: Lane, participant: GrpcParticipant, ends: bytes
) -> None:
    register(lane, participant.port)
    with something_else(after_a_request(ends)) as port:
        register(lane, port, service="bad")
        saga_id = start(lane, step("a"), step("b", service="bad", retry_policy=ONE, compensation=None))
        saga = reaches(lane, saga_id, "compensated")
    assert (saga["steps"][1]["status"], saga["dirty"]) == ("unknown", True)
    assert participant.actions() == ["a", "undo_a"]


def test_the_largest_output_is_taken(lane: Lane, participant: GrpcParticipant) -> None:
    register(lane, participant.port)
    largest = b'"' + b"x" * ((1 << 20) - 2) + b'"'
    participant.script["a"] = lambda asked: {"succeeded": {"output": largest}}
    reaches(lane, start(lane, step("a")), "succeeded")


def test_an_answer_that_is_packed_is_not_unpacked(lane: Lane) -> None:
    with GrpcParticipant(options=[("grpc.default_compression_algorithm", 2)]) as participant:
        register(lane, participant.port)
        participant.script["a"] = lambda asked: {"succeeded": {"output": b" " * (50 << 20)}}
        saga = reaches(lane, start(lane, step("a", retry_policy=ONE, compensation=None)), "failed")
    assert saga["steps"][0]["status"] == "unknown"
    assert saga["error"]["code"] in {"bad_body", "grpc_internal"}  # whichever of them grpcio comes to first


def test_attempts_have_one_key_and_wait_as_they_are_told(lane: Lane, participant: GrpcParticipant) -> None:
    register(lane, participant.port)
    answers: list[Any] = [
        refuses(StatusCode.UNAVAILABLE, "Later."),
        refuses(StatusCode.RESOURCE_EXHAUSTED, "Not so fast.", retry_after(0.4)),
        lambda asked: OK,
    ]
    participant.script["a"] = lambda asked: answers.pop(0)(asked)
    saga_id = start(lane, step("a", retry_policy=RETRY))
    assert reaches(lane, saga_id, "succeeded")["steps"][0]["attempts"] == 3
    (action,) = lane("sagas.timeline", saga_id=saga_id)["lanes"]
    assert [attempt["code"] for attempt in action["attempts"]] == [
        "broken",
        "too_many_requests",
        None,
    ]
    assert [asked.attempt for asked in participant.asked] == [1, 2, 3]
    assert len({asked.idempotency_key for asked in participant.asked}) == 1
    assert len({asked.task_token for asked in participant.asked}) == 3


def test_ongoing_costs_no_attempt(lane: Lane, participant: GrpcParticipant) -> None:
    register(lane, participant.port)
    answers: list[Any] = [{"ongoing": {"retry_after_seconds": 0.05}}] * 3 + [OK]
    participant.script["a"] = lambda asked: answers.pop(0)
    reaches(lane, start(lane, step("a", retry_policy=ONE)), "succeeded")
    assert len(participant.asked) == 4


def test_who_accepts_answers_later(lane: Lane, participant: GrpcParticipant) -> None:
    register(lane, participant.port)
    participant.script["a"] = lambda asked: {"accepted": {}}
    saga_id = start(lane, step("a"))
    deadline = time.monotonic() + 5
    while lane("sagas.get", saga_id=saga_id)["steps"][0]["status"] != "waiting":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    task = {"task_id": f"{saga_id}.a.action", "lease_token": participant.asked[0].task_token}
    with pytest.raises(Refused, match="lease_lost"):
        lane("tasks.complete", task_id=task["task_id"], lease_token="f" * 40)
    assert lane("tasks.complete", **task, output={"late": True})["status"] == "succeeded"
    assert reaches(lane, saga_id, "succeeded")["steps"][0]["output"] == {"late": True}


def test_a_participant_may_be_asked_what_became_of_it(lane: Lane, participant: GrpcParticipant) -> None:
    register(lane, participant.port)
    participant.script["a"] = refuses(StatusCode.INTERNAL)
    participant.script["check"] = lambda asked: {
        "succeeded": {"output": b'{"outcome": "applied", "output": 7}'}
    }
    saga = reaches(lane, start(lane, step("a", verify="check", retry_policy=ONE)), "succeeded")
    assert (saga["steps"][0]["output"], participant.asked[1].op) == (7, "verify")


def test_fencing_tokens_go_along(lane: Lane, participant: GrpcParticipant) -> None:
    register(lane, participant.port)
    saga_id = start(lane, step("a", locks=[{"key": "x"}, {"key": "y"}]))
    reaches(lane, saga_id, "succeeded")
    tokens = dict(participant.asked[0].fencing_tokens)
    assert tokens == json.loads(participant.asked[0].body)["context"]["fencing_tokens"]
    assert tokens.keys() == {"x", "y"}


def test_the_signature_is_of_the_body(lane: Lane, participant: GrpcParticipant, settings: Any) -> None:
    settings.PARTICIPANT_SECRETS = ["whsec_c2VjcmV0"]
    register(lane, participant.port)
    saga_id = start(lane, step("a"))
    reaches(lane, saga_id, "succeeded")
    (said,), (asked,) = participant.metadata, participant.asked
    assert said["webhook-id"] == f"{saga_id}.a.a.1"
    assert said["webhook-signature"] == expected(b"secret", said, asked.body)


def expected(key: bytes, said: dict[str, Any], body: bytes) -> str:
    signed = f"{said['webhook-id']}.{said['webhook-timestamp']}.".encode() + body
    return "v1," + b64encode(hmac.digest(key, signed, "sha256")).decode()


def of_a_kind(name: str, value: bytes) -> bytes:
    """Details that say they are of this kind, whatever they are."""
    status = Status(code=8)
    status.details.add(type_url=f"type.googleapis.com/google.rpc.{name}", value=value)
    return bytes(status.SerializeToString())


@pytest.mark.parametrize(
    "details",
    [b"\xff\xff", of_a_kind("RetryInfo", b"\xff"), of_a_kind("ErrorInfo", b"\x0a\xff"), of_a_kind("Else", b"x"),
     b"x" * 20_000],
    ids=["no status", "no retry info", "no error info", "another", "too large"],
)  # fmt: skip
def test_details_that_cannot_be_read_are_none(participant: GrpcParticipant, details: bytes) -> None:
    participant.script["a"] = refuses(StatusCode.RESOURCE_EXHAUSTED, "", details)
    reply: Reply = asyncio.run(ask(Client(Addresses()), participant.port))
    assert (reply.status, reply.reason, reply.retry_after) == ("RESOURCE_EXHAUSTED", None, None)


# -- where nobody takes part -------------------------------------------------------------------------


def refused_for(door: Door, port: int, scheme: str = "grpc", **more: Any) -> str:
    """Why nothing was sent."""
    register(door, port, scheme, **more)
    found = step("a", retry_policy=ONE, timeout_seconds=1)
    saga = reaches(door, start(door, found), "failed")
    assert (saga["error"]["code"], saga["dirty"]) == ("not_sent", False)
    return str(saga["error"]["message"])


def test_nobody_listens(lane: Lane) -> None:
    assert "Connection refused" in refused_for(lane, free_port())


def test_an_http_server_is_not_taken_for_a_participant(lane: Lane) -> None:
    with Participant() as other:
        refused_for(lane, other.port)
        assert other.asked == []


def test_who_says_nothing_was_sent_nothing(lane: Lane) -> None:
    with something_else(lambda connection: time.sleep(2)) as port:
        assert "not within 1 s" in refused_for(lane, port)


def test_who_hangs_up_was_sent_nothing(lane: Lane) -> None:
    with something_else(lambda connection: None) as port:
        refused_for(lane, port)


def test_addresses_that_nobody_may_call(lane: Lane) -> None:
    assert "may not be called" in refused_for(lane, 80, address="169.254.169.254")


def test_a_bad_participant_harms_its_own_saga_only(lane: Lane, participant: GrpcParticipant) -> None:
    """Whoever waited for those that hang would not come to an end here: they hang for longer than anybody looks."""
    participant.script["hang"] = lambda asked: 60.0
    register(lane, participant.port)
    with something_else(after_a_request(b"\xff" * 4096)) as bad, GrpcParticipant() as good:
        register(lane, bad, service="bad")
        register(lane, good.port, service="good")
        hanging = [start(lane, step("hang", timeout_seconds=60)) for _ in range(7)]
        broken = [start(lane, step("b", service="bad", retry_policy=RETRY)) for _ in range(5)]
        for saga_id in [start(lane, step("g", service="good")) for _ in range(20)]:
            reaches(lane, saga_id, "succeeded")
        assert participant.actions() == ["hang"] * 7
        assert {lane("sagas.get", saga_id=each)["status"] for each in hanging} == {"running"}
        for saga_id in (*hanging, *broken):
            lane("sagas.terminate", saga_id=saga_id, reason="over")


# -- the client --------------------------------------------------------------------------------------


def ask(
    client: Client, port: int, *, host: str = "127.0.0.1", tls: bool = False, private: bool = True
) -> Any:
    body = Request(action="a", body=b'{"input":1}').SerializeToString()
    return client.ask(host, port, tls, private, 5.0, METHOD, body, ())


def test_one_connection_is_kept_and_closed_when_idle(
    participant: GrpcParticipant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_client, "IDLE", 0.2)

    async def calls() -> None:
        client = Client(Addresses())
        replies = await asyncio.gather(*(ask(client, participant.port) for _ in range(20)))
        assert {reply.status for reply in replies} == {"OK"}
        (line,) = client._lines.values()
        assert (len(participant.peers), line.users) == (1, 0)
        await asyncio.sleep(0.4)
        assert client._lines == {}
        assert line.channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
        await ask(client, participant.port)
        assert len(participant.peers) == 2

    asyncio.run(calls())


def test_a_participant_that_comes_again_is_found_again() -> None:
    async def calls() -> None:
        client = Client(Addresses())
        with GrpcParticipant() as participant:
            port = participant.port
            await ask(client, port)
        with pytest.raises(NotSent):
            await ask(client, port)
        assert client._lines == {}

    asyncio.run(calls())


def test_private_addresses_only_where_an_administrator_said_so(participant: GrpcParticipant) -> None:
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(NotSent, match="may not be called"):
            asyncio.run(ask(Client(Addresses()), participant.port, host=host, private=False))
    assert participant.peers == set()


def test_a_call_that_is_given_up_is_cancelled(
    participant: GrpcParticipant, caplog: pytest.LogCaptureFixture
) -> None:
    participant.script["a"] = lambda asked: 1.0

    async def calls() -> None:
        client = Client(Addresses())
        task = asyncio.ensure_future(ask(client, participant.port))
        while not participant.asked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [line.users for line in client._lines.values()] == [0]

    with caplog.at_level(logging.WARNING):
        asyncio.run(calls())
    assert caplog.records == []


def test_no_proxy_is_asked(participant: GrpcParticipant, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert asyncio.run(ask(Client(Addresses()), participant.port)).status == "OK"


def test_nothing_is_sent_twice() -> None:
    connections = []

    def answers(connection: socket.socket) -> None:
        connections.append(connection)
        after_a_request(b"")(connection)

    with something_else(answers) as port:
        reply: Reply = asyncio.run(ask(Client(Addresses()), port))
    assert reply.status == "UNAVAILABLE"
    assert len(connections) == 1


def test_an_end_without_an_answer_is_none() -> None:
    handler = grpc.unary_stream_rpc_method_handler(lambda request, context: iter(()))
    server = grpc.server(ThreadPoolExecutor(1))
    service, _, method = METHOD[1:].partition("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(Broken):
        asyncio.run(ask(Client(Addresses()), port))
    server.stop(0).wait(5)


@pytest.mark.parametrize("trust", ["file", "folder"])
def test_tls_wants_an_authority_that_the_system_trusts_and_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust: str
) -> None:
    made = Certificates(tmp_path)
    pair = grpc.ssl_server_credentials([(made.read("server.key"), made.read("server.pem"))])
    with GrpcParticipant(pair) as participant:
        with pytest.raises(NotSent, match="certificate"):
            asyncio.run(ask(Client(Addresses()), participant.port, tls=True))
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder/0123abcd.0").write_bytes(made.read("ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / ("ca.pem" if trust == "file" else "none")))
        monkeypatch.setenv(
            "SSL_CERT_DIR", str(tmp_path / "folder" if trust == "folder" else tmp_path / "none")
        )
        for host in ("127.0.0.1", "localhost"):
            assert asyncio.run(ask(Client(Addresses()), participant.port, host=host, tls=True)).status == "OK"
        assert participant.metadata[-1].get("user-agent", "").startswith("syros")

        async def of_another_name() -> None:
            addresses = Addresses()
            addresses._resolved["other.test", participant.port] = (time.monotonic() + 60, ["127.0.0.1"], "")
            await ask(Client(addresses), participant.port, host="other.test", tls=True)

        with pytest.raises(NotSent):
            asyncio.run(of_another_name())
        with pytest.raises(NotSent):
            asyncio.run(ask(Client(Addresses()), participant.port))
    assert len(participant.asked) == 2


def test_the_name_is_whom_is_asked_for(participant: GrpcParticipant) -> None:
    """Proxies tell participants apart by it."""
    asyncio.run(ask(Client(Addresses()), participant.port, host="localhost"))
    assert participant.hosts == {f"localhost:{participant.port}"}
