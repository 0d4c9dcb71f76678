"""A refusal as gRPC says it: a status, Google's error details, and the problem object that every door gives."""

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from grpc.aio import ServicerContext as Context

from core.encoding import encode
from core.errors import SyrosError

CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    405: StatusCode.UNIMPLEMENTED,
    409: StatusCode.ABORTED,
    410: StatusCode.OUT_OF_RANGE,
    413: StatusCode.RESOURCE_EXHAUSTED,
    422: StatusCode.INVALID_ARGUMENT,
    429: StatusCode.RESOURCE_EXHAUSTED,
    500: StatusCode.INTERNAL,
    503: StatusCode.UNAVAILABLE,
}
# Clients take 8 KiB of metadata in all, where a problem stands twice, in base64.
PROBLEM_BYTES = 2000
ITEMS = 100  # of a list, before it is measured
MESSAGE_BYTES = 300  # may be percent-encoded


def code_of(error: SyrosError) -> StatusCode:
    """UNAVAILABLE invites every client library to send the call again, so only what changed nothing is called so."""
    if error.status == 503 and not error.retryable:
        return StatusCode.UNKNOWN
    return CODES.get(error.status, StatusCode.INTERNAL)


def refuse(context: Context, error: SyrosError, identity: str) -> None:
    """Make this error what the call ends with, once its handler returns."""
    problem = fitted(error.problem(identity))
    message = problem["detail"].encode()[:MESSAGE_BYTES].decode(errors="ignore")
    code = code_of(error)
    status = Status(code=code.value[0], message=message)
    for detail in details(error, problem):
        status.details.add().Pack(detail)
    context.set_code(code)
    context.set_details(message)
    context.set_trailing_metadata(
        (
            ("grpc-status-details-bin", status.SerializeToString()),
            ("syros-problem-bin", encode(problem)),
            ("syros-status", str(error.status)),
            ("x-request-id", identity),
        )
    )


def details(error: SyrosError, problem: dict[str, Any]) -> Iterator[Message]:
    about = {
        name: str(problem[name]) for name in error.extra if isinstance(problem.get(name), str | int | float)
    }
    yield ErrorInfo(reason=error.code.upper(), domain="syros", metadata=about)
    if errors := problem.get("errors"):
        field = BadRequest.FieldViolation
        yield BadRequest(
            field_violations=[
                field(field=e["pointer"], description=e["detail"], reason=e["code"].upper()) for e in errors
            ]
        )
    if seconds := error.headers.get("Retry-After"):
        found = RetryInfo()
        found.retry_delay.seconds = int(seconds)
        yield found
    yield RequestInfo(request_id=problem["request_id"])


def fitted(problem: dict[str, Any]) -> dict[str, Any]:
    """The problem, its lists shortened to what metadata can carry."""
    problem = {name: part[:ITEMS] if isinstance(part, list) else part for name, part in problem.items()}
    problem["detail"] = problem["detail"][:MESSAGE_BYTES]
    while len(encode(problem)) > PROBLEM_BYTES:
        lists = [name for name, part in problem.items() if isinstance(part, list) and part]
        if not lists:
            break
        longest = max(lists, key=lambda name: len(encode(problem[name])))
        problem[longest] = problem[longest][: len(problem[longest]) // 2]
    return problem
