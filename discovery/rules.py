"""What becomes of an instance: who is listed, who is kept although it failed, who is held back. Pure.

The rules change the aggregates they are given and know no database, no clock and no transport. A service counts what
is healthy and what is protected, so that every decision is made from the two rows it changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from typing import Any

from core.encoding import decode, encode
from discovery.models import Instance, Service

HEALTHY, FAILING, MAINTENANCE = "healthy", "failing", "maintenance"
EXPIRED, DEREGISTERED = "expired", "deregistered"
GONE = (EXPIRED, DEREGISTERED)  # tombstones, unless it is protected
FAILED = (FAILING, EXPIRED)
NOT_CHECKED, FLAPPING = "not_checked", "flapping"  # reasons

# Nobody is listed for longer than this after its time, whether or not the sweep that ends it came.
GRACE = timedelta(seconds=1.5)
# Below so many, what fails is an instance; from here on, it may be the way to them.
CROWD = 3
SETTLED = timedelta(minutes=5)  # without a failure: what is healthy now is what there is
KEPT = timedelta(hours=1)  # that one which failed is protected at most
FALLS, WITHIN = 3, timedelta(minutes=5)  # one that fails more often than so within that is flapping
HOLD, LONGEST_HOLD = timedelta(seconds=30), timedelta(minutes=15)  # doubled each time, up to that


# -- what is so --------------------------------------------------------------------------------------


def is_gone(instance: Instance) -> bool:
    """Is it a tombstone?"""
    return instance.status in GONE and not instance.protected


def is_overdue(instance: Instance, now: datetime) -> bool:
    return instance.expires_at is not None and instance.expires_at <= now


def seen(instance: Instance, now: datetime) -> tuple[str, str | None]:
    """Its status and why, also if nobody has written it down yet that its time is over."""
    if is_overdue(instance, now) and instance.status not in GONE:
        return EXPIRED, None
    return instance.status, instance.reason


def is_listed(service: Service, instance: Instance, now: datetime) -> bool:
    """May it be called? What stands in discovery.places.LISTED, of an instance at hand."""
    if service.maintenance is not None:
        return False
    return instance.protected or (instance.status == HEALTHY and not is_overdue(instance, now - GRACE))


def silent_because(found: Instance | None, incarnation: int | None, now: datetime) -> str | None:
    """Why a heartbeat does not count; None: it does. What was declared dead stays so, whoever speaks for it; one that
    was kept because too many failed at once was never declared dead."""
    if found is None:
        return "unknown"
    if incarnation is not None and incarnation != found.incarnation:
        return "superseded" if not is_gone(found) else found.reason or found.status
    if is_gone(found):
        return found.reason or found.status
    if is_overdue(found, now) and not found.protected:
        return EXPIRED
    return None


def condition(instance: Instance, now: datetime) -> tuple[str, str | None]:
    """What an instance that is there should be, and why."""
    if instance.maintenance is not None:
        return MAINTENANCE, instance.maintenance
    if instance.held_until is not None and instance.held_until > now:
        return FAILING, FLAPPING
    checks = checks_of(instance)
    if failing := [check for check in checks if check["state"] == "failing"]:
        return FAILING, f"{failing[0]['kind']} check: {failing[0]['message']}"[:255]
    if any(check["state"] == "pending" for check in checks):
        return FAILING, NOT_CHECKED
    return HEALTHY, None


# -- what becomes of it ------------------------------------------------------------------------------


def turn(service: Service, instance: Instance, now: datetime, share: float) -> bool:
    """Let an instance that is there become what it should be. Did anything change?

    One that would be healthy again, but has failed too often of late, is held back.
    """
    status, reason = condition(instance, now)
    if status == HEALTHY and instance.status in (*FAILED, MAINTENANCE) and is_flapping(instance, now):
        hold(instance, now)
        status, reason = condition(instance, now)
    if (status, reason) == (instance.status, instance.reason) and instance.changed_at is not None:
        return False
    move(service, instance, status, reason, now, share)
    return True


def move(
    service: Service, instance: Instance, status: str, reason: str | None, now: datetime, share: float
) -> None:
    """Give an instance another status, and count. One that fails is protected if too few would be left."""
    was_called = instance.status == HEALTHY or instance.protected
    counted = was_called or (instance.status == FAILING and instance.reason != NOT_CHECKED)
    take_out(service, instance)
    if instance.status == HEALTHY and status in FAILED:
        note_fall(instance, now)
        service.failed_at = now
    if status in (MAINTENANCE, DEREGISTERED) and counted:  # somebody meant it: that is no failure
        service.last_healthy = max(service.last_healthy - 1, 0)
    instance.protected = was_called and status in FAILED and must_keep(service, share)
    if status != instance.status or instance.changed_at is None:
        instance.changed_at = now
    instance.status, instance.reason = status, reason
    service.healthy += status == HEALTHY
    service.protected += instance.protected
    service.last_healthy = max(service.last_healthy, service.healthy)


def take_out(service: Service, instance: Instance) -> None:
    """Count it no longer."""
    service.healthy -= instance.status == HEALTHY
    service.protected -= instance.protected


def must_keep(service: Service, share: float) -> bool:
    """Are so few left that the next one which failed is listed all the same?"""
    if service.last_healthy < CROWD:
        return False
    return service.healthy + service.protected < ceil(share * service.last_healthy)


def release(service: Service, instance: Instance, now: datetime, share: float) -> bool:
    """Protect it no longer, if enough others are well or it has been long. Was it?"""
    if not instance.protected:
        return False
    service.protected -= 1
    if must_keep(service, share) and now - (instance.changed_at or now) < KEPT:
        service.protected += 1
        return False
    instance.protected = False
    return True


def settle(service: Service, now: datetime) -> None:
    """What failed some time ago, while enough were well, is not missed any more."""
    if not service.protected and (service.failed_at is None or now - service.failed_at >= SETTLED):
        service.last_healthy = service.healthy


# -- flapping ----------------------------------------------------------------------------------------


def note_fall(instance: Instance, now: datetime) -> None:
    falls, holds = flaps_of(instance)
    recent = [fall for fall in falls if fall > (now - WITHIN).timestamp()]
    if not recent and (instance.held_until is None or now - instance.held_until > WITHIN):
        holds = 0
    write_flaps(instance, [*recent, now.timestamp()], holds)


def is_flapping(instance: Instance, now: datetime) -> bool:
    falls, _ = flaps_of(instance)
    return sum(fall > (now - WITHIN).timestamp() for fall in falls) > FALLS


def hold(instance: Instance, now: datetime) -> None:
    """Hold it back, twice as long as the last time. What led to this is done with."""
    _, holds = flaps_of(instance)
    instance.held_until = now + min(HOLD * 2 ** min(holds, 16), LONGEST_HOLD)
    write_flaps(instance, [], holds + 1)


def flaps_of(instance: Instance) -> tuple[list[float], int]:
    if instance.flaps is None:
        return [], 0
    found = decode(instance.flaps)
    return found["falls"], found["holds"]


def write_flaps(instance: Instance, falls: list[float], holds: int) -> None:
    instance.flaps = encode({"falls": falls, "holds": holds}).decode()


# -- checks ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tally:
    """How the last tries of one check went, running."""

    failures: int = 0
    successes: int = 0


def tried(tally: Tally, passed: bool) -> Tally:
    return Tally(0, tally.successes + 1) if passed else Tally(tally.failures + 1, 0)


def verdict(check: dict[str, Any], tally: Tally) -> str:
    """What a check is after that: it turns to failing after its `failures` running, and back after its `successes`.
    One that was never tried passes with its first success."""
    if tally.failures >= check["failures"]:
        return "failing"
    if tally.successes >= (1 if check["state"] == "pending" else check["successes"]):
        return "passing"
    found: str = check["state"]
    return found


def checks_of(instance: Instance) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = decode(instance.checks) if instance.checks else []
    return found


def begun(checks: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]]) -> str | None:
    """Checks as they are stored: not tried yet, unless they are the same as before."""
    if not checks:
        return None
    known = [({**check, "state": "", "message": ""}, check) for check in before]
    found = []
    for check in checks:
        fresh = {**check, "state": "", "message": ""}
        same = next((was for form, was in known if form == fresh), None)
        found.append(same or {**fresh, "state": "pending"})
    return encode(found).decode()
