"""The URLs of every operation, from the registry, and of the documentation."""

from django.urls import URLPattern, path, re_path, register_converter
from django.urls.converters import StringConverter
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

from api import pages
from api.rest import view_for
from api.routing import routes
from core.operations import Operation


class Rest(StringConverter):
    """A name in a path: it may hold slashes."""

    regex = ".+"


register_converter(Rest, "rest")


def operation_urls() -> list[URLPattern]:
    """One URL a path, its methods together, in the order in which they are to be tried."""
    paths: dict[str, dict[str, Operation]] = {}
    for route, operation in routes():
        paths.setdefault(route.path, {})[route.method] = operation
    return [
        path(f"api/v1/{text.replace('{', '<rest:').replace('}', '>')}", view_for(found))
        for text, found in paths.items()
    ]


urlpatterns = [
    path("", pages.home),
    path("favicon.ico", pages.favicon),
    path("api/v1/schema", SpectacularAPIView.as_view(), name="schema"),
    path("api/v1/asyncapi", pages.asyncapi, name="asyncapi"),
    path("api/docs", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
    path("api/docs/errors", pages.errors, name="errors"),
    re_path("^graphql/?$", pages.graphiql, name="graphiql"),
    *operation_urls(),
    re_path("^api/v1/.*$", view_for({})),  # a slash at the end, or nothing at all
]
