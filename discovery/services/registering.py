"""Saying where instances are: registering, heartbeats, maintenance, going."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from orjson import Fragment

from core.batch import Transaction
from core.encoding import decode, encode
from core.engine import outages, promotions
from core.errors import Invalid
from core.models import Session
from core.operations import command
from core.sessions import SessionId, live, when_ended
from core.types import Object, Text
from discovery import rules
from discovery.directory import Place, directory
from discovery.errors import InstanceNotFound, InstanceSuperseded, ServiceNotFound
from discovery.models import Instance, Service
from discovery.types import (
    TTL,
    Address,
    Checks,
    CheckState,
    Deregistered,
    Incarnation,
    InstanceId,
    InstanceState,
    Maintained,
    Port,
    Scheme,
    ServiceName,
    Tags,
    Ttl,
    Weight,
)

outages.append(
    "update discovery_instance set expires_at = expires_at + %(away)s * interval '1 second' "
    "where expires_at > %(since)s"
)
promotions.append(
    "update discovery_instance set expires_at = "
    "greatest(expires_at, clock_timestamp() + ttl_seconds * interval '1 second') "
    "where expires_at is not null and (status not in ('expired', 'deregistered') or protected)"
)
OF_SESSION = "select id from discovery_instance where session = $1"


def touches(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    found: list[tuple[type[Any], str]] = [(Service, params["service"]), *touches_one(params)]
    if session_id := params.get("session_id"):
        found.append((Session, session_id))
    return found


def touches_one(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    return [(Instance, f"{params['service']}#{params['instance_id']}")] if params["instance_id"] else []


@command(
    "PUT services/{service}/instances/{instance_id}",
    name="services.register",
    returns=InstanceState,
    hot=True,
    touches=touches,
)
def register(
    tx: Transaction,
    *,
    service: ServiceName,
    instance_id: InstanceId,
    address: Address,
    port: Port,
    scheme: Scheme = "http",
    ttl_seconds: Ttl | None = None,
    tags: Tags = [],  # noqa: B006
    metadata: Object = "{}",
    weight: Weight = 1,
    session_id: SessionId | None = None,
    incarnation: Incarnation | None = None,
    checks: Checks = [],  # noqa: B006
) -> InstanceState:
    """Say where an instance of a service is. It is healthy for `ttl_seconds` (1 to 86400, unless said 15) after this
    and after every heartbeat; with a `session_id`, as long as that session lives. `weight` (0 to 1000) is its share
    of calls. `checks` are carried out by Syros: until each has passed once, the instance is `failing`.

    Registering again replaces what was said and begins a new incarnation: heartbeats for the old one are refused.
    With the present `incarnation` it goes on, as the same one. Addresses that are not public (loopback, private)
    are called, and checked, only if an administrator registered them.

    Errors: `instance_superseded` (409), `instance_not_found` (404), both only with `incarnation`; `session_not_found`
    (404), `session_ended` (409).
    """
    session = live(tx, session_id) if session_id else None
    if session and ttl_seconds is not None:
        detail = "an instance of a session has the session's"
        raise Invalid([{"pointer": "/ttl_seconds", "code": "not_with_session", "detail": detail}])
    owner = tx.get(Service, service) or tx.add(Service, service)
    found = tx.get(Instance, f"{service}#{instance_id}")
    if incarnation is not None:
        check_speaks_for(found, service, instance_id, incarnation, tx.now)
    if found is not None and rules.is_overdue(found, tx.now):
        expire(tx, owner, found)
    is_new = found is None or rules.is_gone(found)
    if found is None:
        found = tx.add(Instance, f"{service}#{instance_id}", status=rules.DEREGISTERED)
    found.address, found.port, found.scheme, found.weight = address, port, scheme, weight
    found.tags, found.metadata = encode(tags).decode(), metadata
    found.may_be_private = tx.call.caller.is_admin
    if incarnation is None:
        owner.last_incarnation += 1
        found.incarnation = owner.last_incarnation
    if is_new:
        found.registered_at = tx.now
    found.checks = rules.begun(
        [check.model_dump() for check in checks], [] if is_new else rules.checks_of(found)
    )
    found.session = session_id
    found.ttl_seconds = session.ttl_seconds if session else ttl_seconds or TTL
    found.expires_at = None if session else tx.now + timedelta(seconds=found.ttl_seconds)
    about = {"instance_id": instance_id, "address": address, "port": port, "scheme": scheme}
    kind = "service.registered" if is_new else "service.changed"
    tx.emit(owner, kind, {**about, "incarnation": found.incarnation})
    rules.turn(owner, found, tx.now, settings.PROTECTED_SHARE)
    remember(tx, owner, found)
    return state(found, tx.now, owner, session)


@command(
    "POST services/{service}/instances/{instance_id}/heartbeat",
    name="services.heartbeat",
    returns=InstanceState,
    hot=True,
    touches=touches_one,
    patience=0.04,
)
def heartbeat(
    tx: Transaction,
    *,
    service: ServiceName,
    instance_id: InstanceId,
    incarnation: Incarnation | None = None,
) -> InstanceState:
    """Say that an instance is there: good for its whole TTL again. `incarnation`, as registering answered it, keeps a
    process that was taken for dead from speaking for the one in its place. One with a session needs no heartbeats.

    Errors: `instance_not_found` (404) with a `reason`: `unknown`, `expired`, `deregistered`, `session_closed` or
    `session_expired`: what is gone is not revived, register it again; `instance_superseded` (409).
    """
    found = tx.get(Instance, f"{service}#{instance_id}")
    found = check_speaks_for(found, service, instance_id, incarnation, tx.now)
    session, owner = None, None
    if found.session is None:
        found.expires_at = tx.now + timedelta(seconds=found.ttl_seconds)
    else:
        session = live(tx, found.session)
    if found.status == rules.EXPIRED:  # it was kept, and is back
        owner = tx.known(Service, found.id.partition("#")[0])
        become(tx, owner, found)
    return state(found, tx.now, owner or remembered(found), session)


def remembered(found: Instance) -> Service:
    """What this process knows of the instance's service: for heartbeats, which would wait for each other at its row."""
    address = found.id.partition("#")[0]
    return Service(id=address, maintenance="maintenance" if directory.is_maintained(address) else None)


def check_speaks_for(
    found: Instance | None, service: str, instance_id: str, incarnation: int | None, now: datetime
) -> Instance:
    """The instance, if it is there and this is its incarnation, where one is said.

    Raises: InstanceNotFound, InstanceSuperseded.
    """
    about = {"service": service, "instance_id": instance_id}
    reason = rules.silent_because(found, incarnation, now)
    if reason == "superseded":
        raise InstanceSuperseded(**about, incarnation=found.incarnation if found else None)
    if found is None or reason:
        raise InstanceNotFound(f"No such instance is registered any more: {reason}.", **about, reason=reason)
    return found


@command(
    "DELETE services/{service}/instances/{instance_id}",
    name="services.deregister",
    returns=Deregistered,
    touches=touches,
)
def deregister(
    tx: Transaction,
    *,
    service: ServiceName,
    instance_id: InstanceId,
    reason: Text | None = None,
    incarnation: Incarnation | None = None,
) -> Deregistered:
    """Take an instance out, at once. The log says the `reason`. With `incarnation`, only if that is the present one.

    Errors: `instance_not_found` (404), `instance_superseded` (409).
    """
    owner, found = tx.get(Service, service), tx.get(Instance, f"{service}#{instance_id}")
    about = {"service": service, "instance_id": instance_id}
    if owner is None or found is None or rules.is_gone(found):
        why = found.reason or found.status if found else "unknown"
        raise InstanceNotFound(**about, reason=why)
    if incarnation is not None and incarnation != found.incarnation:
        raise InstanceSuperseded(**about, incarnation=found.incarnation)
    leave(tx, owner, found, rules.DEREGISTERED, "deregistered")
    tx.emit(
        owner, "service.deregistered", {"instance_id": instance_id, **({"reason": reason} if reason else {})}
    )
    return Deregistered(service, instance_id, True)


@command(
    "POST services/{service}/maintenance",
    name="services.maintenance",
    returns=Maintained,
    aliases=["POST services/{service}/instances/{instance_id}/maintenance"],
    touches=touches,
)
def maintenance(
    tx: Transaction,
    *,
    service: ServiceName,
    instance_id: InstanceId | None = None,
    enabled: bool = True,
    reason: Text | None = None,
) -> Maintained:
    """Take an instance, or without `instance_id` all of a service, out for maintenance, or let it come back
    (`enabled` false). It is seen in lookups, with the `reason`, but is not listed as healthy, also after it registered
    again.

    Errors: `service_not_found` (404), `instance_not_found` (404).
    """
    owner = tx.get(Service, service)
    if owner is None:
        raise ServiceNotFound(service=service)
    target: Service | Instance = owner
    found = None
    if instance_id is not None:
        found = tx.get(Instance, f"{service}#{instance_id}")
        if found is None or rules.is_gone(found):
            raise InstanceNotFound(service=service, instance_id=instance_id, reason="unknown")
        target = found
    said = (reason or "maintenance") if enabled else None
    if target.maintenance != said:
        target.maintenance = said
        if found:
            rules.turn(owner, found, tx.now, settings.PROTECTED_SHARE)
            remember(tx, owner, found)
        else:
            tx.afterwards(directory.maintain, owner.id, enabled)
            if enabled:
                tx.afterwards(directory.forget_all, owner.id)
        about = {"instance_id": instance_id} if instance_id else {}
        tx.emit(
            owner, "service.maintenance", {**about, "enabled": enabled, **({"reason": said} if said else {})}
        )
    return Maintained(service, instance_id, enabled, said)


# -- what changes ------------------------------------------------------------------------------------


def become(tx: Transaction, owner: Service, found: Instance) -> None:
    """Let it become what its checks and its heartbeats make it, and say so where that is something else."""
    if rules.turn(owner, found, tx.now, settings.PROTECTED_SHARE):
        remember(tx, owner, found)
        tell(tx, owner, found, f"service.instance_{found.status}")


def leave(tx: Transaction, owner: Service, found: Instance, status: str, reason: str) -> None:
    """Nobody speaks for it any more: gone, unless it is kept."""
    rules.move(owner, found, status, reason, tx.now, settings.PROTECTED_SHARE)
    remember(tx, owner, found)


def expire(tx: Transaction, owner: Service, found: Instance) -> None:
    """Its time is over: gone, unless it is kept. That is said once."""
    if found.status not in rules.GONE:
        leave(tx, owner, found, rules.EXPIRED, "expired")
        tell(tx, owner, found, "service.instance_expired")


def tell(tx: Transaction, owner: Service, found: Instance, kind: str) -> None:
    about: dict[str, Any] = {"instance_id": found.instance, "incarnation": found.incarnation}
    if found.reason:
        about["reason"] = found.reason
    if found.protected:
        about["protected"] = True
    tx.emit(owner, kind, about)


def remember(tx: Transaction, owner: Service, found: Instance) -> None:
    """Have this process know at once where it is, or that it is not."""
    if rules.is_listed(owner, found, tx.now):
        place = Place(
            found.instance, found.address, found.port, found.scheme, found.weight, found.may_be_private
        )
        tx.afterwards(directory.note, owner.id, place)
    else:
        tx.afterwards(directory.forget, owner.id, found.instance)


@when_ended
def end_with_session(tx: Transaction, session: Session, reason: str) -> None:
    """The instances of a session end with it."""
    addresses = {address for (address,) in tx.look(OF_SESSION, session.name)}
    addresses |= {found.id for found in tx.loaded(Instance) if found.session == session.name}
    services = {address.partition("#")[0] for address in addresses}
    tx.load(
        *((Instance, each) for each in sorted(addresses)), *((Service, each) for each in sorted(services))
    )
    for address in sorted(addresses):
        found = tx.at(Instance, address)
        if found is not None and found.session == session.name and found.status not in rules.GONE:
            owner = tx.known(Service, address.partition("#")[0])
            status = rules.EXPIRED if reason == "expired" else rules.DEREGISTERED
            leave(tx, owner, found, status, f"session_{reason}")
            kind = "service.instance_expired" if reason == "expired" else "service.deregistered"
            tell(tx, owner, found, kind)


def owners(tx: Transaction, names: Iterable[str]) -> dict[str, Service]:
    """The services of these instances, by their names."""
    found = {name: tx.get(Service, name) for name in sorted({each.partition("#")[0] for each in names})}
    return {name: service for name, service in found.items() if service}


# -- how it looks ------------------------------------------------------------------------------------


def state(found: Instance, now: datetime, owner: Service, session: Session | None) -> InstanceState:
    expires_at = found.expires_at or (session.expires_at if session else now)
    is_listed = rules.is_listed(owner, found, now)
    return instance_state(
        found.service, found.instance, found.address, found.port, found.scheme, found.tags, found.metadata,
        found.weight, is_listed, found.ttl_seconds, found.registered_at, expires_at, found.incarnation,
        found.session, *rules.seen(found, now), found.protected, found.changed_at or now, found.checks,
    )  # fmt: skip


def instance_state(*about: Any) -> InstanceState:
    """An answer of the columns in its order."""
    *place, tags, metadata = about[:7]
    checks = [CheckState(**check) for check in decode(about[-1])] if about[-1] else []
    found: Any = (*place, decode(tags), Fragment(metadata), *about[7:-1], checks)
    return InstanceState(*found)
