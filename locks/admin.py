"""Locks: who holds what, who waits, and what happened to it. Never the lock_id: it is the holder's secret."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.contrib import admin
from django.db.models import BooleanField, ExpressionWrapper, Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.http import urlencode

from core.admin import last_events
from core.console import (
    Choice,
    Clock,
    Figure,
    NamespaceFilter,
    Panel,
    RecordAdmin,
    fetch,
    instant,
    label,
    link,
    on_front_page,
    span,
    stored_json,
    url_of,
    when,
)
from core.models import Process
from locks.models import Claim, Lock

WAITERS = 200  # shown of one queue


class HeldFilter(Choice):
    title = "held"
    parameter_name = "held"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("1", "Held"), ("0", "Free")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in {"0", "1"}:
            return queryset
        return queryset.filter(held=self.value() == "1")


class ContendedFilter(Choice):
    title = "contended"
    parameter_name = "contended"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("1", "Somebody waits"), ("0", "Nobody waits")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "1":
            return queryset.filter(queued__gt=0)  # as the partial index says it
        return queryset.filter(queued=0) if self.value() == "0" else queryset


@admin.register(Lock)
class LockAdmin(RecordAdmin):
    reads = "locks.find"
    unloaded = ("lock_id", "endings", "metadata")  # the last endings name lock_ids too
    list_display = ("name", "namespace", "state", "owner_link", "token", "left", "waiting")
    list_filter = (HeldFilter, ContendedFilter, NamespaceFilter)
    search_help_text = "key prefix, or owner:name"
    fields = (
        ("name", "namespace"), ("state", "owner_link"), ("token", "waiting"), (instant("acquired_at"), "held_for"),
        (instant("expires_at", "expires"), "left"), ("ttl", "capacity"), "metadata_json",
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        held = ExpressionWrapper(Q(lock_id__isnull=False, expires_at__gt=Clock()), BooleanField())
        found: QuerySet[Any] = super().get_queryset(request).annotate(held=held)
        return found

    def found(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        if term.startswith("owner:"):
            return queryset.filter(owner=term.removeprefix("owner:").strip(), held=True)
        return super().found(request, queryset, term)

    @admin.display(description="key")
    def name(self, lock: Lock) -> str:
        return lock.name

    @admin.display(description="state")
    def state(self, lock: Any) -> str:
        return label("held", "success") if lock.held else label("free")

    @admin.display(description="owner")
    def owner_link(self, lock: Any) -> str:
        if not lock.held:
            return "-"
        query = urlencode({"q": f"owner:{lock.owner}"})
        return link(f"{reverse('admin:locks_lock_changelist')}?{query}", lock.owner)

    @admin.display(description="last token")
    def token(self, lock: Lock) -> str:
        return str(lock.last_token)

    @admin.display(description="expires in")
    def left(self, lock: Any) -> str:
        return span(lock.expires_at - lock.now) if lock.held else "-"

    @admin.display(description="held for")
    def held_for(self, lock: Any) -> str:
        return span(lock.now - lock.acquired_at) if lock.held else "-"

    @admin.display(description="TTL")
    def ttl(self, lock: Lock) -> str:
        return span(lock.ttl_seconds) if lock.ttl_seconds else "-"

    @admin.display(description="waiting")
    def waiting(self, lock: Lock) -> str:
        return label(str(lock.queued), "warning") if lock.queued else "0"

    @admin.display(description="metadata")
    def metadata_json(self, lock: Lock) -> str:
        return stored_json(lock, "metadata")

    def panels(self, lock: Any) -> Iterable[Panel]:
        yield queue_of(lock, lock.now)
        yield last_events(lock.namespace, lock.stream)


def queue_of(lock: Lock, now: datetime) -> Panel:
    """Who waits for a lock, in order. A waiter whose process is gone, or whose time is up, is passed over."""
    claims = list(
        Claim.objects.filter(id__gt=f"{lock.id}#", id__lt=f"{lock.id}$").order_by("id").only(
            "ticket", "owner", "since", "deadline", "process"
        )[:WAITERS]
    )  # fmt: skip
    alive = set(
        Process.objects.filter(
            id__in={claim.process for claim in claims}, expires_at__gt=Clock()
        ).values_list("id", flat=True)
    )
    rows: list[list[Any]] = [
        [place, claim.owner, span(now - claim.since), span(claim.deadline - now), claim.ticket,
         label("alive", "success") if claim.process in alive else label("gone", "danger")]
        for place, claim in enumerate(claims, 1)
    ]  # fmt: skip
    more = f" (the first {WAITERS} of {lock.queued})" if lock.queued > WAITERS else ""
    headers = ["place", "owner", "waits for", "gives up in", "ticket", "its process"]
    return Panel(f"Waiting{more}", headers, rows, "Nobody waits.")


# -- the front page ----------------------------------------------------------------------------------

SAMPLE_PAGES = 4096  # 32 MB, some 200,000 locks
HELD = "select count(*) from locks_lock{} where lock_id is not null and expires_at > clock_timestamp()"
LONGEST = """select c.id, c.owner, clock_timestamp() - c.since, l.owner, l.expires_at - clock_timestamp(),
    l.lock_id is not null and l.expires_at > clock_timestamp()
from (select id, owner, since from locks_claim where deadline > clock_timestamp() order by since limit 10) c
join locks_lock l on l.id = split_part(c.id, '#', 1) order by c.since"""
REFUSED = """select n.name, n.number, e.id, e.data->>'key', e.data->>'fencing_token', e.data->>'last_token',
    e.data->>'operation', e.actor, e.recorded_at
from core_namespace n, lateral (select * from core_event e where e.namespace_id = n.number
    and e.stream = '$fence' order by e.version desc limit 5) e order by e.recorded_at desc limit 5"""


def locks_held() -> str:
    """How many locks are held now. Of a large table a sample is read: what is held is on no index, because
    every renewal would have to write it."""
    ((pages,),) = fetch("select pg_relation_size('locks_lock') / current_setting('block_size')::int")
    if pages <= SAMPLE_PAGES:
        ((count,),) = fetch(HELD.format(""))
        return f"{count:,}"
    ((count,),) = fetch(HELD.format(" tablesample system (%s)"), [100 * SAMPLE_PAGES / pages])
    return f"about {round(count * pages / SAMPLE_PAGES):,}"


@on_front_page("locks.find")
def locks_now() -> Iterable[Figure | Panel]:
    """How many locks are held, how many wait, and who waits longest."""
    url = reverse("admin:locks_lock_changelist")
    yield Figure("Locks held", locks_held(), link=f"{url}?held=1")
    ((contended, waiting),) = fetch(
        "select count(*), coalesce(sum(queued), 0) from locks_lock where queued > 0"
    )
    yield Figure("Contended locks", f"{contended:,}", link=f"{url}?contended=1")
    yield Figure("Waiters", f"{waiting:,}")
    yield longest_waits()
    yield from refusals()


def longest_waits() -> Panel:
    rows: list[list[Any]] = []
    for claim, waiter, waited, holder, left, held in fetch(LONGEST):
        address = claim.partition("#")[0]
        rows.append([span(waited), waiter, link(url_of(Lock, address), address), holder if held else "-",
                     span(left) if held else "-"])  # fmt: skip
    headers = ["waits for", "who", "lock", "held by", "expires in"]
    url = f"{reverse('admin:locks_lock_changelist')}?contended=1"
    return Panel("Longest waits", headers, rows, "Nobody waits.", url)


def refusals() -> Iterable[Panel]:
    """The last writes that were refused for a stale token, if any ever was."""
    rows: list[list[Any]] = [
        [when(at), link(url_of(Lock, f"{name}/{key}"), f"{name}/{key}"), operation, token, last, actor]
        for name, _, _, key, token, last, operation, actor, at in fetch(REFUSED)
    ]
    if rows:
        headers = ["when", "lock", "operation", "token", "last token", "caller"]
        yield Panel("Writes refused for a stale token", headers, rows)
