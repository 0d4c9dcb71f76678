"""What the admin's user may see and do: what the same person may over the API."""

from django.apps import apps
from django.contrib import admin
from django.http import HttpRequest

from core.callers import Caller, authorize
from core.errors import Forbidden
from core.operations import registry


def caller_of(request: HttpRequest) -> Caller:
    """The admin's user as every other transport knows it."""
    user = request.user
    return Caller(f"user:{user.get_username()}", is_admin=user.is_active and user.is_staff)


def may(request: HttpRequest, operation: str) -> bool:
    """May this user call this operation? No name: nothing to ask for beyond the admin's login."""
    if not request.user.is_active or not request.user.is_staff:
        return False
    try:
        if operation:
            authorize(caller_of(request), registry[operation], {})
    except Forbidden:
        return False
    return True


def may_look(request: HttpRequest, model: str) -> bool:
    """May this user see the pages about a model (`locks.Lock`)? What the sidebar asks."""
    page = admin.site.get_model_admin(apps.get_model(model))
    return bool(page.has_view_permission(request))
