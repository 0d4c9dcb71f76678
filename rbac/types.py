"""What access control takes and answers."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

Password = Annotated[str, Field(min_length=1, max_length=1024)]
Durability = Literal["durable", "volatile"]
NamespaceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,63}$", max_length=63)]
KeyId = Annotated[str, Field(pattern=r"^[0-9a-z]{12}$")]


@dataclass(slots=True)
class Tokens:
    """Where to go on: `access` for calls, `refresh` for the next pair. `token` is `access` again."""

    access: str
    refresh: str
    token: str
    token_type: str
    expires_in: int


@dataclass(slots=True)
class LoggedOut:
    logged_out: bool


@dataclass(slots=True)
class WhoAmI:
    principal: str
    namespace: str
    is_admin: bool


@dataclass(slots=True)
class Key:
    id: str
    name: str
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    is_active: bool


@dataclass(slots=True)
class NewKey:
    """A new key. `key` is shown this once."""

    id: str
    key: str
    name: str
    created_at: datetime
    expires_at: datetime | None


@dataclass(slots=True)
class Keys:
    items: list[Key]
    next_cursor: str | None


@dataclass(slots=True)
class NamespaceState:
    """A namespace. `locks`: where its locks are kept."""

    name: str
    locks: Durability
    created_at: datetime


@dataclass(slots=True)
class NamespaceList:
    items: list[NamespaceState]
    next_cursor: str | None
