"""The access operations, and how a credential is told."""

import hmac
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Annotated, Any, cast

from django.conf import settings
from django.contrib.auth import authenticate
from django.contrib.auth.models import User
from django.db.models.functions import Collate
from django.utils import timezone
from pydantic import Field
from rest_framework_simplejwt.exceptions import TokenError
from rest_framework_simplejwt.tokens import AccessToken, RefreshToken

from core.batch import Transaction
from core.callers import Call, Caller, Namespace, authenticator, namespaces, no_namespace
from core.database import rows
from core.models import Namespace as NamespaceRow
from core.operations import command, query, registry
from core.runtime import runtime
from core.tail import ACCESS
from core.types import Cursor, Limit, Prefix, Text, encode_cursor
from rbac import keys
from rbac.errors import ApiKeyNotFound, TokenInvalid, WrongCredentials
from rbac.models import ApiKey
from rbac.types import (
    Durability,
    Key,
    KeyId,
    Keys,
    LoggedOut,
    NamespaceList,
    NamespaceName,
    NamespaceState,
    NewKey,
    Password,
    Tokens,
    WhoAmI,
)  # fmt: skip

# -- credentials -------------------------------------------------------------------------------------


@authenticator
async def by_key(credentials: Sequence[str]) -> dict[str, Caller]:
    """The callers of API keys that are neither revoked nor expired."""
    ids = {credential: key_id for credential in credentials if (key_id := keys.id_of(credential))}
    if not ids:
        return {}
    found = await rows(
        "select key_id, id, digest from rbac_apikey where key_id = any(%s) and revoked_at is null "
        "and (expires_at is null or expires_at > clock_timestamp())",
        [list(set(ids.values()))],
    )
    kept = {key_id: (place.partition("/")[0], digest) for key_id, place, digest in found}
    return {
        credential: Caller(f"key:{key_id}", namespace=kept[key_id][0], is_confined=True)
        for credential, key_id in ids.items()
        if key_id in kept
        and hmac.compare_digest(kept[key_id][1], keys.digest(credential, settings.API_KEY_PEPPER))
    }


@authenticator
async def by_token(credentials: Sequence[str]) -> dict[str, Caller]:
    """The users of access tokens whose accounts are active."""
    users = {credential: user for credential in credentials if (user := user_of(credential)) is not None}
    if not users:
        return {}
    found = await rows(
        "select id, username, is_staff from auth_user where id = any(%s) and is_active",
        [list(set(users.values()))],
    )
    callers = {user: Caller(f"user:{name}", is_admin=is_staff) for user, name, is_staff in found}
    return {credential: callers[user] for credential, user in users.items() if user in callers}


def user_of(token: str) -> int | None:
    """The id of the user that a well-formed access token names, if it has not run out."""
    if token.count(".") != 2:
        return None
    try:
        return int(AccessToken(token)["sub"])  # type: ignore[arg-type]
    except (TokenError, KeyError):
        return None


# -- tokens ------------------------------------------------------------------------------------------


def pair(refresh: RefreshToken) -> Tokens:
    access = str(refresh.access_token)
    seconds = int(refresh.access_token.lifetime.total_seconds())
    return Tokens(access, str(refresh), access, "Bearer", seconds)


@query("POST auth/login", name="auth.login", returns=Tokens, anonymous=True, changes=True)
def login(call: Call, *, username: Text, password: Password) -> Tokens:
    """Exchange a username and password for an access token (15 minutes) and a refresh token (a day).

    Errors: `wrong_credentials` (401).
    """
    user = authenticate(username=username, password=password)
    if not isinstance(user, User):
        raise WrongCredentials
    return pair(RefreshToken.for_user(user))


@query("POST auth/refresh", name="auth.refresh", returns=Tokens, anonymous=True, changes=True)
def refresh(call: Call, *, refresh: Annotated[str, Field(min_length=1, max_length=4096)]) -> Tokens:
    """Exchange a refresh token for a new access token.

    Errors: `token_invalid` (401).
    """
    token = read_refresh(refresh)
    if not User.objects.filter(pk=int(token["sub"]), is_active=True).exists():
        raise TokenInvalid
    return pair(token)


@query("POST auth/logout", name="auth.logout", returns=LoggedOut, anonymous=True, changes=True)
def logout(call: Call, *, refresh: Annotated[str, Field(min_length=1, max_length=4096)]) -> LoggedOut:
    """End a session: its refresh token is good no more. Access tokens run out by themselves.

    Errors: `token_invalid` (401).
    """
    read_refresh(refresh).blacklist()
    return LoggedOut(True)


def read_refresh(token: str) -> RefreshToken:
    try:
        return RefreshToken(token)  # type: ignore[arg-type]
    except TokenError:
        raise TokenInvalid from None


@query("GET auth/whoami", name="auth.whoami", returns=WhoAmI, hot=True)
async def whoami(call: Call) -> WhoAmI:
    """Who you are to Syros, and the namespace you work in."""
    return WhoAmI(call.caller.principal, call.namespace.name, call.caller.is_admin)


# -- API keys ----------------------------------------------------------------------------------------


@command(
    "POST auth/api-keys",
    name="api_keys.create",
    returns=NewKey,
    status=201,
    admin=True,
    secret=["key"],
)
def create(
    tx: Transaction,
    *,
    name: Text,
    expires_in_days: Annotated[float | None, Field(gt=0, le=3650)] = None,
) -> dict[str, Any]:
    """Make an API key for this namespace. The answer shows the key, once: only its HMAC is kept.

    A replay by Idempotency-Key answers without the key.
    """
    key, key_id = keys.new_key()
    expires_at = tx.now + timedelta(days=expires_in_days) if expires_in_days else None
    tx.add(
        ApiKey,
        key_id,
        key_id=key_id,
        title=name,
        digest=keys.digest(key, settings.API_KEY_PEPPER),
        created_by=tx.call.caller.principal,
        created_at=tx.now,
        expires_at=expires_at,
    )
    tx.emit(tx.stream(ACCESS), "api_key.created", {"id": key_id, "name": name, "expires_at": expires_at})
    return {"id": key_id, "key": key, "name": name, "created_at": tx.now, "expires_at": expires_at}


@command(
    "DELETE auth/api-keys/{key_id}",
    name="api_keys.revoke",
    returns=Key,
    admin=True,
    aliases=["POST auth/api-keys/{key_id}/revoke", "DELETE auth/api-keys/{key_id}/revoke"],
    touches=lambda params: [(ApiKey, params["key_id"])],
)
def revoke(tx: Transaction, *, key_id: KeyId) -> Key:
    """Revoke an API key. It is refused everywhere within 5 seconds; revoking it again changes nothing.

    Errors: `api_key_not_found` (404).
    """
    key = tx.get(ApiKey, key_id)
    if key is None:
        raise ApiKeyNotFound
    if key.revoked_at is None:
        key.revoked_at = tx.now
        tx.emit(tx.stream(ACCESS), "api_key.revoked", {"id": key_id, "name": key.title})
    return as_key(key)


@query("GET auth/api-keys", name="api_keys.find", returns=Keys, admin=True)
def find(call: Call, *, limit: Limit = 50, cursor: Cursor | None = None) -> Keys:
    """The API keys of this namespace, revoked ones included, without their secrets."""
    mine = ApiKey.objects.filter(id__startswith=f"{call.namespace.name}/", id__gt=cursor or "")
    found = list(mine.order_by("id")[: limit + 1])
    more = found[limit - 1].id if len(found) > limit else None
    return Keys([as_key(key) for key in found[:limit]], more and encode_cursor(more))


def as_key(key: ApiKey) -> Key:
    live = key.revoked_at is None and (key.expires_at is None or key.expires_at > timezone.now())
    return Key(key.key_id, key.title, key.created_by, key.created_at, key.expires_at, key.revoked_at, live)


# -- namespaces --------------------------------------------------------------------------------------

# Asked before the locks of a namespace are kept elsewhere: each raises what stands against it.
before_switching: list[Callable[[Namespace], Awaitable[None]]] = []
# The epoch rises where the setting becomes another, so that tokens rise over the switch too.
PUT = """with known as (select locks from core_namespace where name = %(name)s),
raised as (update core_cluster set epoch = epoch + 1 where exists (select from known where locks <> %(locks)s))
insert into core_namespace (name, floor, locks) values (%(name)s, 0, %(locks)s)
on conflict (name) do update set locks = excluded.locks returning number, created_at"""


@query("PUT namespaces/{name}", name="namespaces.put", returns=NamespaceState, admin=True, changes=True)
async def put(call: Call, *, name: NamespaceName, locks: Durability = "durable") -> NamespaceState:
    """Make a namespace, or say where its locks are kept: `durable` in PostgreSQL, `volatile` in Redis.

    What volatile locks do not promise is in docs/volatile-locks.md. The setting reaches every process within 5 seconds;
    let nobody use the namespace meanwhile.

    Errors: `locks_are_held` (409), when the setting would become another.
    """
    known = await namespaces.find(name)
    if known and known.volatile != (locks == "volatile"):
        for check in before_switching:
            await check(known)
    ((number, created_at),) = await rows(PUT, {"name": name, "locks": locks})
    there = Call(call.caller, Namespace(name, number), call.request_id, correlation_id=call.correlation_id)
    await runtime.carry_out(registry["namespaces.note"], there, {"locks": locks})
    return NamespaceState(name, locks, created_at)


@command(name="namespaces.note")
def note(tx: Transaction, *, locks: str) -> None:
    """Write into a namespace's log that it was made or set; from there every process hears of it."""
    tx.emit(tx.stream(ACCESS), "namespace.put", {"name": tx.call.namespace.name, "locks": locks})


@query("GET namespaces/{name}", name="namespaces.get", returns=NamespaceState, admin=True)
def look(call: Call, *, name: NamespaceName) -> NamespaceState:
    """A namespace and where its locks are kept.

    Errors: `not_found` (404).
    """
    found = NamespaceRow.objects.filter(name=name).first()
    if found is None:
        raise no_namespace(name)
    return as_namespace(found)


@query("GET namespaces", name="namespaces.find", returns=NamespaceList, admin=True)
def list_namespaces(
    call: Call, *, prefix: Prefix = "", limit: Limit = 50, cursor: Cursor | None = None
) -> NamespaceList:
    """The namespaces there are, by name."""
    named = NamespaceRow.objects.annotate(key=Collate("name", "C")).filter(name__startswith=prefix)
    found = list(named.filter(key__gt=cursor or "").order_by("key")[: limit + 1])
    more = found[limit - 1].name if len(found) > limit else None
    return NamespaceList([as_namespace(each) for each in found[:limit]], more and encode_cursor(more))


def as_namespace(row: NamespaceRow) -> NamespaceState:
    return NamespaceState(row.name, cast(Durability, row.locks), row.created_at)
