"""The admin's site: what belongs to no app."""

from time import perf_counter
from typing import Any

from django.core.paginator import Paginator
from django.http import HttpRequest
from django.template.response import TemplateResponse
from unfold.dataclasses import SearchResult
from unfold.sites import UnfoldAdminSite

from core.console import reading, url_of
from core.console.reading import TooSlow, limited

FOUND = 5  # of one kind


class Site(UnfoldAdminSite):
    """Unfold's site with a search that takes any name or id: of a lock, a stream, an event, a key, an account."""

    index_title = "Now"

    def search(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """What the term may mean. Never kept, unlike Unfold's, which would show what has long been gone."""
        started = perf_counter()
        term = request.GET.get("s", "").replace("\0", "").strip()[:400]
        results = [*self._pages(request, term), *self._records(request, term)] if term else []
        page = Paginator(results, 1000)
        context = {
            "page_obj": page,
            "results": page.page(1),
            "page_counter": 0,
            "execution_time": perf_counter() - started,
            "command_show_history": False,
        }
        template = "command_results" if "extended" in request.GET else "search_results"
        return TemplateResponse(
            request, f"unfold/helpers/{template}.html", context, headers={"HX-Trigger": "search"}
        )

    def _pages(self, request: HttpRequest, term: str) -> list[SearchResult]:
        """The lists whose name holds the term."""
        return [
            SearchResult(str(model["name"]), app["name"], model["admin_url"], "list")
            for app in self.get_app_list(request)
            for model in app["models"]
            if term.lower() in str(model["name"]).lower()
        ]

    def _records(self, request: HttpRequest, term: str) -> list[SearchResult]:
        results = []
        for model, page in self._registry.items():
            if page.search_fields and page.has_view_permission(request):
                results += self._of_kind(request, model, page, term)
        return results

    def _of_kind(self, request: HttpRequest, model: Any, page: Any, term: str) -> list[SearchResult]:
        try:
            with limited(reading.PANEL_SECONDS):
                found, _ = page.get_search_results(request, page.get_queryset(request), term)
                rows = list(found.order_by("pk")[:FOUND])
        except TooSlow:
            return []
        kind = str(model._meta.verbose_name)
        return [SearchResult(str(row), kind, url_of(model, row.pk), "tag") for row in rows]
