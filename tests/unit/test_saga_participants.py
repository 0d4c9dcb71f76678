"""What participants are sent, what their answers mean, and which addresses may be called at all."""

import hmac
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import sha256
from ipaddress import ip_address
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from core.callers import Namespace
from core.encoding import encode
from discovery.addresses import is_allowed
from discovery.directory import Place
from discovery.grpc_client import Reply
from discovery.http import Response
from discovery.types import Address
from sagas import participants
from sagas.participant_messages import Request as CarryOutRequest
from sagas.participant_messages import Response as CarryOutResponse
from sagas.participants import Attempt, meaning, meaning_of_reply, message, request, signature
from sagas.types import Path, SagaName, StepName

FEW = limits(max_examples=300, derandomize=True, deadline=None, database=None)
NOW = 1_767_225_600.0  # 2026-01-01
KINDS = {"succeeded", "accepted", "ongoing", "failed", "refused", "misconfigured", "unknown"}


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    """The clock stands still, and nothing is signed."""
    monkeypatch.setattr(participants, "time", lambda: NOW)
    settings.PARTICIPANT_SECRETS = []


def answer(status: int, body: bytes = b"", **headers: str) -> Response:
    return Response(
        status, {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}, body
    )


# -- what an answer means ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "said", "kind", "code"),
    [
        (200, "", "succeeded", None), (201, "", "succeeded", None), (204, "", "succeeded", None),
        (200, "done", "succeeded", None), (200, "ongoing", "ongoing", None), (201, "Ongoing", "ongoing", None),
        (425, "", "ongoing", None), (425, "failed", "ongoing", None), (202, "", "accepted", None),
        (202, "failed", "accepted", None),
        (200, "failed", "failed", None), (204, "FAILED", "failed", None), (403, "failed", "failed", None),
        (400, "", "failed", "http_400"), (402, "", "failed", "http_402"), (409, "", "failed", "http_409"),
        (410, "", "failed", "http_410"), (422, "", "failed", "http_422"), (499, "", "failed", "http_499"),
        (429, "", "refused", "too_many_requests"), (429, "failed", "refused", "too_many_requests"),
        (401, "", "misconfigured", "http_401"), (403, "", "misconfigured", "http_403"),
        (404, "", "misconfigured", "http_404"), (405, "", "misconfigured", "http_405"),
        (408, "", "unknown", "http_408"), (500, "", "unknown", "http_500"), (502, "", "unknown", "http_502"),
        (503, "", "unknown", "http_503"), (504, "", "unknown", "http_504"), (500, "failed", "unknown", "http_500"),
        (203, "", "unknown", "http_203"), (206, "", "unknown", "http_206"), (301, "", "unknown", "http_301"),
        (302, "", "unknown", "http_302"), (304, "", "unknown", "http_304"), (600, "", "unknown", "http_600"),
        (0, "", "unknown", "http_0"),
    ],
)  # fmt: skip
def test_what_a_status_means(status: int, said: str, kind: str, code: str | None) -> None:
    outcome = meaning(answer(status, syros_status=said))
    assert (outcome.kind, outcome.code) == (kind, code)


@pytest.mark.parametrize(
    ("body", "output"),
    [
        (b"", None),
        (b" \n", None),
        (b"null", None),
        (b"1", 1),
        (b'"a"', "a"),
        (b'{"id": 1}', {"id": 1}),
        (b"[]", []),
    ],
)
def test_output_is_what_it_answers(body: bytes, output: Any) -> None:
    assert (meaning(answer(200, body)).kind, meaning(answer(200, body)).output) == ("succeeded", output)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"<html>",
        b"NaN",
        b"1 2",
        b"\xff",
        b'"\\ud800"',
        b"'a'",
        b'{"x": "a\\u0000b"}',
        b'[{"\\u0000": 1}]',
    ],
)
def test_nobody_knows_what_became_of_a_success_that_cannot_be_read(body: bytes) -> None:
    outcome = meaning(answer(200, body))
    assert (outcome.kind, outcome.code, outcome.output) == ("unknown", "bad_body", None)


def test_output_that_only_speaks_of_nul_is_one() -> None:
    assert meaning(answer(200, b'"a\\\\u0000"')).output == "a\\u0000"


def test_output_that_nests_too_deeply_is_none() -> None:
    outcome = meaning(answer(200, b"[" * 400 + b"]" * 400))
    assert encode(outcome.output)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b"", "http_409", "It answered 409."), (b"nonsense", "http_409", "It answered 409."),
        (b"[1]", "http_409", "It answered 409."), (b"null", "http_409", "It answered 409."),
        (b'{"code": "sold_out", "detail": "None left."}', "sold_out", "None left."),
        (b'{"title": "Conflict"}', "http_409", "Conflict"), (b'{"message": "no"}', "http_409", "no"),
        (b'{"code": 7, "detail": ["a"]}', "http_409", "['a']"),
        (b'{"code": "", "detail": ""}', "http_409", "It answered 409."),
        (b'{"code": "a\\nb", "detail": "a\\u0000b\\r\\nc"}', "a b", "a b  c"),
    ],
)  # fmt: skip
def test_words_of_a_problem(body: bytes, code: str, message: str) -> None:
    outcome = meaning(answer(409, body))
    assert (outcome.kind, outcome.code, outcome.message) == ("failed", code, message)


def test_long_words_are_cut() -> None:
    outcome = meaning(answer(409, orjson.dumps({"code": "c" * 5000, "detail": "d" * 5000})))
    assert (outcome.code, outcome.message) == ("c" * 100, "d" * 1000)


@pytest.mark.parametrize("status", [429, 425, 401, 503, 408])
def test_who_asks_to_be_asked_later_is_heard(status: int) -> None:
    assert meaning(answer(status, retry_after="7")).retry_after == 7.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0), ("0", 0.0), ("1.5", 1.5), (" 3 ", 3.0), ("3600", 3600.0), ("86400", 3600.0), ("9" * 400, 3600.0),
        ("", None), ("soon", None), ("-1", None), ("1e3", None), ("nan", None), ("inf", None), (".", None),
        ("1.2.3", None),
        ("²", None), ("Thu, 99 Jan 2026 99:99:99 GMT", None), (", ,", None),
    ],
)  # fmt: skip
def test_retry_after_as_a_number_and_nonsense(text: str, seconds: float | None) -> None:
    response = Response(503, {b"retry-after": text.encode("latin-1")})
    assert meaning(response).retry_after == seconds


@pytest.mark.parametrize(
    ("after", "seconds"), [(90, 90.0), (0, 0.0), (-90, 0.0), (7200, 3600.0), (10**9, 3600.0)]
)
def test_retry_after_as_a_date(after: float, seconds: float) -> None:
    date = format_datetime(datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=after), usegmt=True)
    assert meaning(answer(503, retry_after=date)).retry_after == seconds


def test_retry_after_in_an_impossible_time_zone_is_nonsense() -> None:
    date = f"Thu, 01 Jan 2026 00:00:00 +{'9' * 20}"
    assert meaning(answer(503, retry_after=date)).retry_after is None


@given(
    st.integers(0, 999), st.binary(max_size=30),
    st.dictionaries(st.sampled_from([b"syros-status", b"retry-after", b"x"]), st.binary(max_size=12)),
)  # fmt: skip
@FEW
def test_every_answer_has_a_meaning(status: int, body: bytes, headers: dict[bytes, bytes]) -> None:
    outcome = meaning(Response(status, headers, body))
    assert outcome.kind in KINDS
    assert outcome.retry_after is None or 0 <= outcome.retry_after <= 3600
    assert outcome.message.isprintable()


# -- what an answer over gRPC means ------------------------------------------------------------------


def said(**outcome: Any) -> Reply:
    return Reply("OK", CarryOutResponse(**outcome).SerializeToString())


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        ("CANCELLED", "unknown", "grpc_cancelled"), ("UNKNOWN", "unknown", "grpc_unknown"),
        ("INVALID_ARGUMENT", "failed", "grpc_invalid_argument"), ("DEADLINE_EXCEEDED", "unknown", "timeout"),
        ("NOT_FOUND", "misconfigured", "grpc_not_found"), ("ALREADY_EXISTS", "failed", "grpc_already_exists"),
        ("PERMISSION_DENIED", "misconfigured", "grpc_permission_denied"),
        ("RESOURCE_EXHAUSTED", "unknown", "grpc_resource_exhausted"),
        ("FAILED_PRECONDITION", "failed", "grpc_failed_precondition"), ("ABORTED", "failed", "grpc_aborted"),
        ("OUT_OF_RANGE", "failed", "grpc_out_of_range"), ("UNIMPLEMENTED", "misconfigured", "grpc_unimplemented"),
        ("INTERNAL", "unknown", "grpc_internal"), ("UNAVAILABLE", "unknown", "broken"),
        ("DATA_LOSS", "unknown", "grpc_data_loss"), ("UNAUTHENTICATED", "misconfigured", "grpc_unauthenticated"),
    ],
)  # fmt: skip
def test_what_a_status_of_grpc_means(status: str, kind: str, code: str) -> None:
    outcome = meaning_of_reply(Reply(status))
    assert (outcome.kind, outcome.code, outcome.message) == (kind, code, f"It answered {status}.")
    named = meaning_of_reply(Reply(status, message="No\nway.", reason="WHY\x00" * 100))
    assert (named.kind, named.message, named.code) == (kind, "No way.", ("WHY " * 100)[:100])


def test_who_is_asked_too_much_says_when_to_come_again() -> None:
    outcome = meaning_of_reply(Reply("RESOURCE_EXHAUSTED", message="Slower.", retry_after=7.5))
    assert (outcome.kind, outcome.code, outcome.retry_after) == ("refused", "too_many_requests", 7.5)
    assert meaning_of_reply(Reply("UNAVAILABLE", retry_after=7.5)).retry_after == 7.5


@pytest.mark.parametrize(
    ("seconds", "believed"),
    [(None, None), (0.0, 0.0), (0.5, 0.5), (-1.0, 0.0), (7200.0, 3600.0), (float("inf"), 3600.0),
     (float("-inf"), 0.0), (float("nan"), None)],
)  # fmt: skip
def test_no_delay_is_longer_than_is_sensible(seconds: float | None, believed: float | None) -> None:
    outcome = meaning_of_reply(said(ongoing={"retry_after_seconds": seconds}))
    assert (outcome.kind, outcome.retry_after) == ("ongoing", believed)


def test_answers_over_grpc() -> None:
    found = meaning_of_reply(said(succeeded={"output": b'{"id": 9007199254740993}'}))
    assert (found.kind, found.output) == ("succeeded", {"id": 9007199254740993})
    assert (meaning_of_reply(said(succeeded={})).kind, meaning_of_reply(said(succeeded={})).output) == (
        "succeeded", None,
    )  # fmt: skip
    assert meaning_of_reply(said(accepted={})).kind == "accepted"
    found = meaning_of_reply(said(failed={"code": "sold\nout" + "x" * 200, "message": "m" * 5000}))
    assert (found.kind, found.code, found.message) == ("failed", "sold out" + "x" * 92, "m" * 1000)
    found = meaning_of_reply(said(failed={}))
    assert (found.kind, found.code) == ("failed", "failed")


@pytest.mark.parametrize("body", [b"", b"\xff", b"\xfa\x01\x01x", b"\x0a\x05{", b"\x1f\x8b\x08\x00"])
def test_what_says_nothing_means_that_nobody_knows(body: bytes) -> None:
    outcome = meaning_of_reply(Reply("OK", body))
    assert (outcome.kind, outcome.code) == ("unknown", "bad_body")


@pytest.mark.parametrize(
    "body", [b"{", b"NaN", b'"\xff"', b"[" * 400 + b"]" * 400, b" " * (1 << 20) + b"1", b'"\\u0000"']
)
def test_nobody_knows_what_became_of_a_success_over_grpc_that_cannot_be_read(body: bytes) -> None:
    outcome = meaning_of_reply(said(succeeded={"output": body}))
    assert (outcome.kind, outcome.code, outcome.output) == ("unknown", "bad_body", None)


@given(st.binary(max_size=40))
@FEW
def test_every_answer_over_grpc_has_a_meaning(body: bytes) -> None:
    assert meaning_of_reply(Reply("OK", body)).kind in KINDS


# -- what is sent ------------------------------------------------------------------------------------

PLACE = Place("i", "shop.example", 8080, "http", 1, False)


def attempt(**values: Any) -> Attempt:
    usual: dict[str, Any] = {
        "namespace": Namespace("prod", 1), "saga_id": "s1", "saga_name": "order", "step": "pay", "op": "action",
        "number": 2, "service": "shop", "path": "pay/now", "timeout": 30.0, "key": "s1.pay.a", "body": b'{"input":1}',
        "outcome": None, "fencing_tokens": None, "correlation_id": None,
    }  # fmt: skip
    return Attempt(**{**usual, **values})


def sent(place: Place = PLACE, **values: Any) -> tuple[str, dict[str, str], bytes]:
    head, _, body = request(attempt(**values), place).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    pairs = [line.split(": ", 1) for line in lines]
    assert len({name.lower() for name, _ in pairs}) == len(pairs), "a header comes twice"
    return first, dict(pairs), body


def test_request_says_everything_that_the_protocol_promises() -> None:
    first, headers, body = sent()
    assert first == "POST /pay/now HTTP/1.1"
    assert headers.pop("Syros-Task-Token") == participants.token_for("prod", "s1", "pay", "action", 2)
    assert headers == {
        "Host": "shop.example:8080", "Content-Type": "application/json", "Accept": "application/json",
        "User-Agent": "syros", "Content-Length": "11", "Idempotency-Key": "s1.pay.a", "Syros-Namespace": "prod",
        "Syros-Saga-Id": "s1", "Syros-Saga-Name": "order", "Syros-Step": "pay", "Syros-Op": "action",
        "Syros-Attempt": "2", "Syros-Deadline": "2026-01-01T00:00:30+00:00",
    }  # fmt: skip
    assert body == b'{"input":1}'


def test_message_says_everything_that_the_protocol_promises() -> None:
    found = CarryOutRequest.FromString(message(attempt(fencing_tokens={"a": 7, "b": 1 << 60})))
    assert found == CarryOutRequest(
        idempotency_key="s1.pay.a", namespace="prod", saga_id="s1", saga_name="order", step="pay", op="action",
        action="pay/now", attempt=2, deadline={"seconds": int(NOW) + 30}, fencing_tokens={"a": 7, "b": 1 << 60},
        task_token=participants.token_for("prod", "s1", "pay", "action", 2), body=b'{"input":1}',
    )  # fmt: skip
    undo = CarryOutRequest.FromString(message(attempt(op="compensate", outcome="unknown")))
    assert (undo.outcome, dict(undo.fencing_tokens)) == ("unknown", {})


def test_compensation_says_what_is_known_of_the_action() -> None:
    assert sent(op="compensate", outcome="unknown")[1]["Syros-Outcome"] == "unknown"


@pytest.mark.parametrize(
    ("tokens", "said"), [(None, None), ({}, None), ({"a": 7}, "7"), ({"a": 7, "b": 8}, None)]
)
def test_fencing_token_is_said_where_there_is_one(tokens: dict[str, int] | None, said: str | None) -> None:
    assert sent(fencing_tokens=tokens)[1].get("Syros-Fencing-Token") == said


def test_ipv6_host_is_in_brackets() -> None:
    assert sent(Place("i", "2001:db8::1", 80, "http", 1, True))[1]["Host"] == "[2001:db8::1]:80"


def test_path_begins_with_one_slash() -> None:
    assert [sent(path=path)[0] for path in ("a", "/a", "//a")] == ["POST /a HTTP/1.1"] * 3


def test_length_is_in_bytes() -> None:
    assert sent(body='"ä"'.encode())[1]["Content-Length"] == "4"


def test_token_is_of_this_attempt_only() -> None:
    others: list[dict[str, Any]] = [
        {}, {"step": "ship"}, {"op": "compensate"}, {"number": 3}, {"saga_id": "s2"},
        {"namespace": Namespace("test", 2)},
    ]  # fmt: skip
    tokens = [sent(**each)[1]["Syros-Task-Token"] for each in others]
    assert len(set(tokens)) == len(tokens)
    assert tokens[0] == sent(path="other", body=b"1")[1]["Syros-Task-Token"]


@given(
    st.lists(
        st.text(st.sampled_from("a/.~_-9 :\r\n\t\x00\x85\u2028?#%ä"), min_size=1, max_size=8),
        min_size=4,
        max_size=4,
    )
)
@FEW
def test_nothing_that_is_let_in_can_add_a_header_or_a_request(texts: list[str]) -> None:
    try:
        path, name, step, host = (
            TypeAdapter(kind).validate_python(text)
            for kind, text in zip((Path, SagaName, StepName, Address), texts, strict=True)
        )
    except ValidationError:
        return
    first, headers, body = sent(Place("i", host, 1, "http", 1, False), path=path, saga_name=name, step=step)
    assert first.count(" ") == 2
    assert len(headers) == 14
    assert body == b'{"input":1}'


@pytest.mark.parametrize("kind", [Path, SagaName, StepName, Address])
@pytest.mark.parametrize(
    "text", ["a\r\nX: 1", "a\n", "a\r", "a b", "a\x00", "a\x85", "a\u2028", "a?b", "ä", ""]
)
def test_what_could_end_a_line_is_not_let_in(kind: Any, text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(text)


def test_signature_is_made_with_every_secret(settings: Any) -> None:
    settings.PARTICIPANT_SECRETS = ["old", "new"]
    stamp = str(int(NOW))
    signed = f"s1.pay.a.2.{stamp}.".encode() + b'{"input":1}'
    made = [b64encode(hmac.new(secret, signed, sha256).digest()).decode() for secret in (b"old", b"new")]
    headers = sent()[1]
    assert headers["webhook-id"] == "s1.pay.a.2"
    assert headers["webhook-timestamp"] == stamp
    assert headers["webhook-signature"] == f"v1,{made[0]} v1,{made[1]}"


def test_nothing_is_signed_without_a_secret() -> None:
    assert signature(attempt()) == []


# -- where to ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "2002:808:808::"]
)
def test_public_addresses_may_be_called(address: str) -> None:
    assert [is_allowed(ip_address(address), private) for private in (False, True)] == [True, True]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.9.9.9", "::1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd00::1",
                "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "192.0.2.1", "198.18.0.1", "240.0.0.1"],
)  # fmt: skip
def test_private_addresses_only_where_an_administrator_said_so(address: str) -> None:
    assert [is_allowed(ip_address(address), private) for private in (False, True)] == [False, True]


@pytest.mark.parametrize(
    "address", ["169.254.0.1", "169.254.169.254", "169.254.170.2", "100.100.100.200", "fd00:ec2::254", "fe80::1",
                "::ffff:169.254.169.254", "::ffff:100.100.100.200", "2002:a9fe:a9fe::", "224.0.0.1", "239.1.1.1",
                "ff02::1", "::ffff:224.0.0.1", "0.0.0.0", "::", "::ffff:0.0.0.0"],
)  # fmt: skip
def test_some_addresses_are_never_called(address: str) -> None:
    assert [is_allowed(ip_address(address), private) for private in (False, True)] == [False, False]


@pytest.mark.parametrize(
    "address", ["64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b:1::a9fe:a9fe", "::a9fe:a9fe"]
)
def test_private_addresses_behind_a_translator_are_not_called(address: str) -> None:
    assert not is_allowed(ip_address(address), False)
