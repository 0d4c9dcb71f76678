"""What the front page says of locks, elections and sessions."""

from collections.abc import Iterable
from typing import Any

from django.urls import reverse
from django.utils.http import urlencode

from core.console import Figure, Panel, fetch, on_front_page, span, when
from core.models import between
from locks.admin.holding import Holding, holdings, lock_link, owners_of
from locks.models import ELECTION
from locks.services.deadlocks import PICTURE, SUSPECTS, picture
from locks.waits import Stake, cycles

SUSPECTED = 5  # namespaces that are looked into for deadlocks
SAMPLE_PAGES = 4096  # 32 MB, some 200,000 locks
NO_ELECTION = f"id not like '%%/{ELECTION}%%'"
# The lock's own row says nearly always whether anybody holds it: its `expires_at` is no later than any hold's.
HELD = f"""select count(*) from locks_lock l{{}} where (lock_id is not null or used > 0 or shared > 0) and {NO_ELECTION}
    and (coalesce(expires_at > clock_timestamp(), true) or (lock_id is null and exists (select from locks_hold h
        where h.id > l.id || '#' and h.id < l.id || '$' and coalesce(h.expires_at > clock_timestamp(), true))))"""
LONGEST = f"""select split_part(id, '#', 1), owner, clock_timestamp() - since, clock_timestamp() from locks_claim
where deadline > clock_timestamp() and {NO_ELECTION} order by since limit 10"""
ELECTED = f"""select count(*), count(*) filter (where lock_id is not null
    and coalesce(expires_at > clock_timestamp(), true)) from locks_lock where id like '%%/{ELECTION}%%'"""
SESSIONS = "select count(*) from core_session where ended_at is null and expires_at > clock_timestamp()"
REFUSED = """select n.name, e.data->>'key', e.data->>'fencing_token', e.data->>'last_token', e.data->>'operation',
    e.actor, e.recorded_at
from core_namespace n, lateral (select * from core_event e where e.namespace_id = n.number
    and e.stream = '$fence' order by e.version desc limit 5) e order by e.recorded_at desc limit 5"""


def locks_held() -> str:
    """How many locks are held now. Of a large table a sample is read: what is held is on no index, because
    every renewal would have to write it."""
    ((pages,),) = fetch("select pg_relation_size('locks_lock') / current_setting('block_size')::int")
    if pages <= SAMPLE_PAGES:
        ((count,),) = fetch(HELD.format(""), [])
        return f"{count:,}"
    ((count,),) = fetch(HELD.format(" tablesample system (%s)"), [100 * SAMPLE_PAGES / pages])
    return f"about {round(count * pages / SAMPLE_PAGES):,}"


@on_front_page("sessions.find")
def sessions() -> Iterable[Figure | Panel]:
    """How many sessions live."""
    ((count,),) = fetch(SESSIONS)
    yield Figure("Sessions", f"{count:,}", link=f"{reverse('admin:core_session_changelist')}?state=live")


@on_front_page("elections.find")
def elections() -> Iterable[Figure | Panel]:
    """How many elections have a leader."""
    ((count, led),) = fetch(ELECTED, [])
    note = f"{count - led:,} without a leader" if count > led else ""
    yield Figure("Elections led", f"{led:,}", note, reverse("admin:locks_election_changelist"))


@on_front_page("locks.find")
def locks_now() -> Iterable[Figure | Panel]:
    """How many locks are held, how many wait, and who waits longest."""
    url = reverse("admin:locks_lock_changelist")
    yield Figure("Locks held", locks_held(), link=f"{url}?held=1")
    ((contended, waiting),) = fetch(
        f"select count(*), coalesce(sum(queued), 0) from locks_lock where queued > 0 and {NO_ELECTION}", []
    )
    yield Figure("Contended locks", f"{contended:,}", link=f"{url}?contended=1")
    yield Figure("Waiters", f"{waiting:,}")
    yield longest_waits()
    yield from refusals()


def longest_waits() -> Panel:
    found = fetch(LONGEST, [])
    held = holdings([row[0] for row in found]) if found else {}
    rows: list[list[Any]] = []
    for address, waiter, waited, now in found:
        by = held.get(address, Holding())
        rows.append(
            [
                span(waited),
                waiter,
                lock_link(address),
                owners_of(by),
                span(by.until - now) if by.until else "-",
            ]
        )
    headers = ["waits for", "who", "lock", "held by", "expires in"]
    url = f"{reverse('admin:locks_lock_changelist')}?contended=1"
    return Panel("Longest waits", headers, rows, "Nobody waits.", url)


def refusals() -> Iterable[Panel]:
    """The last writes that were refused for a stale token, if any ever was."""
    rows: list[list[Any]] = [
        [when(at), lock_link(f"{name}/{key}"), operation, token, last, actor]
        for name, key, token, last, operation, actor, at in fetch(REFUSED)
    ]
    if rows:
        headers = ["when", "lock", "operation", "token", "last token", "caller"]
        url = f"{reverse('admin:core_event_changelist')}?{urlencode({'q': '$fence'})}"
        note = "All of them are in the streams $fence. Over the API: locks.violations."
        yield Panel("Writes refused for a stale token", headers, rows, link=url, note=note)


@on_front_page("locks.waits_for")
def deadlocks() -> Iterable[Panel]:
    """The deadlocks of this moment, if there are any: who waits for ever, and for whom."""
    rows = [
        [namespace, " → ".join(told(claim) for claim in cycle), lock_link(f"{namespace}/{cycle[0].lock.key}")]
        for (namespace,) in fetch(SUSPECTS)[:SUSPECTED]
        for cycle in cycles(picture(fetch(PICTURE.format("%s", "%s"), between(namespace))).values())
    ]
    if rows:
        note = "The youngest request of each is refused within a second. Over the API: locks.waits_for."
        yield Panel(
            "Deadlocks",
            ["namespace", "each waits for the next, the last for the first", "lock"],
            rows,
            note=note,
        )


def told(claim: Stake) -> str:
    return f"{claim.owner} at {claim.lock.key}"
