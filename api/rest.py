"""REST through Django REST framework: every operation, documented and browsable, from the registry."""

import asyncio
import json
from typing import Any

from django.core.exceptions import BadRequest, RequestDataTooBig
from django.http import Http404
from rest_framework import exceptions, permissions, renderers
from rest_framework.authentication import BaseAuthentication
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from api import requests, sessions
from api.openapi import OperationSchema
from api.requests import NAMES, Headers
from api.routing import match, methods
from core import errors
from core.callers import ANONYMOUS, Call, Caller
from core.encoding import decode, encode
from core.operations import Operation
from core.runtime import runtime


def headers_of(request: Any) -> Headers:
    headers = Headers()
    for name, attribute in NAMES.items():
        setattr(headers, attribute, request.headers.get(name, ""))
    return headers


def in_loop(coroutine: Any) -> Any:
    """The result of a coroutine of the serving loop, for a view's thread."""
    if runtime.loop is None:
        coroutine.close()
        raise errors.Unavailable("This process is not serving.")
    return asyncio.run_coroutine_threadsafe(coroutine, runtime.loop).result()


class JSONParser(BaseParser):
    """Hands the bytes on: the lane and Django read a body in one and the same way."""

    media_type = "*/*"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> bytes:
        limit: int = parser_context["view"].find(parser_context["request"])[0].max_bytes
        body: bytes = stream.read(limit + 1)
        if len(body) > limit:
            raise errors.TooLarge(f"The body is larger than {limit} bytes.", limit=limit)
        return body


class JSONRenderer(renderers.JSONRenderer):
    def render(self, data: Any, accepted_media_type: Any = None, renderer_context: Any = None) -> bytes:
        return encode(data)


class BrowsableRenderer(renderers.BrowsableAPIRenderer):
    """The page for people: the answer, the documentation, and a raw form to try."""

    def get_default_renderer(self, view: Any) -> renderers.BaseRenderer:
        return JSONRenderer()

    def get_content(self, renderer: Any, data: Any, *args: Any) -> str:
        return json.dumps(decode(encode(data)), indent=2, ensure_ascii=False)

    def show_form_for_method(self, view: Any, method: str, request: Any, obj: Any) -> bool:
        return method in view.allowed_methods

    def render_form_for_serializer(self, serializer: Any) -> str:
        return ""

    def get_rendered_html_form(self, data: Any, view: Any, method: str, request: Any) -> Any:
        return None

    def get_raw_data_form(self, data: Any, view: Any, method: str, request: Any) -> Any:
        if method not in view.allowed_methods or method in {"GET", "OPTIONS"}:
            return None
        form: Any = super().get_raw_data_form(None, _FormView(view), method, request)
        return form


class _FormView:
    """What DRF's raw form wants of a view: JSON, with nothing filled in."""

    parser_classes = [type("JSON", (JSONParser,), {"media_type": "application/json"})]

    def __init__(self, view: Any) -> None:
        self._view = view

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)


class Negotiation(DefaultContentNegotiation):
    """Who asks for nothing Syros has gets JSON, not a refusal."""

    def select_renderer(self, request: Any, renderers: Any, format_suffix: Any = None) -> Any:
        try:
            return super().select_renderer(request, renderers, format_suffix)
        except exceptions.NotAcceptable:
            return renderers[0], renderers[0].media_type


class Credentials(BaseAuthentication):
    """The same credentials as in the lane; for people in a browser, the admin's session."""

    def authenticate(self, request: Request) -> tuple[Caller, None] | None:
        headers = headers_of(request)
        user = getattr(request._request, "user", None)
        if not requests.credential(headers) and user is not None and user.is_authenticated:
            sessions.check_csrf(request._request)
            return sessions.caller_of(user), None
        return in_loop(requests.caller_of(headers, request.META.get("REMOTE_ADDR", ""))), None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class OperationView(APIView):
    """Carries out whatever operation is at a method and a path.

    Django has a class made from it for each path, for the documentation's sake; which operation a request means,
    the same table says as for the lane, since names may hold slashes and look like verbs.
    """

    operations: dict[str, Operation] = {}
    authentication_classes = [Credentials]
    permission_classes = [permissions.AllowAny]  # core.callers.authorize decides, for every transport
    parser_classes = [JSONParser]
    renderer_classes = [JSONRenderer, BrowsableRenderer]
    content_negotiation_class = Negotiation
    schema = OperationSchema()

    def get_exception_handler(self) -> Any:
        return problem_response

    @staticmethod
    def find(request: Any) -> tuple[Operation, dict[str, str]]:
        """The operation that a request means, and the names in its path.

        Raises: MethodNotAllowed, NotFound.
        """
        path = request.path[len(requests.PREFIX) :].rstrip("/")
        if found := match("GET" if request.method == "HEAD" else request.method, path):
            return found
        if answered := methods(path):
            raise errors.MethodNotAllowed(f"Here: {', '.join(answered)}.", allow=answered)
        raise errors.NotFound("There is no such route.")

    def perform_authentication(self, request: Request) -> None:
        if request.method != "OPTIONS" and not self.find(request)[0].anonymous:
            super().perform_authentication(request)

    def handle(self, request: Request, **_: str) -> Response:
        operation, names = self.find(request)
        if operation.streams:
            raise errors.NotAcceptable("A stream: ask without Accept: text/html.")
        headers = headers_of(request)
        caller = ANONYMOUS if operation.anonymous else request.user
        call: Call = in_loop(requests.call_by(caller, headers, request._request.request_id))
        call.size = len(request.data or b"")
        params = requests.parameters(
            operation,
            request.method or "",
            names,
            requests.read_query(request.META.get("QUERY_STRING", "")),
            requests.read_body(request.data or b"", headers.content_type),
        )
        if params.get("wait_seconds"):
            problem = {"pointer": "/wait_seconds", "code": "lane_only", "detail": "ask for JSON to wait"}
            raise errors.Invalid([problem])
        outcome = runtime.run_from_thread(operation, call, params)
        tag = requests.etag(operation, outcome)
        if tag and requests.is_known(tag, headers):
            response = Response(status=304)
        else:
            response = Response(outcome.value, status=outcome.status)
        if tag:
            response["ETag"] = tag
        if outcome.replayed:
            response["Idempotency-Replayed"] = "true"
        if place := requests.location(operation, outcome):
            response["Location"] = place
        return response

    http_method_not_allowed = handle  # another path's method may be meant, or none

    def initialize_request(self, request: Any, *args: Any, **kwargs: Any) -> Request:
        request.request_id = requests.request_id(headers_of(request))
        return super().initialize_request(request, *args, **kwargs)

    def finalize_response(self, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(request, response, *args, **kwargs)
        response["X-Request-Id"] = getattr(request, "request_id", "")
        if response.status_code >= 400 and isinstance(response.accepted_renderer, JSONRenderer):
            response.content_type = "application/problem+json"
        return response

    def get_view_name(self) -> str:
        return ", ".join(sorted({operation.name for operation in self.operations.values()}))

    def get_view_description(self, html: bool = False) -> Any:
        from django.utils.html import format_html_join

        docs = [(method, op.name, op.doc) for method, op in self.operations.items()]
        if html:
            return format_html_join("", "<h4>{} {}</h4><pre>{}</pre>", docs)
        return "\n\n".join(op.doc for op in self.operations.values())


def problem_response(error: Exception, context: dict[str, Any]) -> Response | None:
    """Every refusal, Django's and DRF's own included, as a problem."""
    request = context["request"]
    found = as_problem(error)
    if found is None:
        return None
    response = Response(found.problem(getattr(request, "request_id", "")), status=found.status)
    for name, value in found.headers.items():
        response[name] = value
    if isinstance(found, errors.MethodNotAllowed):
        response["Allow"] = ", ".join(found.extra.get("allow", ()))
    return response


def as_problem(error: Exception) -> errors.SyrosError | None:
    if isinstance(error, errors.SyrosError):
        return error
    if isinstance(error, Http404):
        return errors.NotFound()
    if isinstance(error, exceptions.MethodNotAllowed):
        return errors.MethodNotAllowed()
    if isinstance(error, exceptions.PermissionDenied):
        return errors.Forbidden(str(error.detail))
    if isinstance(error, exceptions.AuthenticationFailed | exceptions.NotAuthenticated):
        return errors.Unauthenticated()
    if isinstance(error, RequestDataTooBig):
        return errors.TooLarge()
    if isinstance(error, exceptions.ParseError | BadRequest):
        return errors.Malformed(str(error))
    return None


def view_for(operations: dict[str, Operation]) -> Any:
    """A view class for one path: DRF finds its methods by name."""
    handlers = {method.lower(): OperationView.handle for method in operations}
    made: Any = type("OperationView", (OperationView,), {"operations": operations, **handlers})
    return made.as_view()
