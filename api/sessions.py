"""People in a browser: who an admin's session belongs to, for doors that are not Django's."""

import asyncio
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user
from django.contrib.sessions.backends.db import SessionStore
from django.core.handlers.asgi import ASGIRequest
from django.db import InterfaceError, OperationalError, close_old_connections
from django.http import HttpRequest, parse_cookie
from rest_framework.authentication import CSRFCheck

from core.callers import Caller, Verdicts
from core.errors import Forbidden, Unavailable

sessions = Verdicts()  # apart from those on credentials: a session's key is none


def caller_of(user: Any) -> Caller:
    """A signed-in user as a caller."""
    return Caller(f"user:{user.get_username()}", is_admin=user.is_staff)


def check_csrf(request: HttpRequest) -> None:
    """Raises: Forbidden, when another site may have made the browser ask."""
    check = CSRFCheck(lambda _: None)
    check.process_request(request)
    if reason := check.process_view(request, None, (), {}):
        raise Forbidden(f"CSRF: {reason}")


async def by_session(scope: dict[str, Any]) -> Caller | None:
    """The caller whose session cookie an HTTP request carries; None without a session that is alive.

    Raises: Forbidden, when the request changes something and does not prove that a page of ours made it; Unavailable.
    """
    key = session_key(scope)
    if not key:
        return None
    found = await by_key(key)
    if found:
        check_csrf(ASGIRequest(scope, BytesIO()))
    return found


async def by_own_page(scope: dict[str, Any], host: str, origin: str) -> Caller | None:
    """The same for a WebSocket, which a browser opens for any site: its Origin must be this host's.

    Raises: Unavailable.
    """
    key = session_key(scope)
    return await by_key(key) if key and urlsplit(origin).netloc == host else None


def session_key(scope: dict[str, Any]) -> str:
    cookies = [value for name, value in scope["headers"] if name == b"cookie"]
    return parse_cookie(b"; ".join(cookies).decode("latin-1")).get(settings.SESSION_COOKIE_NAME, "")


async def by_key(key: str) -> Caller | None:
    """The caller of a session: looked up in a thread, remembered for as long as any credential is.

    Raises: Unavailable.
    """
    if known := sessions.get(key):
        return known
    if found := await asyncio.to_thread(look_up, key):
        sessions.put(key, found)
    return found


def look_up(key: str) -> Caller | None:
    close_old_connections()
    request = HttpRequest()
    request.session = SessionStore(key)
    try:
        user = get_user(request)
        return caller_of(user) if user.is_authenticated else None
    except (OperationalError, InterfaceError) as error:
        raise Unavailable from error
