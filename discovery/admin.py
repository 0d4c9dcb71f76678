"""Services and their instances, for people: where they are, and which are well."""

from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet, TextField
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
from discovery.models import Instance, Service

SHOWN = 200  # instances of one service
SAID = 1000  # characters of tags that a line can have
COUNTS = """select id, (select count(*) from discovery_instance i where i.id > a.id || '#' and i.id < a.id || '$'),
    (select count(*) from discovery_instance i where i.id > a.id || '#' and i.id < a.id || '$'
        and i.expires_at > clock_timestamp())
from unnest(%s::text[]) a (id)"""


# -- services ----------------------------------------------------------------------------------------


@admin.register(Service)
class ServiceAdmin(RecordAdmin):
    """Services: how many instances of each there are, and how many of them are healthy."""

    reads = "services.find"
    list_display = ("name", "namespace", "health", "instances")
    list_filter = (NamespaceFilter,)
    search_help_text = "name prefix"
    fields = (("name", "namespace"), ("health", "instances"))

    def complete(self, rows: list[Any]) -> None:
        counts = {address: about for address, *about in fetch(COUNTS, [[row.pk for row in rows]])}
        for row in rows:
            row.count, row.healthy = counts[row.pk]

    @admin.display(description="name")
    def name(self, service: Service) -> str:
        return service.name

    @admin.display(description="health")
    def health(self, service: Any) -> str:
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
    of_service = with_tags(Instance.objects.filter(id__gt=f"{service.pk}#", id__lt=f"{service.pk}$"))
    rows: list[list[Any]] = [
        [link(url_of(Instance, each.pk), each.instance), state_of(each), address_of(each), each.weight,
         brief(each.said), span(each.ttl_seconds), left_of(each)]
        for each in of_service.annotate(now=Clock()).order_by("id")[:SHOWN]
    ]  # fmt: skip
    more = f" (the first {SHOWN} of {service.count:,})" if service.count > SHOWN else ""
    headers = ["instance", "state", "address", "weight", "tags", "TTL", "lease ends in"]
    return Panel(f"Instances{more}", headers, rows, "No instance is registered.")


# -- instances ---------------------------------------------------------------------------------------


class HealthFilter(Choice):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("healthy", "Healthy"), ("gone", "Not heard of in time")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "healthy":
            return queryset.filter(expires_at__gt=Clock())
        return queryset.filter(expires_at__lte=Clock()) if self.value() == "gone" else queryset


@admin.register(Instance)
class InstanceAdmin(RecordAdmin):
    """Instances. One that is deregistered comes back when it registers again."""

    reads = "services.get"
    unloaded = ("tags", "metadata")
    actions = (each("services.deregister", service="service", instance_id="instance"),)
    list_display = ("instance_id", "service_link", "namespace", "state", "at", "weight", "tag_list", "left")
    list_filter = (HealthFilter, NamespaceFilter)
    search_help_text = "prefix of service#instance"
    fields = (
        ("instance_id", "service_link"), ("namespace", "state"), ("at", "weight"), ("ttl", "left"),
        (instant("registered_at"), instant("expires_at", "healthy until")), ("is_private", "tag_list"), "metadata_json",
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        found: QuerySet[Any] = super().get_queryset(request)
        return with_tags(found)

    def name_of(self, row: Any) -> str:
        state = "healthy" if row.expires_at > row.now else "not heard of in time"
        return f"{row} at {address_of(row)}: {state}"

    @admin.display(description="instance")
    def instance_id(self, instance: Instance) -> str:
        return instance.instance

    @admin.display(description="service")
    def service_link(self, instance: Instance) -> str:
        return link(url_of(Service, f"{instance.namespace}/{instance.service}"), instance.service)

    @admin.display(description="state")
    def state(self, instance: Any) -> str:
        return state_of(instance)

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
        service = Service(id=f"{instance.namespace}/{instance.service}")
        yield last_events(service.namespace, service.stream)


def with_tags(instances: QuerySet[Any]) -> QuerySet[Any]:
    found: QuerySet[Any] = instances.annotate(said=Left(Cast("tags", TextField()), SAID))
    return found.defer("tags", "metadata")


def state_of(instance: Any) -> str:
    if instance.expires_at > instance.now:
        return label("healthy", "success")
    return label(f"gone for {span(instance.now - instance.expires_at)}", "danger")


def left_of(instance: Any) -> str:
    return span(instance.expires_at - instance.now) if instance.expires_at > instance.now else "-"


def address_of(instance: Instance) -> str:
    host = f"[{instance.address}]" if ":" in instance.address else instance.address
    return f"{instance.scheme}://{host}:{instance.port}"


# -- the front page ----------------------------------------------------------------------------------


@on_front_page("services.find")
def healthy_instances() -> Iterable[Figure | Panel]:
    """How many instances are healthy, and how many were, a short while ago."""
    ((healthy, gone),) = fetch(
        "select count(*) filter (where expires_at > clock_timestamp()), count(*) filter (where expires_at <= "
        "clock_timestamp()) from discovery_instance"
    )
    note = f"{gone:,} not heard of in time" if gone else ""
    yield Figure("Instances healthy", f"{healthy:,}", note, reverse("admin:discovery_instance_changelist"))
