"""The few pages that are not operations: the front door, the codes of errors, the WebSocket's contract."""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render

from api.asyncapi import document
from core.errors import SyrosError


def home(request: HttpRequest) -> HttpResponse:
    return redirect("docs")


def asyncapi(request: HttpRequest) -> HttpResponse:
    """What goes over the WebSocket, as AsyncAPI."""
    return JsonResponse(document())


def errors(request: HttpRequest) -> HttpResponse:
    """Every error code with its status and sentence: what a problem's `type` points to."""
    found = sorted(known(SyrosError), key=lambda kind: kind.code)
    return render(request, "errors.html", {"errors": found})


def known(kind: type[SyrosError]) -> set[type[SyrosError]]:
    return {kind}.union(*(known(each) for each in kind.__subclasses__()))
