"""Access: API keys, and the accounts of people."""

from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, Permission, User
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from rest_framework_simplejwt.token_blacklist import admin as _tokens  # noqa: F401  registers what is undone below
from rest_framework_simplejwt.token_blacklist.models import BlacklistedToken, OutstandingToken
from unfold.admin import ModelAdmin
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from core.console import (
    Choice,
    Clock,
    Figure,
    NamespaceFilter,
    Panel,
    RecordAdmin,
    each,
    fetch,
    instant,
    label,
    on_front_page,
)
from rbac.models import ApiKey

# Refresh tokens are credentials: nobody reads them off a page. Users and groups come again below.
admin.site.unregister([OutstandingToken, BlacklistedToken, User, Group])

ENDED = Q(revoked_at__isnull=False) | Q(expires_at__isnull=False, expires_at__lte=Clock())


class ActiveFilter(Choice):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("active", "Active"), ("ended", "Expired or revoked")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "active":
            return queryset.exclude(ENDED)
        return queryset.filter(ENDED) if self.value() == "ended" else queryset


@admin.register(ApiKey)
class ApiKeyAdmin(RecordAdmin):
    """API keys, without what would help to make one: the digest stays in the database."""

    reads = "api_keys.find"
    unloaded = ("digest",)
    actions = (each("api_keys.revoke", key_id="key_id"),)
    list_display = (
        "key_id", "title", "namespace", "state", "created_by", instant("created_at"), instant("expires_at", "expires"),
    )  # fmt: skip
    list_filter = (ActiveFilter, NamespaceFilter)
    search_help_text = "id prefix, or part of the name"
    fields = (
        ("key_id", "title"), ("namespace", "state"), ("created_by", instant("created_at")),
        (instant("expires_at", "expires"), instant("revoked_at")),
    )  # fmt: skip

    def found(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        return queryset.filter(Q(key_id__startswith=term) | Q(title__icontains=term))

    def name_of(self, row: Any) -> str:
        return f"{row.title} ({row})"

    @admin.display(description="state")
    def state(self, key: Any) -> str:
        if key.revoked_at is not None:
            return label("revoked", "danger")
        if key.expires_at is not None and key.expires_at <= key.now:
            return label("expired", "warning")
        return label("active", "success")


@on_front_page("api_keys.find")
def api_keys() -> Iterable[Figure | Panel]:
    """How many API keys are good, and how many of them will not be for long."""
    ((active, ending),) = fetch(
        "select count(*), count(*) filter (where expires_at < clock_timestamp() + interval '14 days') from rbac_apikey "
        "where revoked_at is null and (expires_at is null or expires_at > clock_timestamp())"
    )
    url = f"{reverse('admin:rbac_apikey_changelist')}?state=active"
    yield Figure("API keys", active, f"{ending} expire within 14 days" if ending else "", url)


# -- accounts ----------------------------------------------------------------------------------------

LAST_LOGIN, JOINED = instant("last_login"), instant("date_joined", "joined")


@admin.register(User)
class UserAdmin(DjangoUserAdmin, ModelAdmin):  # type: ignore[misc,type-arg]
    """The accounts. Only a superuser touches superusers and gives rights: anybody else could raise themselves."""

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    actions = None
    list_display = ("username", "email", "is_active", "is_staff", "is_superuser", LAST_LOGIN)
    readonly_fields = (LAST_LOGIN, JOINED)  # type: ignore[assignment]  # Django takes callables, its stubs do not
    filter_horizontal = ()
    show_facets = admin.ShowFacets.NEVER
    fieldsets = (
        (None, {"fields": ("username", "password", ("first_name", "last_name"), "email")}),
        ("Rights", {"fields": ("is_active", "is_staff", "is_superuser", "groups")}),
        (None, {"fields": ((LAST_LOGIN, JOINED),)}),  # type: ignore[typeddict-item]
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        rights = ("is_staff", "is_superuser", "groups")
        return self.readonly_fields if request.user.is_superuser else (*self.readonly_fields, *rights)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return may_touch(request, obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return may_touch(request, obj) and super().has_delete_permission(request, obj)


def may_touch(request: HttpRequest, user: Any) -> bool:
    return bool(request.user.is_superuser or user is None or not user.is_superuser)


@admin.register(Group)
class GroupAdmin(DjangoGroupAdmin, ModelAdmin):  # type: ignore[misc]
    """Groups of accounts, and which of the accounts' pages their members may use: all else is an operation's
    right. A group's permissions are rights, so only superusers change them."""

    actions = None
    filter_horizontal = ()

    def formfield_for_manytomany(
        self, db_field: Any, request: HttpRequest | None = None, **kwargs: Any
    ) -> Any:
        if db_field.name == "permissions":
            kwargs["queryset"] = Permission.objects.filter(
                content_type__app_label="auth", content_type__model__in=["user", "group"]
            ).select_related("content_type")
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.is_superuser

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.is_superuser

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.is_superuser
