"""Services and their instances, for people: where they are, and which are well."""

from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet, TextField
from django.db.models.functions import Cast, Left
from django.http import HttpRequest
from django.urls import reverse

from core.admin import last_events
from core.console import (
    Choice,
    Clock,
    Figure,
    NamespaceFilter,
    Panel,
    RecordAdmin,
    brief,
    each,
    fetch,
    instant,
    label,
    link,
    on_front_page,
    span,
    stored_json,
    url_of,
)
from core.models import Session
from discovery import rules
from discovery.models import Instance, Service
from discovery.places import LISTED, SERVICE_OF

SHOWN = 200  # instances of one service
SAID = 1000  # characters of tags that a line can have
OF_SERVICE = """from discovery_instance i
    where i.id > s.id || '#' and i.id < s.id || '$' and i.status <> 'deregistered'"""
COUNTS = f"""select s.id, (select count(*) {OF_SERVICE}), (select count(*) {OF_SERVICE} and {LISTED})
from discovery_service s where s.id = any(%s)"""
FIGURES = f"""select count(*) filter (where {LISTED}), count(*) filter (where not {LISTED}),
    count(*) filter (where i.protected)
from discovery_instance i join discovery_service s on {SERVICE_OF} where i.status <> 'deregistered'"""
COLOURS = {"healthy": "success", "failing": "danger", "expired": "danger", "maintenance": "warning"}


# -- services ----------------------------------------------------------------------------------------


@admin.register(Service)
class ServiceAdmin(RecordAdmin):
    """Services: how many instances of each there are, and how many of them are healthy.

    One in maintenance is listed to nobody, whatever its instances say. If too many fail at once, the last of them are
    listed all the same: they are protected.
    """

    reads = "services.find"
    actions = (each("services.maintenance", service="name"),)
    list_display = ("name", "namespace", "health", "instances", "upkeep")
    list_filter = (NamespaceFilter,)
    search_help_text = "name prefix"
    fields = (
        ("name", "namespace"),
        ("health", "instances"),
        ("upkeep", "protected"),
        ("last_healthy", instant("failed_at")),
    )

    def complete(self, rows: list[Any]) -> None:
        counts = {address: about for address, *about in fetch(COUNTS, [[row.pk for row in rows]])}
        for row in rows:
            row.count, row.healthy = counts[row.pk]

    @admin.display(description="name")
    def name(self, service: Service) -> str:
        return service.name

    @admin.display(description="maintenance")
    def upkeep(self, service: Service) -> str:
        return service.maintenance or "-"

    @admin.display(description="health")
    def health(self, service: Any) -> str:
        if service.maintenance is not None:
            return label("maintenance", "warning")
        if not service.healthy:
            return label("none healthy", "danger" if service.count else "")
        return label(
            f"{service.healthy} healthy", "success" if service.healthy == service.count else "warning"
        )

    @admin.display(description="instances")
    def instances(self, service: Any) -> str:
        return f"{service.count:,}"

    def panels(self, service: Any) -> Iterable[Panel]:
        yield instances_panel(service)
        yield last_events(service.namespace, service.stream)


def instances_panel(service: Any) -> Panel:
    of_service = with_tags(there(Instance.objects.filter(id__gt=f"{service.pk}#", id__lt=f"{service.pk}$")))
    rows: list[list[Any]] = [
        [link(url_of(Instance, each.pk), each.instance), state_of(each), address_of(each),
         brief(each.reason or "") or "-", each.weight, brief(each.said), span(each.ttl_seconds), left_of(each)]
        for each in of_service.annotate(now=Clock()).order_by("id")[:SHOWN]
    ]  # fmt: skip
    more = f" (the first {SHOWN} of {service.count:,})" if service.count > SHOWN else ""
    headers = ["instance", "state", "address", "reason", "weight", "tags", "TTL", "lease ends in"]
    return Panel(f"Instances{more}", headers, rows, "No instance is registered.")


# -- instances ---------------------------------------------------------------------------------------


class HealthFilter(Choice):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("healthy", "Healthy"), ("failing", "Failing"), ("maintenance", "In maintenance"),
            ("gone", "Not heard of in time"), ("protected", "Protected"),
        ]  # fmt: skip

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "gone":
            return queryset.filter(Q(status=rules.EXPIRED) | Q(expires_at__lte=Clock()))
        if self.value() == "protected":
            return queryset.filter(protected=True)
        if self.value() in ("healthy", "failing", "maintenance"):
            return queryset.filter(~Q(expires_at__lte=Clock()), status=self.value())
        return queryset


@admin.register(Instance)
class InstanceAdmin(RecordAdmin):
    """Instances, and why they are what they are. One that is gone comes back when it registers again."""

    reads = "services.get"
    unloaded = ("tags", "metadata", "checks", "flaps")
    actions = (
        each("services.maintenance", service="service", instance_id="instance"),
        each("services.deregister", service="service", instance_id="instance", incarnation="incarnation"),
    )
    list_display = (
        "instance_id",
        "service_link",
        "namespace",
        "state",
        "why",
        "at",
        "weight",
        "tag_list",
        "left",
    )
    list_filter = (HealthFilter, NamespaceFilter)
    search_help_text = "prefix of service#instance"
    fields = (
        ("instance_id", "service_link"), ("namespace", "state"), ("at", "weight"), ("ttl", "left"),
        ("why", instant("changed_at", "since")), (instant("registered_at"), instant("expires_at", "good until")),
        ("incarnation", "session_link"), (instant("held_until", "held back until"), "upkeep"),
        ("is_private", "tag_list"), "metadata_json",
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        found: QuerySet[Any] = super().get_queryset(request)
        return with_tags(there(found))

    def name_of(self, row: Any) -> str:
        status, _ = rules.seen(row, row.now)
        return f"{row} at {address_of(row)}: {status}"

    @admin.display(description="instance")
    def instance_id(self, instance: Instance) -> str:
        return instance.instance

    @admin.display(description="service")
    def service_link(self, instance: Instance) -> str:
        return link(url_of(Service, f"{instance.namespace}/{instance.service}"), instance.service)

    @admin.display(description="state")
    def state(self, instance: Any) -> str:
        return state_of(instance)

    @admin.display(description="reason")
    def why(self, instance: Any) -> str:
        return brief(instance.reason or "") or "-"

    @admin.display(description="maintenance")
    def upkeep(self, instance: Instance) -> str:
        return instance.maintenance or "-"

    @admin.display(description="lives with the session")
    def session_link(self, instance: Instance) -> str:
        if instance.session is None:
            return "-"
        return link(url_of(Session, f"{instance.namespace}/{instance.session}"), instance.session)

    @admin.display(description="address")
    def at(self, instance: Instance) -> str:
        return address_of(instance)

    @admin.display(description="tags")
    def tag_list(self, instance: Any) -> str:
        return brief(instance.said)

    @admin.display(description="TTL")
    def ttl(self, instance: Instance) -> str:
        return span(instance.ttl_seconds)

    @admin.display(description="lease ends in")
    def left(self, instance: Any) -> str:
        return left_of(instance)

    @admin.display(description="called if its address is private")
    def is_private(self, instance: Instance) -> str:
        return "yes: an administrator registered it" if instance.may_be_private else "no"

    @admin.display(description="metadata")
    def metadata_json(self, instance: Instance) -> str:
        return stored_json(instance, "metadata")

    def panels(self, instance: Instance) -> Iterable[Panel]:
        yield checks_panel(instance)
        service = Service(id=f"{instance.namespace}/{instance.service}")
        yield last_events(service.namespace, service.stream)


def checks_panel(instance: Instance) -> Panel:
    colours = {"passing": "success", "failing": "danger"}
    checks: Any = instance.checks  # Django's connection has read the JSON
    rows: list[list[Any]] = [
        [check["kind"], check["path"] or "-", label(check["state"], colours.get(check["state"], "")),
         brief(check["message"]) or "-", span(check["interval_seconds"]), span(check["timeout_seconds"]),
         f"{check['failures']} / {check['successes']}"]
        for check in checks or ()
    ]  # fmt: skip
    headers = ["check", "path", "state", "message", "every", "time-out", "failures / successes that count"]
    return Panel("Checks", headers, rows, "Nothing is checked: it is healthy as long as it is heard of.")


def there(instances: QuerySet[Any]) -> QuerySet[Any]:
    """Those that are there, and those that went without a word."""
    return instances.exclude(status=rules.DEREGISTERED)


def with_tags(instances: QuerySet[Any]) -> QuerySet[Any]:
    found: QuerySet[Any] = instances.annotate(said=Left(Cast("tags", TextField()), SAID))
    return found.defer("tags", "metadata", "checks", "flaps")


def state_of(instance: Any) -> str:
    status, _ = rules.seen(instance, instance.now)
    since = instance.expires_at or instance.changed_at
    text = f"gone for {span(instance.now - since)}" if status == rules.EXPIRED and since else status
    if instance.protected:
        return label(f"{text}, protected", "warning")
    return label(text, COLOURS.get(status, ""))


def left_of(instance: Any) -> str:
    if instance.expires_at is None:
        return "-" if instance.status in rules.GONE else "with its session"
    return span(instance.expires_at - instance.now) if instance.expires_at > instance.now else "-"


def address_of(instance: Instance) -> str:
    host = f"[{instance.address}]" if ":" in instance.address else instance.address
    return f"{instance.scheme}://{host}:{instance.port}"


# -- the front page ----------------------------------------------------------------------------------


@on_front_page("services.find")
def healthy_instances() -> Iterable[Figure | Panel]:
    """How many instances are healthy, and how many were, a short while ago."""
    ((healthy, others, protected),) = fetch(FIGURES)
    said = [f"{others:,} not" if others else "", f"{protected:,} protected" if protected else ""]
    note = ", ".join(filter(None, said))
    yield Figure("Instances healthy", f"{healthy:,}", note, reverse("admin:discovery_instance_changelist"))
