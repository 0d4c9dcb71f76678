"""What can go wrong, as clients see it: every refusal is a class with a code, a status and a sentence."""

import re
from collections.abc import Callable
from typing import Any, ClassVar


def snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


class SyrosError(Exception):
    """The request could not be carried out."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False
    headers: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "code" not in cls.__dict__:
            cls.code = snake_case(cls.__name__)
        if "title" not in cls.__dict__:
            cls.title = cls.code.replace("_", " ").capitalize()

    def __init__(self, detail: str | None = None, **extra: Any) -> None:
        self.detail = detail or (type(self).__doc__ or "").strip().split("\n")[0]
        self.extra = extra
        # What a refusal leaves in the log all the same, e.g. a fence violation: called with the
        # transaction after the refused command has been undone.
        self.aftermath: Callable[[Any], None] | None = None
        super().__init__(self.detail)

    @classmethod
    def doc(cls) -> str:
        return " ".join((cls.__doc__ or "").split())

    def problem(self, request_id: str = "") -> dict[str, Any]:
        """The error as an RFC 9457 problem object."""
        return {
            "type": f"/api/docs/errors#{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
            "retryable": self.retryable,
            **self.extra,
        }


class Internal(SyrosError):
    """Something in Syros broke. The request id leads to the log entry."""


class Malformed(SyrosError):
    """The request is not well-formed."""

    status = 400


class Unauthenticated(SyrosError):
    """Credentials are missing, wrong or expired."""

    status = 401
    headers = {"WWW-Authenticate": "Bearer"}


class Forbidden(SyrosError):
    """The caller may not do this."""

    status = 403


class NotFound(SyrosError):
    """There is no such thing here."""

    status = 404


class MethodNotAllowed(SyrosError):
    """This address does not answer that method."""

    status = 405


class NotAcceptable(SyrosError):
    """This address has no such representation."""

    status = 406


class Conflict(SyrosError):
    """The present state does not allow this."""

    status = 409


class Gone(SyrosError):
    """It was here, and it is not any more."""

    status = 410


class TooLarge(SyrosError):
    """The body is larger than this address takes."""

    status = 413


class TooComplex(Malformed):
    """It asks for too much at once: split it."""


class TooManyOperations(SyrosError):
    """This connection has as many operations under way as it may: let some of them end first."""

    status = 429


class UnsupportedMediaType(SyrosError):
    """The body is not JSON."""

    status = 415


class Invalid(SyrosError):
    """Some fields have the wrong type or value; `errors` names every one of them."""

    status = 422

    def __init__(self, errors: list[dict[str, str]], detail: str | None = None) -> None:
        names = ", ".join(sorted({error["pointer"] for error in errors}))
        super().__init__(detail or f"Wrong type or value: {names}", errors=errors)


class ReservedName(Invalid):
    """A route has this name, so nothing else can have it."""


class IdempotencyKeyReused(SyrosError):
    """This Idempotency-Key was used before with another body."""

    status = 422


class FenceStale(Conflict):
    """The fencing token is not the lock's current one, or the lock is not held."""


class NotInVolatileNamespace(Conflict):
    """The locks of this namespace are volatile, and this is promised by durable ones only."""


class Unavailable(SyrosError):
    """The database is away or the queue is full; nothing was changed. Try again."""

    status = 503
    retryable = True
    headers = {"Retry-After": "1"}


class OutcomeUnknown(SyrosError):
    """The database went away while committing: the change may or may not have been made.

    Trying again is safe with the same Idempotency-Key or the same event ids, and only so.
    """

    status = 503
    headers = {"Retry-After": "1"}
