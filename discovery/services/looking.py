"""Looking for instances: at once, when something changes, or one by weight."""

from collections.abc import AsyncIterator, Sequence
from time import monotonic
from typing import Any

from core.callers import Call
from core.database import rows
from core.following import HeartbeatSeconds, check_reached, grew
from core.models import between, position_of
from core.operations import query
from core.types import Cursor, Limit, Position, Prefix, Text, Wait, encode_cursor
from core.watching import watchers
from discovery.directory import by_weight
from discovery.errors import NoHealthyInstance
from discovery.places import LISTED
from discovery.services.registering import instance_state
from discovery.types import (
    Failover,
    InstanceState,
    ServiceName,
    Services,
    ServiceState,
    ServiceSummary,
    Watched,
)

MOST = 1000  # instances of a service that an answer holds
CHOICE = 20_000  # that one is picked of
# In one statement, so that nothing comes between: what is there, and up to which event of the service that is so.
SERVICES = """select s.id, s.maintenance, coalesce(last.id, 0), found.*
from discovery_service s left join lateral (
    select e.id from core_event e
    where e.namespace_id = %(number)s and e.stream = '$service:' || split_part(s.id, '/', 2)
    order by e.version desc limit 1
) last on true left join lateral (
    select split_part(i.id, '#', 2), i.address, i.port, i.scheme, i.tags::text, i.metadata::text, i.weight, {LISTED},
        i.ttl_seconds, i.registered_at, coalesce(i.expires_at, (select se.expires_at from core_session se
            where se.id = split_part(i.id, '/', 1) || '/' || i.session), i.changed_at), i.incarnation, i.session,
        case when i.expires_at <= clock_timestamp() then 'expired' else i.status end,
        i.reason, i.protected, coalesce(i.changed_at, i.registered_at), i.checks::text
    from discovery_instance i
    where i.id > s.id || '#' and i.id < s.id || '$' and i.status <> 'deregistered'
        and ({LISTED} or not %(healthy)s)
        and (%(tag)s::text is null or exists (select from json_array_elements_text(i.tags) t where t = %(tag)s))
    order by i.id limit %(most)s
) found on true
where s.id = any(%(services)s)""".replace("{LISTED}", LISTED)
OF_SERVICE = """from discovery_instance i
    where i.id > s.id || '#' and i.id < s.id || '$' and (i.status not in ('expired', 'deregistered') or i.protected)"""
SUMMARIES = f"""select s.id, (select count(*) {OF_SERVICE}), (select count(*) {OF_SERVICE} and {LISTED}),
    s.protected, s.maintenance
from discovery_service s where id >= %s and id < %s and id > %s order by id limit %s"""


@query("GET services/{service}", name="services.get", returns=ServiceState, hot=True)
async def get(
    call: Call,
    *,
    service: ServiceName,
    healthy: bool = True,
    tag: Text | None = None,
    failover: Failover = [],  # noqa: B006
    wait_seconds: Wait = 0.0,
    from_position: Position | None = None,
) -> ServiceState:
    """The instances of a service (up to 1,000; `partial` says that there are more): those that are listed as healthy,
    or all that are known; of those, the ones with a `tag`. Of an unknown service, none. If none is healthy, those of
    the first service of `failover` (up to 8) that has one; `service` says whose they are.

    `wait_seconds` (at most 300) holds the request until the service has changed since `from_position`, which is the
    `position` of an earlier answer; without one, until it changes.

    Errors: `position_ahead` (409), of a `from_position` that the log has not reached.
    """
    asked = [service, *failover]
    if not wait_seconds:
        return await look(call, asked, healthy, tag)
    await check_reached(call.namespace.number, from_position)
    until, since = monotonic() + wait_seconds, from_position
    streams = [f"$service:{name}" for name in asked]
    while True:
        async with watchers.of(call.namespace.number, streams) as changed:
            found = await look(call, asked, healthy, tag)
            since = found.position if since is None else since
            if found.position > since or not await grew(changed, until - monotonic()):
                return found


async def look(
    call: Call, asked: Sequence[str], healthy: bool, tag: str | None, most: int = MOST
) -> ServiceState:
    """The first of these services that has what is wanted; else the first of all, as it is."""
    addresses = [f"{call.namespace.name}/{name}" for name in asked]
    params = {"number": call.namespace.number, "services": addresses, "healthy": healthy, "tag": tag}
    params["most"] = most + 1
    states = {name: ServiceState(name, [], 0, None) for name in asked}
    for address, maintenance, position, *about in await rows(SERVICES, params):
        name = address.partition("/")[2]
        state = states[name]
        state.position, state.maintenance = position_of(position), maintenance
        if len(state.instances) == most:
            state.partial = True
        elif about[0] is not None:
            state.instances.append(instance_state(name, *about))
    position = max(state.position for state in states.values())
    has_any = (state for state in states.values() if any(each.healthy for each in state.instances))
    chosen = next(has_any, states[asked[0]])
    chosen.position = position
    return chosen


@query("GET services/{service}/pick", name="services.pick", returns=InstanceState, hot=True)
async def pick(
    call: Call,
    *,
    service: ServiceName,
    tag: Text | None = None,
    failover: Failover = [],  # noqa: B006
) -> InstanceState:
    """One healthy instance, by weight: each is chosen as often as its weight is of the sum. Of the first service that
    has one, where `failover` names others; `service` says of which.

    Errors: `no_healthy_instance` (404).
    """
    found = await look(call, [service, *failover], True, tag, CHOICE)
    if not found.instances:
        raise NoHealthyInstance(services=[service, *failover], tag=tag)
    return by_weight(found.instances)


@query("GET services/{service}/watch", name="services.watch", returns=Watched)
async def watch(
    call: Call,
    *,
    service: ServiceName,
    healthy: bool = True,
    tag: Text | None = None,
    failover: Failover = [],  # noqa: B006
    from_position: Position | None = None,
    heartbeat_seconds: HeartbeatSeconds = 15.0,
) -> AsyncIterator[dict[str, Any]]:
    """Follow a service: how it is now, and again after every change. Changes that come together are told together; a
    heartbeat carries the position reached. Who resumes gives as `from_position` the one after the last that it was
    told, and hears nothing before something has changed there or later.
    """
    await check_reached(call.namespace.number, from_position)
    asked, since = [service, *failover], None if from_position is None else from_position - 1
    streams = [f"$service:{name}" for name in asked]
    while True:
        async with watchers.of(call.namespace.number, streams) as changed:
            found = await look(call, asked, healthy, tag)
            if since is None or found.position > since:
                since = found.position
                yield {"service": item(found)}
            if not await grew(changed, heartbeat_seconds):
                yield {"heartbeat": {"position": since}}


def item(found: ServiceState) -> dict[str, Any]:
    """The state as an item of a stream, of which doors look for the position."""
    return {name: getattr(found, name) for name in ServiceState.__dataclass_fields__}


@query("GET services", name="services.find", returns=Services)
async def find(
    call: Call, *, prefix: Prefix = "", limit: Limit = 50, cursor: Cursor | None = None
) -> Services:
    """Services by name, how many instances each has, and how many of them are listed as healthy."""
    start, end = between(call.namespace.name, prefix)
    found = await rows(SUMMARIES, [start, end, f"{call.namespace.name}/{cursor or ''}", limit + 1])
    items = [ServiceSummary(address.partition("/")[2], *about) for address, *about in found[:limit]]
    return Services(items, encode_cursor(items[-1].service) if len(found) > limit else None)
