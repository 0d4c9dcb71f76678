"""What the admin's pages are made of: records that are only read, pages by key, operations as actions.

The admin is a transport like the others: what a page shows is decided by the right to read it over the API, and
what a page changes is changed by an operation, authorized and logged like a client's.
"""

from core.console.actions import Action, Json, each, run, takes
from core.console.display import brief, instant, label, link, span, stored_json, when
from core.console.front import Figure, front_page, on_front_page
from core.console.lists import Choice, Keyset, NamespaceFilter, OneNamespace, in_question
from core.console.reading import Clock, fetch
from core.console.records import Panel, RecordAdmin, url_of
from core.console.rights import may_look

__all__ = [
    "Action", "Choice", "Clock", "Figure", "Json", "Keyset", "NamespaceFilter", "OneNamespace", "Panel", "RecordAdmin",
    "brief", "each", "fetch", "front_page", "in_question", "instant", "label", "link", "may_look", "on_front_page",
    "run", "span", "stored_json", "takes", "url_of", "when",
]  # fmt: skip
