"""Who holds and who waits, as pages show it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Exists, OuterRef, Q, QuerySet, TextField, Value
from django.db.models.expressions import RawSQL
from django.db.models.functions import Cast, Concat, Left
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.http import urlencode

from core.console import Choice, Clock, Panel, brief, fetch, label, link, span, url_of
from core.encoding import encode
from core.models import Process, Session
from locks.models import ELECTION, Claim, Election, Hold, Lock
from locks.services.looking import HELD, HOLDS, LOOK, SHOWN, holder, summary
from locks.services.queues import NOBODY
from locks.types import Holder

NAMED = 2  # owners in one cell
LONG = 40  # characters of an owner that are shown
SAID = 1000  # characters of metadata that a line can have
COUNTED = 1000  # holds of one lock, at most

# -- which locks are held ----------------------------------------------------------------------------

# `expires_at` of the lock's row is no later than that of any of its holds: while it is to come, or is null because
# their sessions keep them all, nobody looks at the holds themselves.
LASTS = Q(expires_at__isnull=True) | Q(expires_at__gt=Clock())
SEVERAL = Q(used__gt=0) | Q(shared__gt=0)


def is_held() -> Q:
    """Locks with a hold that lasts."""
    key = OuterRef("pk")
    holds = Hold.objects.filter(LASTS, id__gt=Concat(key, Value("#")), id__lt=Concat(key, Value("$")))
    return ((Q(lock_id__isnull=False) | SEVERAL) & LASTS) | (SEVERAL & Q(Exists(holds)))


# No index has owners. Found beforehand, by one pass over the tables: in the order of the keys, page by page, the
# same would take ten times as long.
OWNED = """with owned as materialized (
    select id from locks_lock
        where owner = %s and lock_id is not null and coalesce(expires_at > clock_timestamp(), true)
    union select split_part(id, '#', 1) from locks_hold
        where owner = %s and coalesce(expires_at > clock_timestamp(), true)
) select id from owned"""


def owned_by(owner: str) -> Q:
    """Locks with a hold of this owner that lasts."""
    return Q(pk__in=RawSQL(OWNED, [owner, owner]))


class HeldFilter(Choice):
    title = "held"
    parameter_name = "held"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        return [("1", "Held"), ("0", "Free")]

    def queryset(self, request: Any, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in {"0", "1"}:
            return queryset
        return queryset.filter(is_held() if self.value() == "1" else ~is_held())


# -- who holds them ----------------------------------------------------------------------------------

HOLDINGS = f"""select l.id, {HELD}, l.capacity, l.owner, l.used, coalesce(l.expires_at, s.expires_at),
    h.count, h.mode, h.permits, h.until, h.owners
from locks_lock l left join core_session s on s.id = split_part(l.id, '/', 1) || '/' || l.session
left join lateral (
    select count(*), min(mode) as mode, sum(permits) as permits, min(until) as until,
        (array_agg(owner order by token))[:{NAMED}] as owners
    from (select mode, permits, owner, token, coalesce(expires_at, (select s.expires_at from core_session s
            where s.id = split_part(l.id, '/', 1) || '/' || session)) as until
        from locks_hold where id > l.id || '#' and id < l.id || '$'
            and coalesce(expires_at > clock_timestamp(), true) limit {COUNTED}) each
) h on l.shared + l.used > 0
where l.id = any(%s::text[])"""


@dataclass(slots=True)
class Holding:
    """What a line says of a lock's present holds."""

    count: int = 0
    mode: str = ""
    permits: int = 0
    until: datetime | None = None  # when the first of them ends
    owners: list[str] = field(default_factory=list)  # the first of them


def holdings(addresses: Sequence[str]) -> dict[str, Holding]:
    """The present holds of several locks, in one statement."""
    return {address: holding(*about) for address, *about in fetch(HOLDINGS, [list(addresses)])}


def holding(
    is_sole: bool, capacity: int, owner: str, used: int, until: datetime | None,
    count: int | None, mode: str, permits: int, first_until: datetime | None, owners: list[str],
) -> Holding:  # fmt: skip
    if is_sole:
        return Holding(1, "exclusive", capacity, until, [owner])
    if not count:
        return Holding()
    return Holding(count, mode, permits if count < COUNTED else used, first_until, owners)


def hold_all(rows: Sequence[Any]) -> None:
    """Say of each lock what it is held by."""
    found = holdings([row.pk for row in rows])
    for row in rows:
        row.holding = found.get(row.pk, Holding())


def state_of(lock: Any, held: str, free: str) -> str:
    if lock.holding.count:
        return label(held, "success")
    if lock.not_before is not None and lock.not_before > lock.now:
        return label(f"delayed {span(lock.not_before - lock.now)}", "warning")
    return label(free)


def left_of(lock: Any) -> str:
    return span(lock.holding.until - lock.now) if lock.holding.until else "-"


def owners_of(holding: Holding, model: type[Lock] = Lock) -> str:
    if not holding.count:
        return "-"
    shown = format_html_join(", ", "{}", ((owner_link(owner, model),) for owner in holding.owners))
    more = holding.count - len(holding.owners)
    return format_html("<span>{}{}</span>", shown, f" and {more:,} more" if more else "")


def owner_link(owner: str, model: type[Lock] = Lock) -> str:
    """Everything that this owner holds."""
    query = urlencode({"q": f"owner:{owner}"})
    url = f"{reverse(f'admin:locks_{model._meta.model_name}_changelist')}?{query}"
    return link(
        url, format_html('<span title="{}">{}…</span>', owner, owner[:LONG]) if owner[LONG:] else owner
    )


def lock_link(address: str) -> str:
    """The page of a lock, or of an election."""
    if f"/{ELECTION}" in address:
        return link(url_of(Election, address), f"{address.replace(ELECTION, '', 1)} (election)")
    return link(url_of(Lock, address), address)


def session_link(namespace: str, session: str | None) -> str:
    return link(url_of(Session, f"{namespace}/{session}"), f"{session[:8]}…") if session else "-"


def holders_of(lock: Lock) -> list[Holder]:
    """The present holds, the first ones of many."""
    found = fetch(f"{LOOK} where l.id = %s", [lock.pk])
    holds = [holder(about) for _, *about in fetch(HOLDS, [[lock.pk], SHOWN])]
    return summary(found[0], holds).holders if found else []


def holders_panel(lock: Any) -> Panel:
    rows: list[list[Any]] = [
        [owner_link(hold.owner), hold.mode, permits_of(hold.mode, hold.permits),
         session_link(lock.namespace, hold.session_id), hold.fencing_token, span(lock.now - hold.acquired_at),
         span(hold.expires_at - lock.now) if hold.expires_at else "-", brief(encode(hold.metadata).decode())]
        for hold in holders_of(lock)
    ]  # fmt: skip
    more = f" (the first {SHOWN} of {lock.holding.count:,})" if lock.holding.count > SHOWN else ""
    headers = ["owner", "mode", "permits", "session", "token", "held for", "expires in", "metadata"]
    return Panel(f"Holds{more}", headers, rows, "Nobody holds it.")


def permits_of(mode: str, permits: int) -> str:
    return "-" if mode == "shared" else f"{permits:,}"


# -- who waits for them ------------------------------------------------------------------------------


def waiting_for(lock: Any) -> list[tuple[Any, str]]:
    """The first waiters in order, each with whether its process lives. One whose process is gone, or whose time is
    up, is passed over."""
    said = Left(Cast("metadata", TextField()), SAID)
    of_lock = Claim.objects.filter(id__gt=f"{lock.pk}#", id__lt=f"{lock.pk}$").order_by("id")
    claims = list(of_lock.annotate(said=said).defer("lock_id", "metadata")[:SHOWN])
    processes = {claim.process for claim in claims}
    alive = set(Process.objects.filter(id__in=processes, expires_at__gt=Clock()).values_list("id", flat=True))
    words = {True: label("alive", "success"), False: label("gone", "danger")}
    return [(claim, words[claim.process in {NOBODY, *alive}]) for claim in claims]


def queue_panel(lock: Any) -> Panel:
    rows: list[list[Any]] = [
        [place, claim.owner, claim.mode, permits_of(claim.mode, claim.permits),
         session_link(lock.namespace, claim.session), *times(lock.now, claim), claim.ticket, process]
        for place, (claim, process) in enumerate(waiting_for(lock), 1)
    ]  # fmt: skip
    headers = [
        "place",
        "owner",
        "mode",
        "permits",
        "session",
        "waits for",
        "gives up in",
        "ticket",
        "its process",
    ]
    return Panel(f"Waiting{of_many(lock)}", headers, rows, "Nobody waits.")


def times(now: datetime, claim: Claim) -> tuple[str, str]:
    return span(now - claim.since), span(max(claim.deadline - now, timedelta(0)))


def of_many(lock: Any) -> str:
    return f" (the first {SHOWN} of {lock.queued:,})" if lock.queued > SHOWN else ""


def waiting(lock: Any) -> str:
    return label(f"{lock.queued:,}", "warning") if lock.queued else "0"


class ContendedFilter(Choice):
    title = "contended"
    parameter_name = "contended"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        return [("1", "Somebody waits"), ("0", "Nobody waits")]

    def queryset(self, request: Any, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "1":
            return queryset.filter(queued__gt=0)  # as the partial index says it
        return queryset.filter(queued=0) if self.value() == "0" else queryset
