"""What the front page says of sagas."""

from collections.abc import Iterable

from django.urls import reverse

from core.console import Figure, Panel, fetch, on_front_page
from sagas.admin.sagas import sagas_panel
from sagas.models import Attention

SHOWN = 10  # sagas that need attention
# By the index alone; those that are over are not looked at.
LIVE = """select status, count(*) from sagas_saga
    where status in ('scheduled', 'running', 'paused', 'compensating', 'attention') group by status
union all select 'task', count(*) from sagas_task union all select 'leased', count(lease_until) from sagas_task"""


@on_front_page("sagas.find")
def sagas_now() -> Iterable[Figure | Panel]:
    """How many sagas are under way, which need a human, and how much waits for workers that poll."""
    count = dict(fetch(LIVE))
    tasks, leased, waiting = count.pop("task"), count.pop("leased"), count.pop("attention", 0)
    others = [f"{count[status]:,} {status}" for status in ("compensating", "paused") if count.get(status)]
    url = reverse("admin:sagas_attention_changelist")
    yield Figure("Sagas under way", f"{sum(count.values()):,}", ", ".join(others),
                 reverse("admin:sagas_saga_changelist"))  # fmt: skip
    yield Figure("Sagas that need attention", f"{waiting:,}", link=url)
    note = f"{leased:,} with a worker" if leased else ""
    yield Figure("Tasks", f"{tasks:,}", note, reverse("admin:sagas_task_changelist"))
    if waiting:
        found = Attention.objects.only("id", "title", "status", "current_step", "created_at").order_by("id")
        yield sagas_panel("Sagas that need attention", found[:SHOWN], url)
