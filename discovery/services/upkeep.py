"""What nobody asks for: instances whose time is over, holds and protection that end, tombstones that go."""

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import Any

from django.conf import settings

from core.batch import Transaction
from core.database import rows
from core.operations import command
from core.runtime import carry_out_for, every
from discovery import rules
from discovery.directory import directory
from discovery.models import Instance, Service
from discovery.places import SERVICE_OF
from discovery.services.registering import become, expire, owners, remember, tell

AT_ONCE = 200  # instances a command
BURIED_AT_ONCE = 1000
REST = 0.8  # seconds between sweeps at most, with the 0.4 that there are in any case: within the grace
DUE = f"""select id from discovery_instance where (expires_at <= clock_timestamp()
    and status not in ('expired', 'deregistered')) or (held_until <= clock_timestamp() and reason = 'flapping')
    order by expires_at limit {AT_ONCE}"""
# Kept ones, while enough others are well or after a long while.
KEPT = f"""select i.id from discovery_instance i join discovery_service s on {SERVICE_OF}
    where i.protected and (s.healthy + s.protected > ceil(%s * s.last_healthy) or s.last_healthy < %s
        or i.changed_at < clock_timestamp() - %s) order by i.changed_at limit {AT_ONCE}"""
MISSED = f"""select id from discovery_service where last_healthy <> healthy and protected = 0
    and (failed_at is null or failed_at < clock_timestamp() - %s) limit {AT_ONCE}"""
TOMBSTONES = f"""delete from discovery_instance where id in (
    select id from discovery_instance where status in ('expired', 'deregistered') and not protected
        and changed_at < statement_timestamp() - interval '1 hour' limit {BURIED_AT_ONCE}
    for update skip locked) returning id"""


def touches(params: dict[str, Any]) -> Sequence[tuple[type[Any], str]]:
    services = sorted({name.partition("#")[0] for name in params["names"]})
    return [*((Instance, name) for name in params["names"]), *((Service, name) for name in services)]


@command(name="services.look_after", touches=touches)
def look_after(tx: Transaction, *, names: list[str]) -> None:
    """End instances whose time is over, and let those come back that were held back long enough."""
    found = owners(tx, names)
    for name in names:
        instance, owner = tx.get(Instance, name), found.get(name.partition("#")[0])
        if instance is None or owner is None or instance.status in rules.GONE:
            continue
        if rules.is_overdue(instance, tx.now):
            expire(tx, owner, instance)
        else:
            become(tx, owner, instance)


@command(name="services.release", touches=touches)
def release(tx: Transaction, *, names: list[str]) -> None:
    """Keep those no longer that need not be kept, the first that failed first."""
    found = owners(tx, names)
    kept = [instance for name in names if (instance := tx.get(Instance, name)) and instance.protected]
    for instance in sorted(kept, key=lambda each: (each.changed_at or tx.now, each.id)):
        owner = found[instance.service]
        if rules.release(owner, instance, tx.now, settings.PROTECTED_SHARE):
            remember(tx, owner, instance)
            tell(tx, owner, instance, "service.instance_released")


@command(name="services.settle", touches=lambda params: [(Service, name) for name in params["names"]])
def settle(tx: Transaction, *, names: list[str]) -> None:
    """Take what is healthy now for what there is."""
    for name in names:
        if owner := tx.get(Service, name):
            rules.settle(owner, tx.now)


@every(0.4)
async def sweep() -> None:
    """A scan of all instances, so it rests in proportion."""
    started = monotonic()
    found = await rows(DUE)
    scan = monotonic() - started
    while await carry_out_for(look_after, "names", found) == AT_ONCE:
        found = await rows(DUE)
    await asyncio.sleep(min(20 * scan, REST))


@every(1)
async def let_go() -> None:
    share = settings.PROTECTED_SHARE
    await carry_out_for(release, "names", await rows(KEPT, [share, rules.CROWD, rules.KEPT]))
    await carry_out_for(settle, "names", await rows(MISSED, [rules.SETTLED]))


@every(0.5)
async def note_maintenance() -> None:
    """Which services are out, whichever process took them out: heartbeats are told so."""
    await directory.refresh_maintained()


@every(60)
async def bury() -> None:
    """What has been gone for an hour."""
    while len(await rows(TOMBSTONES)) == BURIED_AT_ONCE:
        pass
