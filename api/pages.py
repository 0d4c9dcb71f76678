"""The few pages that are not operations: the front door, the codes of errors, the WebSocket's contract, GraphiQL."""

from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_safe

from api.asyncapi import document
from core.callers import developer
from core.errors import SyrosError

# Nothing from another host, whatever the page's code may want; GraphiQL sets styles of its own.
ONLY_FROM_HERE = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:"
)


def home(request: HttpRequest) -> HttpResponse:
    return redirect("docs")


def favicon(request: HttpRequest) -> HttpResponse:
    return HttpResponse(settings.FAVICON, content_type="image/svg+xml")


def asyncapi(request: HttpRequest) -> HttpResponse:
    """What goes over the WebSocket, as AsyncAPI."""
    return JsonResponse(document())


def errors(request: HttpRequest) -> HttpResponse:
    """Every error code with its status and sentence: what a problem's `type` points to."""
    found = sorted(known(SyrosError), key=lambda kind: kind.code)
    return render(request, "errors.html", {"errors": found})


def known(kind: type[SyrosError]) -> set[type[SyrosError]]:
    return {kind}.union(*(known(each) for each in kind.__subclasses__()))


@require_safe
def graphiql(request: HttpRequest) -> HttpResponse:
    """GraphiQL for signed-in staff and, in development mode, for whoever sits at this machine."""
    if not (request.user.is_authenticated and request.user.is_staff) and not is_developer(request):
        return redirect_to_login(request.get_full_path(), reverse("admin:login"))
    response = render(request, "graphiql.html")
    response["Content-Security-Policy"] = ONLY_FROM_HERE
    return response


def is_developer(request: HttpRequest) -> bool:
    try:
        developer(request.META.get("REMOTE_ADDR", ""), request.headers.get("host", ""), None)
    except SyrosError:
        return False
    return True
