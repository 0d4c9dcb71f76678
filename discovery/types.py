"""What the discovery operations take and answer."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from core.types import Text

# In addresses of rows and in host names of answers: no slash, no colon.
ServiceName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
InstanceId = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")]
Address = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._:-]+$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Scheme = Literal["http", "https", "grpc", "grpcs"]
Ttl = Annotated[float, Field(ge=1, le=86400)]
Weight = Annotated[int, Field(ge=0, le=1000)]
Tags = Annotated[list[Text], Field(max_length=64)]
TTL = 15.0  # seconds, unless said


@dataclass(slots=True)
class InstanceState:
    """An instance of a service, healthy until `expires_at`, which moves with every heartbeat."""

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


@dataclass(slots=True)
class ServiceState:
    service: str
    instances: list[InstanceState]


@dataclass(slots=True)
class ServiceSummary:
    service: str
    instances: int
    healthy: int


@dataclass(slots=True)
class Services:
    items: list[ServiceSummary]
    next_cursor: str | None


@dataclass(slots=True)
class Deregistered:
    service: str
    instance_id: str
    deregistered: bool
