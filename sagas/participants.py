"""What participants are asked, over HTTP and over gRPC, and what their answers mean.

The protocol is in docs/sagas.md. What an answer means for a step is decided here and nowhere else: did it happen, did
it not, or does nobody know.
"""

import asyncio
import hmac
from base64 import b64decode, b64encode
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from hashlib import sha256
from math import isnan
from random import random
from time import monotonic, time
from typing import Any

import orjson
from django.conf import settings
from google.protobuf.message import DecodeError

from core.callers import Namespace
from core.types import holds_nul
from discovery.addresses import Addresses, NotSent
from discovery.directory import Place, directory
from discovery.grpc_client import Client as GrpcClient
from discovery.grpc_client import Reply
from discovery.http import MAX_BODY, Broken, Response
from discovery.http import Client as HttpClient
from sagas.participant_messages import METHOD
from sagas.participant_messages import Request as CarryOutRequest
from sagas.participant_messages import Response as CarryOutResponse
from sagas.rules import Outcome

MAX_RETRY_AFTER = 3600.0  # seconds
MAX_DEPTH = 64  # levels of an answer's JSON
FAILURES = 20  # running, of a service that does not answer, until it is left alone
REST = 2.0  # seconds that it is left alone for
SILENCE = ("not_sent", "timeout", "broken")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call that is to be made. `timeout` in seconds; `body`, JSON."""

    namespace: Namespace
    saga_id: str
    saga_name: str
    step: str
    op: str
    number: int
    service: str
    path: str
    timeout: float
    key: str
    body: bytes
    outcome: str | None
    fencing_tokens: dict[str, int] | None
    correlation_id: str | None
    traceparent: str | None = None

    @property
    def service_address(self) -> str:
        return f"{self.namespace.name}/{self.service}"

    @property
    def saga(self) -> str:
        return f"{self.namespace.name}/{self.saga_id}"


addresses = Addresses()
http_client, grpc_client = HttpClient(addresses), GrpcClient(addresses)


class Circuits:
    """Services that answer nothing are left alone for a while: their steps wait, and no attempt is burnt. Then one call
    tries, and the others follow if it is answered."""

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}
        self._rests_until: dict[str, float] = {}

    def rest(self, service: str) -> float:
        """Seconds to leave it alone; 0, to call."""
        until = self._rests_until.get(service, 0.0)
        if not until:
            return 0.0
        if (left := until - monotonic()) > 0:
            return left + random() * REST / 4
        self._rests_until[service] = monotonic() + REST  # this call is the one that tries
        return 0.0

    def heard(self, service: str, outcome: Outcome) -> None:
        if outcome.code not in SILENCE:
            self._failures.pop(service, None)
            self._rests_until.pop(service, None)
            return
        self._failures[service] = self._failures.get(service, 0) + 1
        if self._failures[service] >= FAILURES:
            self._rests_until[service] = monotonic() + REST


circuits = Circuits()


async def call(attempt: Attempt) -> Outcome:
    """Make the call; what came of it. Whatever the participant does, this ends, and harms nobody else."""
    place = directory.pick(attempt.service_address)
    if place is None:
        return Outcome("refused", code="no_instance", message=f"No instance of {attempt.service} is healthy.")
    if rest := circuits.rest(attempt.service_address):
        return Outcome("deferred", code="circuit_open", retry_after=rest)
    outcome = await call_at(place, attempt)
    circuits.heard(attempt.service_address, outcome)
    return outcome


async def call_at(place: Place, attempt: Attempt) -> Outcome:
    ask = ask_over_grpc if place.scheme in ("grpc", "grpcs") else ask_over_http
    try:
        return await ask(place, attempt)
    except NotSent as error:
        return Outcome("refused", code="not_sent", message=str(error))
    except Broken as error:
        return Outcome("unknown", code="broken", message=str(error))
    except TimeoutError:
        return Outcome("unknown", code="timeout", message=f"No answer within {attempt.timeout:g} s.")


async def ask_over_http(place: Place, attempt: Attempt) -> Outcome:
    """Raises: NotSent, Broken, TimeoutError."""
    tls = place.scheme == "https"
    async with asyncio.timeout(attempt.timeout):
        response = await http_client.send(
            place.host, place.port, tls, place.may_be_private, request(attempt, place)
        )
    return meaning(response)


async def ask_over_grpc(place: Place, attempt: Attempt) -> Outcome:
    """Raises: NotSent, Broken, TimeoutError."""
    reply = await grpc_client.ask(
        place.host, place.port, place.scheme == "grpcs", place.may_be_private, attempt.timeout, METHOD,
        message(attempt), [*traced(attempt), *signature(attempt)],
    )  # fmt: skip
    return meaning_of_reply(reply)


def request(attempt: Attempt, place: Place) -> bytes:
    host = f"[{place.host}]" if ":" in place.host else place.host
    deadline = datetime.fromtimestamp(time() + attempt.timeout, UTC).isoformat()
    head = [
        f"POST /{attempt.path.lstrip('/')} HTTP/1.1",
        f"Host: {host}:{place.port}",
        "Content-Type: application/json",
        "Accept: application/json",
        "User-Agent: syros",
        f"Content-Length: {len(attempt.body)}",
        f"Idempotency-Key: {attempt.key}",
        f"Syros-Namespace: {attempt.namespace.name}",
        f"Syros-Saga-Id: {attempt.saga_id}",
        f"Syros-Saga-Name: {attempt.saga_name}",
        f"Syros-Step: {attempt.step}",
        f"Syros-Op: {attempt.op}",
        f"Syros-Attempt: {attempt.number}",
        f"Syros-Deadline: {deadline}",
        f"Syros-Task-Token: {task_token(attempt)}",
    ]
    if attempt.outcome:
        head.append(f"Syros-Outcome: {attempt.outcome}")
    if attempt.fencing_tokens and len(attempt.fencing_tokens) == 1:
        head.append(f"Syros-Fencing-Token: {next(iter(attempt.fencing_tokens.values()))}")
    head += [f"{name}: {value}" for name, value in (*traced(attempt), *signature(attempt))]
    return "\r\n".join([*head, "", ""]).encode() + attempt.body


def message(attempt: Attempt) -> bytes:
    """The same, for gRPC."""
    found = CarryOutRequest(
        idempotency_key=attempt.key, namespace=attempt.namespace.name, saga_id=attempt.saga_id,
        saga_name=attempt.saga_name, step=attempt.step, op=attempt.op, action=attempt.path, attempt=attempt.number,
        task_token=task_token(attempt), outcome=attempt.outcome, fencing_tokens=attempt.fencing_tokens,
        body=attempt.body,
    )  # fmt: skip
    found.deadline.FromNanoseconds(int((time() + attempt.timeout) * 1e9))
    return bytes(found.SerializeToString())


def traced(attempt: Attempt) -> list[tuple[str, str]]:
    """What says which trace the call belongs to, as W3C has it."""
    return [("traceparent", attempt.traceparent)] if attempt.traceparent else []


def signature(attempt: Attempt) -> list[tuple[str, str]]:
    """As https://www.standardwebhooks.com says, with every secret that is set: so that one can be replaced."""
    if not settings.PARTICIPANT_SECRETS:
        return []
    stamp, name = str(int(time())), f"{attempt.key}.{attempt.number}"
    signed = f"{name}.{stamp}.".encode() + attempt.body
    found = (hmac.new(key_of(secret), signed, sha256).digest() for secret in settings.PARTICIPANT_SECRETS)
    listed = " ".join(f"v1,{b64encode(each).decode()}" for each in found)
    return [("webhook-id", name), ("webhook-timestamp", stamp), ("webhook-signature", listed)]


def key_of(secret: str) -> bytes:
    """As Standard Webhooks writes secrets, `whsec_` and base64; any other text is the key itself."""
    if secret.startswith("whsec_"):
        return b64decode(secret.removeprefix("whsec_"))
    return secret.encode()


def task_token(attempt: Attempt) -> str:
    """What proves, later, that who says how a step ended was asked to carry it out."""
    return token_for(attempt.namespace.name, attempt.saga_id, attempt.step, attempt.op, attempt.number)


def token_for(namespace: str, saga_id: str, step: str, op: str, number: int) -> str:
    named = f"{namespace}/{saga_id}.{step}.{op}.{number}"
    return hmac.new(settings.SECRET_KEY.encode(), f"task:{named}".encode(), sha256).hexdigest()[:40]


# -- what an answer means ----------------------------------------------------------------------------

DONE = {200, 201, 204}
MISCONFIGURED = {401, 403, 404, 405}
UNKNOWN = {408}
# Of gRPC; after every other status nobody knows. The first kind is said by participants only, never by what is between.
STATUSES = {
    "INVALID_ARGUMENT": "failed",
    "ALREADY_EXISTS": "failed",
    "FAILED_PRECONDITION": "failed",
    "ABORTED": "failed",
    "OUT_OF_RANGE": "failed",
    "UNAUTHENTICATED": "misconfigured",
    "PERMISSION_DENIED": "misconfigured",
    "NOT_FOUND": "misconfigured",  # as 404: a participant says so of an action that it does not have
    "UNIMPLEMENTED": "misconfigured",
}
SILENT = {"UNAVAILABLE": "broken", "DEADLINE_EXCEEDED": "timeout"}


def meaning(response: Response) -> Outcome:
    status, retry_after = response.status, retry_after_of(response)
    said = response.headers.get(b"syros-status", b"").lower()
    if status == 202:
        return Outcome("accepted")
    if status == 425 or (status in DONE and said == b"ongoing"):
        return Outcome("ongoing", retry_after=retry_after)
    if status == 429:
        return Outcome(
            "refused", code="too_many_requests", message=words(response)[1], retry_after=retry_after
        )
    code, message = words(response) if status not in DONE or said == b"failed" else (None, "")
    if said == b"failed" and status < 500:
        return Outcome("failed", code=code, message=message)
    if status in DONE:
        return output(response.body)
    if status in MISCONFIGURED:
        return Outcome(
            "misconfigured", code=code or f"http_{status}", message=message, retry_after=retry_after
        )
    if 400 <= status < 500 and status not in UNKNOWN:
        return Outcome("failed", code=code or f"http_{status}", message=message)
    return Outcome("unknown", code=code or f"http_{status}", message=message, retry_after=retry_after)


def meaning_of_reply(reply: Reply) -> Outcome:
    """Of what grpcio says by itself nothing is in the table but, for a proxy that speaks HTTP, some of what is set up
    wrongly. RESOURCE_EXHAUSTED it says itself, of an answer that is too large: so it must come with a RetryInfo."""
    status, retry_after = reply.status, bounded(reply.retry_after)
    if status == "OK":
        return meaning_of_answer(reply.body)
    text = clean(reply.message) or f"It answered {status}."
    if status == "RESOURCE_EXHAUSTED" and retry_after is not None:
        return Outcome("refused", code="too_many_requests", message=text, retry_after=retry_after)
    code = clean(reply.reason)[:100] if reply.reason else SILENT.get(status, f"grpc_{status.lower()}")
    return Outcome(STATUSES.get(status, "unknown"), code=code, message=text, retry_after=retry_after)


def meaning_of_answer(body: bytes) -> Outcome:
    try:
        answer = CarryOutResponse.FromString(body)
    except DecodeError:
        return Outcome("unknown", code="bad_body", message="The answer is no CarryOutResponse.")
    kind = answer.WhichOneof("outcome")
    if kind == "succeeded":
        return output(answer.succeeded.output)
    if kind == "accepted":
        return Outcome("accepted")
    if kind == "ongoing":
        asked = answer.ongoing
        seconds = asked.retry_after_seconds if asked.HasField("retry_after_seconds") else None
        return Outcome("ongoing", retry_after=bounded(seconds))
    if kind == "failed":
        code, text = clean(answer.failed.code)[:100], clean(answer.failed.message)
        return Outcome("failed", code=code or "failed", message=text or "It answered failed.")
    return Outcome("unknown", code="bad_body", message="The answer says nothing that is known here.")


def output(body: bytes) -> Outcome:
    """It says that it is done; but what it answers must be read, or nobody knows what came of it."""
    if not body.strip():
        return Outcome("succeeded")
    if len(body) > MAX_BODY:
        return Outcome("unknown", code="bad_body", message=f"The answer is larger than {MAX_BODY} bytes.")
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return Outcome("unknown", code="bad_body", message="The answer's body is no JSON.")
    if b"\\u0000" in body and holds_nul(found):
        return Outcome("unknown", code="bad_body", message="The answer's body has NUL characters.")
    if is_deep(found):
        return Outcome(
            "unknown", code="bad_body", message=f"The answer's body nests deeper than {MAX_DEPTH}."
        )
    return Outcome("succeeded", found)


def is_deep(value: Any, left: int = MAX_DEPTH) -> bool:
    """Does it nest deeper than what can be stored?"""
    if not isinstance(value, dict | list):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return left == 0 or any(is_deep(part, left - 1) for part in parts)


def words(response: Response) -> tuple[str | None, str]:
    """The code and the sentence of a problem (RFC 9457), or as much of them as there is."""
    try:
        found: Any = orjson.loads(response.body) if response.body else {}
    except orjson.JSONDecodeError:
        found = {}
    if not isinstance(found, dict):
        found = {}
    text = (
        found.get("detail") or found.get("title") or found.get("message") or f"It answered {response.status}."
    )
    code = found.get("code")
    return (clean(code)[:100] if isinstance(code, str) else None), clean(str(text))


def clean(text: str) -> str:
    """Without what no PostgreSQL text may hold."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:1000])


def retry_after_of(response: Response) -> float | None:
    """Seconds until it wants to be asked again, as a number or as a date says."""
    text = response.headers.get(b"retry-after", b"").decode("latin-1").strip()
    try:
        seconds = (
            float(text)
            if text.replace(".", "", 1).isdigit()
            else parsedate_to_datetime(text).timestamp() - time()
        )
    except (ValueError, TypeError, OverflowError):
        return None
    return bounded(seconds)


def bounded(seconds: float | None) -> float | None:
    """A delay of which no more is believed than is sensible."""
    return None if seconds is None or isnan(seconds) else min(max(seconds, 0.0), MAX_RETRY_AFTER)
