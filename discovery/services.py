"""The discovery operations: which services there are, and where."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from orjson import Fragment

from core.batch import Transaction
from core.callers import Call
from core.database import rows
from core.encoding import decode, encode
from core.engine import outages, promotions
from core.errors import NotFound
from core.models import between
from core.operations import command, query
from core.types import Cursor, Limit, Object, Prefix, Text, encode_cursor
from discovery.directory import Place, directory
from discovery.models import Instance, Service
from discovery.types import (
    TTL,
    Address,
    Deregistered,
    InstanceId,
    InstanceState,
    Port,
    Scheme,
    ServiceName,
    Services,
    ServiceState,
    ServiceSummary,
    Tags,
    Ttl,
    Weight,
)

outages.append(
    "update discovery_instance set expires_at = expires_at + %(away)s * interval '1 second' "
    "where expires_at > %(since)s"
)
promotions.append(
    "update discovery_instance set "
    "expires_at = greatest(expires_at, clock_timestamp() + ttl_seconds * interval '1 second')"
)


class InstanceNotFound(NotFound):
    """No such instance is registered, or its time ran out: register it again."""


def touches(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    return ((Service, params["service"]), touches_one(params)[0])


def touches_one(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    return ((Instance, f"{params['service']}#{params['instance_id']}"),)


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
    ttl_seconds: Ttl = TTL,
    tags: Tags = [],  # noqa: B006
    metadata: Object = "{}",
    weight: Weight = 1,
) -> InstanceState:
    """Say where an instance of a service is. It is healthy for `ttl_seconds` (1 to 86400) after this and after every
    heartbeat. `weight` (0 to 1000) is its share of calls. Registering again replaces what was said.

    Addresses that are not public (loopback, private) are called only if an administrator registered them.
    """
    owner = tx.get(Service, service) or tx.add(Service, service)
    found = tx.get(Instance, f"{service}#{instance_id}") or tx.add(Instance, f"{service}#{instance_id}")
    is_new = found.registered_at is None
    found.address, found.port, found.scheme, found.weight = address, port, scheme, weight
    found.tags, found.metadata, found.ttl_seconds = encode(tags).decode(), metadata, ttl_seconds
    found.may_be_private = tx.call.caller.is_admin
    found.registered_at = found.registered_at or tx.now
    found.expires_at = tx.now + timedelta(seconds=ttl_seconds)
    kind = "service.registered" if is_new else "service.changed"
    place = Place(instance_id, address, port, scheme, weight, found.may_be_private)
    tx.afterwards(directory.note, owner.id, place)
    tx.emit(owner, kind, {"instance_id": instance_id, "address": address, "port": port, "scheme": scheme})
    return state(found, tx.now)


@command(
    "POST services/{service}/instances/{instance_id}/heartbeat",
    name="services.heartbeat",
    returns=InstanceState,
    hot=True,
    touches=touches_one,
    patient=True,
)
def heartbeat(tx: Transaction, *, service: ServiceName, instance_id: InstanceId) -> InstanceState:
    """Say that an instance is well: healthy for its whole TTL again.

    Errors: `instance_not_found` (404), also when its time ran out: register it again.
    """
    found = tx.get(Instance, f"{service}#{instance_id}")
    if found is None or found.expires_at <= tx.now:
        raise InstanceNotFound(service=service, instance_id=instance_id)
    found.expires_at = tx.now + timedelta(seconds=found.ttl_seconds)
    return state(found, tx.now)


@command(
    "DELETE services/{service}/instances/{instance_id}",
    name="services.deregister",
    returns=Deregistered,
    touches=touches,
)
def deregister(
    tx: Transaction, *, service: ServiceName, instance_id: InstanceId, reason: Text | None = None
) -> Deregistered:
    """Take an instance out, at once. The log says the `reason`.

    Errors: `instance_not_found` (404).
    """
    owner, found = tx.get(Service, service), tx.get(Instance, f"{service}#{instance_id}")
    if owner is None or found is None:
        raise InstanceNotFound(service=service, instance_id=instance_id)
    tx.remove(found)
    tx.afterwards(directory.forget, owner.id, instance_id)
    said = {} if reason is None else {"reason": reason}
    tx.emit(owner, "service.deregistered", {"instance_id": instance_id, **said})
    return Deregistered(service, instance_id, True)


def state(found: Instance, now: Any) -> InstanceState:
    scheme: Any = found.scheme
    return InstanceState(
        found.service, found.instance, found.address, found.port, scheme, decode(found.tags),
        Fragment(found.metadata), found.weight, found.expires_at > now, found.ttl_seconds, found.registered_at,
        found.expires_at,
    )  # fmt: skip


# -- looking -----------------------------------------------------------------------------------------

INSTANCES = """select id, address, port, scheme, tags::text, metadata::text, weight,
    expires_at > clock_timestamp(), ttl_seconds, registered_at, expires_at
from discovery_instance where id > %s and id < %s and (expires_at > clock_timestamp() or not %s)
order by id limit 1000"""
SUMMARIES = """select id, (select count(*) from discovery_instance i where i.id > s.id || '#' and i.id < s.id || '$'),
    (select count(*) from discovery_instance i where i.id > s.id || '#' and i.id < s.id || '$'
        and i.expires_at > clock_timestamp())
from discovery_service s where id >= %s and id < %s and id > %s order by id limit %s"""


@query("GET services/{service}", name="services.get", returns=ServiceState, hot=True)
async def get(call: Call, *, service: ServiceName, healthy: bool = True) -> ServiceState:
    """The instances of a service: those that are healthy, or all. Of an unknown service, none."""
    address = f"{call.namespace.name}/{service}"
    found = await rows(INSTANCES, [f"{address}#", f"{address}$", healthy])
    return ServiceState(service, [instance_of(row) for row in found])


def instance_of(row: tuple[Any, ...]) -> InstanceState:
    address, host, port, scheme, tags, metadata, *rest = row
    service, _, instance_id = address.partition("/")[2].partition("#")
    return InstanceState(service, instance_id, host, port, scheme, decode(tags), Fragment(metadata), *rest)


@query("GET services", name="services.find", returns=Services)
async def find(
    call: Call, *, prefix: Prefix = "", limit: Limit = 50, cursor: Cursor | None = None
) -> Services:
    """Services by name, and how many instances of each are healthy."""
    start, end = between(call.namespace.name, prefix)
    found = await rows(SUMMARIES, [start, end, f"{call.namespace.name}/{cursor or ''}", limit + 1])
    items = [ServiceSummary(address.partition("/")[2], *counts) for address, *counts in found[:limit]]
    return Services(items, encode_cursor(items[-1].service) if len(found) > limit else None)
