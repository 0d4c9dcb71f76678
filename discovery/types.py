"""What the discovery operations take and answer."""

import re
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from core.types import MAX_NUMBER, Text

# In addresses of rows and in host names of answers: no slash, no colon.
ServiceName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
InstanceId = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")]
LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


def check_address(address: str) -> str:
    """An IP address, or a host name: one whose last label is a number is meant as an address."""
    *_, last = labels = address.removesuffix(".").split(".")
    if ":" in address or last.isdecimal():
        try:
            ip_address(address)
        except ValueError:
            raise PydanticCustomError("address", "no IP address, nor a host name") from None
    elif not all(LABEL.fullmatch(label) for label in labels):
        raise PydanticCustomError("address", "no IP address, nor a host name")
    return address


Address = Annotated[str, AfterValidator(check_address), Field(min_length=1, max_length=253)]
Port = Annotated[int, Field(ge=1, le=65535)]
Scheme = Literal["http", "https", "grpc", "grpcs"]
Ttl = Annotated[float, Field(ge=1, le=86400)]
Weight = Annotated[int, Field(ge=0, le=1000)]
Tags = Annotated[list[Text], Field(max_length=64)]
Incarnation = Annotated[int, Field(ge=1, le=MAX_NUMBER)]
Failover = Annotated[list[ServiceName], Field(max_length=8)]
Status = Literal["healthy", "failing", "maintenance", "expired"]
TTL = 15.0  # seconds, unless said


class Check(BaseModel):
    """How Syros itself finds out whether an instance is well."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["http", "tcp", "grpc"]
    # Printable ASCII without spaces: it becomes part of a request's head.
    path: Annotated[str, Field(max_length=255, pattern=r"^[!-~]*$")] = ""
    interval_seconds: Annotated[float, Field(ge=0.5, le=3600)] = 10.0
    timeout_seconds: Annotated[float, Field(ge=0.1, le=60)] = 5.0
    failures: Annotated[int, Field(ge=1, le=100)] = 3
    successes: Annotated[int, Field(ge=1, le=100)] = 2


Checks = Annotated[list[Check], Field(max_length=8)]


@dataclass(slots=True)
class CheckState:
    """A check and what it found: `pending` until it was tried, then `passing` or `failing` with a `message`."""

    kind: Literal["http", "tcp", "grpc"]
    path: str
    interval_seconds: float
    timeout_seconds: float
    failures: int
    successes: int
    state: Literal["pending", "passing", "failing"]
    message: str


@dataclass(slots=True)
class InstanceState:
    """An instance of a service, good until `expires_at`, which moves with every heartbeat.

    `healthy`: it is listed, and may be called. `status` and `reason` say how it is; one that is `protected` failed
    and is listed all the same, because too many others failed too. `incarnation` names this registration.
    """

    service: str
    instance_id: str
    address: str
    port: int
    scheme: Scheme
    tags: list[str]
    metadata: Any
    weight: int
    healthy: bool
    ttl_seconds: float
    registered_at: datetime
    expires_at: datetime
    incarnation: int
    session_id: str | None
    status: Status
    reason: str | None
    protected: bool
    changed_at: datetime
    checks: list[CheckState]


@dataclass(slots=True)
class ServiceState:
    """Instances of `service`: of the one that was asked for, or of the one that stands in for it. `position`: up to
    where the log was followed; wait from there for what changes next. `maintenance`: why all of it is taken out.
    `partial`: it has more instances than one answer holds, 1,000."""

    service: str
    instances: list[InstanceState]
    position: int
    maintenance: str | None
    partial: bool = False


@dataclass(slots=True)
class Reached:
    position: int


@dataclass(slots=True)
class Watched:
    """One of these: how the service is now, or how far the log has been followed."""

    service: ServiceState | None = None
    heartbeat: Reached | None = None


@dataclass(slots=True)
class ServiceSummary:
    service: str
    instances: int
    healthy: int
    protected: int
    maintenance: str | None


@dataclass(slots=True)
class Services:
    items: list[ServiceSummary]
    next_cursor: str | None


@dataclass(slots=True)
class Deregistered:
    service: str
    instance_id: str
    deregistered: bool


@dataclass(slots=True)
class Maintained:
    """Whether a service, or one instance of it, is taken out for maintenance, and why."""

    service: str
    instance_id: str | None
    enabled: bool
    reason: str | None
