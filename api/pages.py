"""The few pages that are not operations: the front door, the codes of errors, and 404."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from api.rest import OperationView
from core.errors import MethodNotAllowed, NotFound, SyrosError


def home(request: HttpRequest) -> HttpResponse:
    return redirect("docs")


def errors(request: HttpRequest) -> HttpResponse:
    """Every error code with its status and sentence: what a problem's `type` points to."""
    found = sorted(known(SyrosError), key=lambda kind: kind.code)
    return render(request, "errors.html", {"errors": found})


def known(kind: type[SyrosError]) -> set[type[SyrosError]]:
    return {kind}.union(*(known(each) for each in kind.__subclasses__()))


class NoSuchRoute(OperationView):
    """Whatever is not there below /api/v1/, as a problem."""

    schema = None  # type: ignore[assignment]

    def initial(self, request: Any, *args: Any, **kwargs: Any) -> None:
        from api.requests import PREFIX
        from api.routing import methods

        answered = methods(request.path[len(PREFIX) :].rstrip("/"))
        if answered:
            raise MethodNotAllowed(f"Here: {', '.join(answered)}.", allow=answered)
        raise NotFound("There is no such route.")
