"""The few pages that are not operations: the front door and the codes of errors."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from core.errors import SyrosError


def home(request: HttpRequest) -> HttpResponse:
    return redirect("docs")


def favicon(request: HttpRequest) -> HttpResponse:
    return HttpResponse(settings.FAVICON, content_type="image/svg+xml")


def errors(request: HttpRequest) -> HttpResponse:
    """Every error code with its status and sentence: what a problem's `type` points to."""
    found = sorted(known(SyrosError), key=lambda kind: kind.code)
    return render(request, "errors.html", {"errors": found})


def known(kind: type[SyrosError]) -> set[type[SyrosError]]:
    return {kind}.union(*(known(each) for each in kind.__subclasses__()))
