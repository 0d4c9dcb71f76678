"""The admin: what operators see, what they cannot see, and that they change nothing but by operations."""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote as url_quote
from uuid import uuid4

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from core.console import lists
from core.runtime import runtime
from tests.doors import Lane, Python, Refused, Served
from tests.test_locks import until

pytestmark = pytest.mark.usefixtures("few_to_choose")

# Every page of the site, so that one that is registered later is looked at too.
MODELS = [model._meta.label for model in admin.site._registry]
RECORDS = [label for label in MODELS if not label.startswith("auth.")]
ODD = [
    "\0", "a\0b", "%", "100%_", "'; drop table x; --", "\\", "x" * 5000, "9" * 5000, "ü€😀\u202e", "${7*7}{{7*7}}",
    "*", "owner:", "owner:\0", "$", "../..", "-1", "0", "1e9", "00000000-0000-8000-8000-010000000001",
    "0191b1c0-7c3e-7000-8000-0123456789ab",
]  # fmt: skip


def user(name: str, password: str | None = None, **rights: bool) -> Any:
    from django.contrib.auth.models import User

    return User.objects.create_user(f"{name}-{uuid4().hex[:8]}", password=password, **rights)


def browser(account: Any, **options: Any) -> Client:
    """A logged-in browser that asks for HTML and has errors answered, not raised."""
    client = Client(
        headers={"host": "localhost", "accept": "text/html"}, raise_request_exception=False, **options
    )
    client.force_login(account)
    return client


@pytest.fixture(scope="module")
def root(served: Served) -> Client:
    return browser(user("root", is_staff=True, is_superuser=True))


@pytest.fixture(scope="module")
def operator(served: Served) -> Client:
    """On the staff, without any of Django's permissions."""
    return browser(user("operator", is_staff=True))


def listing(label: str, **query: str) -> str:
    app, model = label.lower().split(".")
    asked = "&".join(f"{name}={url_quote(value)}" for name, value in query.items())
    return reverse(f"admin:{app}_{model}_changelist") + (f"?{asked}" if asked else "")


def page(label: str, key: Any, view: str = "change") -> str:
    app, model = label.lower().split(".")
    return reverse(f"admin:{app}_{model}_{view}", args=[quote(key)])


def text(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200, f"{url}: {response.status_code}"
    return response.content.decode()


def sagas_of_every_kind(lane: Lane) -> dict[str, str]:
    """The ids of one that waits for a signal, one whose task waits for a worker, and one that needs a human; beside
    them a definition, and a service that nobody calls."""
    instance = {
        "service": "bank",
        "instance_id": "one",
        "address": "192.0.2.7",
        "port": 80,
        "ttl_seconds": 3600,
    }
    lane("services.register", **instance, tags=["eu"], metadata={"pod": "b-1"})
    lane("definitions.put", name="order", steps=[{"name": "nap", "kind": "sleep", "seconds": 3600}])
    lane(
        "schedules.put",
        name="nightly",
        definition="order",
        cron="30 2 * * *",
        time_zone="Europe/Vienna",
        input={"n": 1},
    )
    lane("schedules.run", name="nightly", reason="to see what it does")
    lane("config.put", key="shop/limit", value={"most": 1})
    lane("config.put", key="shop/limit", value={"most": 2}, reason="more", rollout={"percentage": 50})
    lane("config.put_schema", prefix="shop", json_schema={"type": "object"})
    gate = {"name": "gate", "kind": "signal", "timeout_seconds": 3600}
    work = {"name": "print", "service": "printer", "action": "print", "timeout_seconds": 3600}
    past = {"name": "past", "kind": "sleep", "seconds": 0, "pivot": True}

    def start(name: str, *steps: Any) -> str:
        return str(lane("sagas.start", name=name, steps=list(steps), tags={"shop": "a"})["saga_id"])

    found = {
        "waiting": start("approval", gate),
        "queued": start("paper", work),
        "stuck": start("stuck", past, {**work, "timeout_seconds": 0.1}),
    }
    until(lambda: lane("sagas.get", saga_id=found["stuck"])["status"] == "attention")
    return found


@contextmanager
def one_of_everything(lane: Lane) -> Iterator[SimpleNamespace]:
    """In a namespace: a lock that was held, is held and is waited for, events, a key, a session that holds, an
    election."""
    first = lane("locks.acquire", key="jobs/a", owner="first")
    lane("locks.release", key="jobs/a", lock_id=first["lock_id"])
    held = lane("locks.acquire", key="jobs/a", owner="holder", ttl_seconds=600, metadata={"host": "h-17"})
    lane("locks.acquire", key="jobs/b", owner="other", ttl_seconds=600)
    lane(
        "events.append",
        stream_id="order-1",
        event_type="Placed",
        data={"deep": [1, {"sku": "€"}]},
        metadata={"m": 1},
    )
    key = lane("api_keys.create", name="ci")
    session = lane("sessions.open", owner="batch", ttl_seconds=600, metadata={"pod": "p-3"})["session_id"]
    many = {"key": "pool/s", "session_id": session, "capacity": 5}
    permits = lane("locks.acquire", **many, owner="batch", permits=2, metadata={"slot": "left"})
    lead = lane(
        "elections.campaign", name="primary", candidate="node-1", value={"at": "10.0.0.7"}, ttl_seconds=600
    )
    name = lane.namespace
    sagas = sagas_of_every_kind(lane)
    event = apps.get_model("core.Event").objects.get(namespace__name=name, stream="order-1")
    lane("caches.put", max_ttl_seconds=7200)
    keys = {
        "core.Event": event.pk, "core.Stream": f"{name}/order-1", "core.Namespace": event.namespace_id,
        "core.Process": runtime.engine and runtime.engine.process_id, "locks.Lock": f"{name}/jobs/a",
        "rbac.ApiKey": f"{name}/{key['id']}", "core.Session": f"{name}/{session}",
        "locks.Election": f"{name}/$election:primary", "sagas.Saga": f"{name}/{sagas['waiting']}",
        "sagas.Attention": f"{name}/{sagas['stuck']}", "sagas.Task": f"{name}/{sagas['queued']}.print.action",
        "sagas.Definition": f"{name}/order#000001", "sagas.DefinitionName": f"{name}/order",
        "sagas.Schedule": f"{name}/nightly",
        "cache.Cache": f"{name}/cache", "discovery.Service": f"{name}/bank", "discovery.Instance": f"{name}/bank#one",
        "config.Entry": f"{name}/shop/limit", "config.Schema": f"{name}/shop",
    }  # fmt: skip
    patient = Python(lane.served, name)  # the lane's client waits a minute at most
    with ThreadPoolExecutor(2) as pool:
        waiters = []
        for owner in ("second", "third"):
            waiters.append(pool.submit(patient, "locks.acquire", key="jobs/a", owner=owner, wait_seconds=300))
            until(lambda: lane("locks.get", key="jobs/a")["queue_length"] == len(waiters))
        yield SimpleNamespace(
            namespace=name, lock=f"{name}/jobs/a", first=first["lock_id"], held=held["lock_id"], key=key["key"],
            key_id=key["id"], api_key=f"{name}/{key['id']}", token=held["fencing_token"], keys=keys,
            session=session, permits=permits["lock_id"], lead=lead["lock_id"],
        )  # fmt: skip
        lane("locks.release", key="jobs/a", lock_id=held["lock_id"])
        for waiter in waiters:
            with suppress(Refused):  # on a busy machine they have waited for longer than one may
                lane("locks.release", key="jobs/a", lock_id=waiter.result(10)["lock_id"])


@pytest.fixture
def world(served: Served, lane: Lane) -> Iterator[SimpleNamespace]:
    """One of everything, fresh."""
    with one_of_everything(lane) as found:
        yield found


@pytest.fixture(scope="module")
def scene(served: Served) -> Iterator[SimpleNamespace]:
    """One of everything, for tests that only look."""
    name = apps.get_model("core.Namespace").objects.create(name=f"s{uuid4().hex[:12]}").name
    with one_of_everything(Lane(served, name)) as found:
        yield found


def key_of(label: str, scene: SimpleNamespace) -> Any:
    """The key of a row of this model, which stays as long as the scene."""
    if label == "auth.Group":
        return apps.get_model(label).objects.get_or_create(name="operators")[0].pk
    if label == "auth.User":
        return apps.get_model(label).objects.values_list("pk", flat=True)[0]
    return scene.keys[label]


def every_page(label: str, scene: SimpleNamespace) -> list[str]:
    key = key_of(label, scene)
    return [listing(label), page(label, key), page(label, key, "history")]


# -- who may look ------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", MODELS)
def test_every_page_opens(root: Client, scene: SimpleNamespace, label: str) -> None:
    for url in every_page(label, scene):
        text(root, url)


@pytest.mark.parametrize("label", RECORDS)
def test_the_staff_sees_every_record(operator: Client, scene: SimpleNamespace, label: str) -> None:
    for url in every_page(label, scene):
        text(operator, url)


@pytest.mark.parametrize("label", MODELS)
def test_nobody_looks_without_logging_in(scene: SimpleNamespace, label: str) -> None:
    """Not even on this machine in development mode: that is for the API."""
    strangers = [Client(headers={"host": "localhost"}), browser(user("alice"))]
    urls = [
        *every_page(label, scene),
        "/admin/",
        "/admin/search/?s=jobs&extended=1",
        f"/admin/{label.partition('.')[0]}/",
    ]
    for client in strangers:
        for url in urls:
            response = client.get(url)
            assert (response.status_code, response.url.partition("?")[0]) == (302, "/admin/login/")


def test_the_accounts_are_not_for_every_operator(operator: Client, scene: SimpleNamespace) -> None:
    for label in ("auth.User", "auth.Group"):
        for url in every_page(label, scene):
            assert operator.get(url).status_code == 403
    front = text(operator, "/admin/")
    assert listing("auth.User") not in front
    assert listing("locks.Lock") in front


def test_the_right_to_call_is_the_right_to_look(
    operator: Client, scene: SimpleNamespace, monkeypatch: Any
) -> None:
    from core.console import rights
    from core.errors import Forbidden

    def authorize(caller: Any, operation: Any, params: Any) -> None:
        if operation.name.startswith("locks."):
            raise Forbidden

    monkeypatch.setattr(rights, "authorize", authorize)
    for url in every_page("locks.Lock", scene):
        assert operator.get(url).status_code == 403
    front = text(operator, "/admin/")
    assert "Locks held" not in front
    assert listing("locks.Lock") not in front
    assert scene.lock not in text(operator, f"/admin/search/?s={scene.namespace}&extended=1")
    assert "Events in the last minute" in front


def test_who_is_disabled_is_out(scene: SimpleNamespace) -> None:
    account = user("gone", is_staff=True)
    client = browser(account)
    text(client, listing("locks.Lock"))
    type(account).objects.filter(pk=account.pk).update(is_active=False)
    assert client.get(listing("locks.Lock")).status_code == 302


# -- what nobody sees --------------------------------------------------------------------------------


def test_secrets_are_on_no_page(root: Client, lane: Lane, world: SimpleNamespace) -> None:
    from core.models import Answer
    from locks.models import Claim
    from rbac.models import ApiKey

    tokens = lane(
        "auth.login", username=user("carol", "correct horse").username, password="correct horse"
    ).value
    secrets = [
        world.first,
        world.held,
        world.permits,
        world.lead,
        world.key,
        world.key.rpartition("_")[2],
        tokens["refresh"],
    ]
    secrets += ApiKey.objects.filter(id=world.api_key).values_list("digest", flat=True)
    secrets += Claim.objects.filter(id__startswith=world.lock).values_list("lock_id", flat=True)
    assert len(secrets) >= 10
    urls = [url for label in MODELS for url in every_page(label, world)]
    urls += [
        "/admin/",
        "/admin/search/?extended=1&s=jobs",
        page("locks.Lock", world.lock),
        page("locks.Lock", f"{world.namespace}/pool/s"),
        page("rbac.ApiKey", world.api_key),
        *(page(label, world.keys[label]) for label in ("core.Session", "locks.Election")),
    ]
    urls += [
        listing("locks.Lock", q="jobs/a"),
        listing("core.Event", q="$lock:jobs/a"),
        listing("core.Event", q="$access"),
    ]
    for url in urls:
        found = text(root, url)
        assert not [secret for secret in secrets if secret in found], url
    assert not {Answer._meta.label, Claim._meta.label, "token_blacklist.OutstandingToken"} & set(MODELS)


@pytest.mark.parametrize(
    "asked", ["lock_id__startswith=a", "lock_id=a", "endings__contains=a", "owner__gt=a", "e__x=1"]
)
def test_a_secret_cannot_be_guessed_by_filters(operator: Client, scene: SimpleNamespace, asked: str) -> None:
    for label, value in (("locks.Lock", asked), ("rbac.ApiKey", asked.replace("lock_id", "digest"))):
        assert operator.get(f"{listing(label)}?{value}").status_code == 400


def test_order_and_return_field_tell_nothing(operator: Client, scene: SimpleNamespace) -> None:
    found = [
        text(operator, f"{listing('locks.Lock', namespace=scene.namespace)}&o={order}")
        for order in ("1", "-1", "-4")
    ]
    assert [re.findall("jobs/[ab]", each)[0] for each in found] == ["jobs/a"] * 3
    assert operator.get(f"{listing('locks.Lock')}?_to_field=lock_id&_popup=1").status_code == 400


def test_what_clients_wrote_is_text(root: Client, lane: Lane) -> None:
    evil = "<img src=x onerror=alert(1)>"
    lane("locks.acquire", key="x", owner=evil, metadata={"a": evil})
    lane("events.append", stream_id="x", event_type=evil, data={"a": evil, "</pre>": 1})
    key = lane("api_keys.create", name=evil)
    (event,) = lane("events.read", stream_id="x")["events"]
    address = apps.get_model("core.Event").objects.get(stream="x", namespace__name=lane.namespace).pk
    assert event["event_type"] == evil
    urls = [
        listing("locks.Lock", q="x"),
        page("locks.Lock", f"{lane.namespace}/x"),
        page("core.Event", address),
        "/admin/",
    ]
    urls += [
        listing("core.Event", namespace=lane.namespace),
        listing("rbac.ApiKey", q=evil),
        listing("locks.Lock", q=evil),
    ]
    urls += [
        page("rbac.ApiKey", f"{lane.namespace}/{key['id']}"),
        f"/admin/search/?extended=1&s={url_quote(evil)}",
    ]
    for url in urls:
        assert "<img src=x" not in text(root, url), url
    assert "&lt;img src=x" in text(root, page("core.Event", address))


# -- what nobody changes -----------------------------------------------------------------------------


@pytest.mark.parametrize("label", RECORDS)
def test_records_are_not_changed_by_hand(root: Client, scene: SimpleNamespace, label: str) -> None:
    model, key = apps.get_model(label), scene.keys[label]
    beats = {"beat_at", "expires_at"} if label == "core.Process" else set()
    names = [field.name for field in model._meta.concrete_fields if field.name not in beats]
    before = model.objects.values(*names).get(pk=key)
    add = reverse(f"admin:{label.lower().replace('.', '_')}_add")
    posted = {"id": "x", "version": 9, "owner": "me", "name": "x", "title": "x", "post": "yes"}
    for url in (page(label, key), add, page(label, key, "delete")):
        assert root.post(url, posted).status_code == 403
    assert root.get(add).status_code == 403
    selected = {"action": "delete_selected", "_selected_action": key, "index": 0, "post": "yes"}
    root.post(listing(label), selected)
    root.post(listing(label), {"_save": "1", "form-TOTAL_FORMS": 1, "form-0-id": key, "form-0-owner": "me"})
    assert model.objects.values(*names).get(pk=key) == before


def revoke(client: Client, *keys: str, **more: Any) -> Any:
    chosen = {"action": "api_keys_revoke", "_selected_action": list(keys), "index": 0, **more}
    return client.post(listing("rbac.ApiKey"), chosen, follow=True)


def access_events(lane: Lane) -> list[tuple[str, str]]:
    found = lane("events.read", stream_id="$access")["events"]
    return [(event["event_type"], event["data"]["id"]) for event in found]


def is_good(served: Served, key: str) -> bool:
    from core.callers import identify
    from core.errors import Unauthenticated

    try:
        served.do(identify(key, peer="192.0.2.1", host="x", origin=None))
    except Unauthenticated:
        return False
    return True


def test_a_key_is_revoked_by_the_operation(served: Served, lane: Lane, world: SimpleNamespace) -> None:
    account = user("boss", is_staff=True)
    assert is_good(served, world.key)
    answer = revoke(browser(account), world.api_key, confirmed="yes").content.decode()
    assert "api_keys.revoke: 1 done" in answer
    until(lambda: not is_good(served, world.key), 5)
    assert access_events(lane) == [("api_key.created", world.key_id), ("api_key.revoked", world.key_id)]
    event = (
        apps.get_model("core.Event")
        .objects.filter(namespace__name=lane.namespace, type="api_key.revoked")
        .get()
    )
    assert event.actor == f"user:{account.username}"


def test_revoking_is_confirmed_first(
    served: Served, lane: Lane, operator: Client, world: SimpleNamespace
) -> None:
    asked = revoke(operator, world.api_key).content.decode()
    assert "It is refused everywhere within 5 seconds" in asked
    assert f"ci ({world.api_key})" in asked
    button = text(operator, page("rbac.ApiKey", world.api_key))
    assert f'name="_selected_action" value="{world.api_key}"' in button
    assert 'value="api_keys_revoke"' in button
    assert access_events(lane) == [("api_key.created", world.key_id)]
    assert is_good(served, world.key)


def test_only_what_was_shown_is_done(lane: Lane, operator: Client, world: SimpleNamespace) -> None:
    other = lane("api_keys.create", name="other")
    revoke(operator, world.api_key, confirmed="yes", select_across="1")
    assert {key["id"]: key["is_active"] for key in lane("api_keys.find")["items"]} == {
        other["id"]: True,
        world.key_id: False,
    }
    assert "Nothing is selected any more" in revoke(operator, "no/such").content.decode()
    assert revoke(operator, "a\0b", confirmed="yes").status_code == 200


def test_an_action_needs_the_right_and_the_token_of_the_page(
    lane: Lane, world: SimpleNamespace, monkeypatch: Any
) -> None:
    strict = browser(user("boss", is_staff=True), enforce_csrf_checks=True)
    assert revoke(strict, world.api_key, confirmed="yes").status_code == 403
    from core import runtime
    from core.console import rights
    from core.errors import Forbidden

    def authorize(caller: Any, operation: Any, params: Any) -> None:
        if operation.name == "api_keys.revoke":
            raise Forbidden("Not you.")

    client = browser(user("boss", is_staff=True))
    monkeypatch.setattr(runtime, "authorize", authorize)  # the right goes while the page is open
    assert "Not you. (forbidden)" in revoke(client, world.api_key, confirmed="yes").content.decode()
    monkeypatch.setattr(rights, "authorize", authorize)
    revoke(client, world.api_key, confirmed="yes")
    assert "api_keys_revoke" not in text(client, page("rbac.ApiKey", world.api_key))
    assert access_events(lane) == [("api_key.created", world.key_id)]


def test_what_the_row_does_not_give_is_asked_for(
    lane: Lane, operator: Client, world: SimpleNamespace, monkeypatch: Any
) -> None:
    from core.console import each

    pages = admin.site.get_model_admin(apps.get_model("rbac.ApiKey"))
    monkeypatch.setattr(pages, "actions", (each("api_keys.revoke"),))
    assert 'name="key_id"' in revoke(operator, world.api_key).content.decode()
    assert "This field is required" in revoke(operator, world.api_key, confirmed="yes").content.decode()
    for wrong, code in (("NO", "string_pattern_mismatch"), ("0" * 12, "api_key_not_found")):
        refused = revoke(operator, world.api_key, confirmed="yes", key_id=wrong).content.decode()
        assert f"({code})" in refused
    assert access_events(lane) == [("api_key.created", world.key_id)]
    revoke(operator, world.api_key, confirmed="yes", key_id=world.key_id)
    assert access_events(lane)[-1] == ("api_key.revoked", world.key_id)


def act(client: Client, label: str, operation: str, keys: list[str], **more: Any) -> Any:
    chosen = {"action": operation.replace(".", "_"), "_selected_action": keys, "index": 0, **more}
    return client.post(listing(label), chosen, follow=True)


def test_an_operator_takes_a_lock_from_its_holder(lane: Lane, operator: Client, later: Any) -> None:
    name = lane.namespace
    held = lane("locks.acquire", key="a", owner="stuck", ttl_seconds=600)
    lane("locks.acquire", key="free", owner="x", ttl_seconds=0.1)
    until(lambda: lane("locks.get", key="free")["is_locked"] is False)
    waiter = later(Python(lane.served, name), "locks.acquire", key="a", owner="next", wait_seconds=60)
    until(lambda: lane("locks.get", key="a")["queue_length"] == 1)
    assert 'value="locks_force_release"' in text(operator, page("locks.Lock", f"{name}/a"))
    asked = act(operator, "locks.Lock", "locks.force_release", [f"{name}/a", f"{name}/free"]).content.decode()
    assert f"{name}/a: held by stuck" in asked
    assert f"{name}/free: free" in asked
    assert 'name="reason"' in asked
    sure = {"confirmed": "yes", "lock_delay_seconds": "0.5"}
    for reason in ("", "   "):
        unsaid = act(operator, "locks.Lock", "locks.force_release", [f"{name}/a"], **sure, reason=reason)
        assert "This field is required" in unsaid.content.decode()
    wrong = {"confirmed": "yes", "reason": "for now", "lock_delay_seconds": "61"}
    found = act(operator, "locks.Lock", "locks.force_release", [f"{name}/a"], **wrong).content.decode()
    assert "less_than_equal" in found
    assert 'value="for now"' in found  # nobody types it twice
    assert lane("locks.get", key="a")["holders"][0]["owner"] == "stuck"
    done = act(
        operator,
        "locks.Lock",
        "locks.force_release",
        [f"{name}/a", f"{name}/free"],
        **sure,
        reason="node is gone",
    )
    assert "locks.force_release: 1 done" in done.content.decode()
    assert "Nobody holds free. (lock_not_held)" in done.content.decode()
    granted = waiter.result(10)
    assert granted["fencing_token"] > held["fencing_token"] + 1
    events = apps.get_model("core.Event").objects.filter(namespace__name=name, stream="$lock:a")
    forced = events.get(type="lock.force_released")
    assert forced.actor.startswith("user:operator-")
    assert forced.data["because"] == "node is gone"
    assert granted["waited_seconds"] >= 0.5
    past = text(operator, page("locks.Lock", f"{name}/a"))
    assert "node is gone" in past[past.index("Last holds") :]


def test_from_its_page_one_comes_back_to_it(lane: Lane, operator: Client) -> None:
    lane("locks.acquire", key="a", owner="stuck", ttl_seconds=600)
    address = page("locks.Lock", f"{lane.namespace}/a")
    assert 'name="from_page"' in text(operator, address)
    here = {"from_page": "1", "confirmed": "yes", "lock_delay_seconds": "30", "reason": "why not"}
    answer = act(operator, "locks.Lock", "locks.force_release", [f"{lane.namespace}/a"], **here)
    assert answer.redirect_chain == [(address, 302)]
    assert "locks.force_release: 1 done" in answer.content.decode()
    assert re.search(r">\s*delayed (29|30)\.\d\xa0s", answer.content.decode())


def test_a_leader_is_deposed(lane: Lane, operator: Client, later: Any) -> None:
    name = lane.namespace
    lane("elections.campaign", name="e", candidate="one", ttl_seconds=600)
    next_one = later(
        Python(lane.served, name), "elections.campaign", name="e", candidate="two", wait_seconds=60
    )
    until(lambda: lane("elections.get", name="e")["candidate_count"] == 1)
    address = f"{name}/$election:e"
    asked = act(operator, "locks.Election", "elections.depose", [address]).content.decode()
    assert f"{name}/e: led by one" in asked
    said = {"confirmed": "yes", "reason": "split brain", "lock_delay_seconds": "0"}
    done = act(operator, "locks.Election", "elections.depose", [address], **said).content.decode()
    assert "elections.depose: 1 done" in done
    assert next_one.result(10)["leader"] == "two"
    found = text(operator, page("locks.Election", address))
    assert "election.deposed" in found
    # A lock is not an election, nor the other way round.
    assert operator.get(page("locks.Lock", address)).status_code == 302
    assert (
        "Nothing is selected"
        in act(operator, "locks.Lock", "locks.force_release", [address]).content.decode()
    )


def test_a_session_is_closed(lane: Lane, operator: Client) -> None:
    session = lane("sessions.open", owner="w", ttl_seconds=600)["session_id"]
    lane("locks.acquire", key="a", owner="w", session_id=session)
    address = f"{lane.namespace}/{session}"
    asked = act(operator, "core.Session", "sessions.close", [address]).content.decode()
    assert f"{address} of w: holds 1, waits for 0" in asked
    done = act(operator, "core.Session", "sessions.close", [address], confirmed="yes", from_page="1")
    found = done.content.decode()
    assert "sessions.close: 1 done" in found
    assert re.search(r">\s*closed\s*<", found)
    assert "session.closed" in found
    assert lane("locks.get", key="a")["is_locked"] is False
    again = act(operator, "core.Session", "sessions.close", [address], confirmed="yes").content.decode()
    assert "(session_ended)" in again


# -- accounts ----------------------------------------------------------------------------------------


def test_a_superuser_makes_accounts(root: Client) -> None:
    from django.contrib.auth.models import User

    name = f"new-{uuid4().hex[:8]}"
    secret = {"password1": "correct horse", "password2": "correct horse", "usable_password": "true"}
    root.post(reverse("admin:auth_user_add"), {"username": name, **secret})
    made = User.objects.get(username=name)
    root.post(page("auth.User", made.pk), {"username": name, "is_active": "on", "is_staff": "on"})
    assert User.objects.get(username=name).is_staff is True


def test_nobody_raises_themselves(served: Served, root: Client) -> None:
    from django.contrib.auth.models import Group, Permission, User

    clerk, boss = (
        user("clerk", is_staff=True),
        user("boss", "correct horse", is_staff=True, is_superuser=True),
    )
    group = Group.objects.create(name=f"clerks-{uuid4().hex[:8]}")
    clerk.user_permissions.set(Permission.objects.filter(content_type__app_label="auth"))
    client = browser(clerk)
    wanted = {
        "username": clerk.username,
        "is_active": "on",
        "is_staff": "on",
        "is_superuser": "on",
        "groups": [group.pk],
    }
    assert (
        client.post(page("auth.User", clerk.pk), {**wanted, "email": "clerk@example.com"}).status_code == 302
    )
    changed = User.objects.get(pk=clerk.pk)
    assert (changed.email, changed.is_superuser, list(changed.groups.all())) == (
        "clerk@example.com",
        False,
        [],
    )
    secret = {"password1": "a stolen horse", "password2": "a stolen horse", "usable_password": "true"}
    assert client.post(reverse("admin:auth_user_password_change", args=[boss.pk]), secret).status_code == 403
    assert client.post(page("auth.User", boss.pk), wanted).status_code == 403
    assert client.post(page("auth.User", boss.pk, "delete"), {"post": "yes"}).status_code == 403
    assert client.post(page("auth.Group", group.pk), {"name": "x"}).status_code == 403
    assert client.post(reverse("admin:auth_group_add"), {"name": "x"}).status_code == 403
    assert User.objects.get(pk=boss.pk).check_password("correct horse")
    assert Group.objects.get(pk=group.pk).name == group.name


# -- lists that cost the same however long -----------------------------------------------------------


def a_saga(address: str, status: str, now: datetime) -> dict[str, Any]:
    """The columns of a saga that nobody carries out."""
    return {"id": address, "title": "order", "definition": "x/y#000001", "status": status, "input": "null",
            "progress": '{"steps": {}}', "created_at": now}  # fmt: skip


def rows_of(label: str, namespace: str, count: int) -> dict[str, str]:
    """Make the rows of a list up to a count, and say how to ask for just them."""
    from django.contrib.auth.models import Group, User

    from cache.models import Cache
    from config.models import Entry, Schema
    from core.models import Event, Namespace, Process, Session, Stream, log_id
    from discovery.models import Instance, Service
    from locks.models import Election, Lock
    from rbac.models import ApiKey
    from sagas.models import Attention, Definition, DefinitionName, Saga, Schedule, Task

    now, names = datetime.now(UTC), [f"{namespace}{number:03d}" for number in range(count)]
    number = Namespace.objects.get(name=namespace).number
    makers: dict[str, Callable[[int, str], Any]] = {
        "core.Event": lambda n, name: Event(
            id=log_id(number, n + 1), namespace_id=number, stream=name, version=1, type="t", data="{}",
            actor="a", recorded_at=now),
        "core.Stream": lambda n, name: Stream(id=f"{namespace}/{name}", created_at=now, changed_at=now),
        "core.Namespace": lambda n, name: Namespace(name=name),
        "core.Process": lambda n, name: Process(
            id=f"system/{name}", host=name, pid=n, started_at=now, beat_at=now, expires_at=now),
        "locks.Lock": lambda n, name: Lock(
            id=f"{namespace}/{name}", lock_id="l", owner="o", acquired_at=now, expires_at=now + timedelta(hours=1)),
        "locks.Election": lambda n, name: Election(
            id=f"{namespace}/$election:{name}", lock_id="l", owner="o", acquired_at=now,
            expires_at=now + timedelta(hours=1)),
        "core.Session": lambda n, name: Session(
            id=f"{namespace}/{name}", owner="o", ttl_seconds=60, opened_at=now, expires_at=now + timedelta(hours=1)),
        "rbac.ApiKey": lambda n, name: ApiKey(
            id=f"{namespace}/{name}", key_id=uuid4().hex[:12], title=name, digest="d", created_by="c", created_at=now),
        "sagas.Saga": lambda n, name: Saga(**a_saga(f"{namespace}/{name}", "running", now)),
        "sagas.Attention": lambda n, name: Attention(**a_saga(f"{namespace}/{name}", "attention", now)),
        "sagas.Definition": lambda n, name: Definition(
            id=f"{namespace}/{name}#000001", body='{"steps": []}', created_at=now),
        "sagas.DefinitionName": lambda n, name: DefinitionName(id=f"{namespace}/{name}", version=1),
        "sagas.Schedule": lambda n, name: Schedule(
            id=f"{namespace}/{name}", definition="d", cron="0 0 1 1 *", time_zone="UTC", input="{}", overlap="skip",
            catch_up="last", last_saga=name, next_at=now + timedelta(days=1), created_at=now),
        "sagas.Task": lambda n, name: Task(
            id=f"{namespace}/{name}.a.action", queue=f"{namespace}/shop", saga=f"{namespace}/{name}", step="a",
            op="action", attempt=1, body="{}", queued_at=now),
        "cache.Cache": lambda n, name: Cache(id=f"{namespace}/{name}"),
        "discovery.Service": lambda n, name: Service(id=f"{namespace}/{name}"),
        "discovery.Instance": lambda n, name: Instance(
            id=f"{namespace}/shop#{name}", address="192.0.2.7", port=80, scheme="http", tags="[]", metadata="{}",
            weight=1, may_be_private=False, ttl_seconds=3600, registered_at=now, expires_at=now + timedelta(hours=1)),
        "config.Entry": lambda n, name: Entry(
            id=f"{namespace}/{name}", is_set=True, value="1", changed_at=now, changed_by="c"),
        "config.Schema": lambda n, name: Schema(
            id=f"{namespace}/{name}", is_set=True, json_schema="{}", changed_at=now, changed_by="c"),
        "auth.User": lambda n, name: User(username=name),
        "auth.Group": lambda n, name: Group(name=name),
    }  # fmt: skip
    assert set(makers) == set(MODELS), "a list without a measure"
    made = [makers[label](n, name) for n, name in enumerate(names)]
    apps.get_model(label).objects.bulk_create(made, ignore_conflicts=True)
    by_search = {"core.Namespace", "core.Process", "auth.User", "auth.Group"}
    return {"q": namespace} if label in by_search else {"namespace": namespace}


@pytest.mark.parametrize("label", MODELS)
def test_a_list_asks_as_often_for_one_row_as_for_sixty(root: Client, namespace: str, label: str) -> None:
    asked = []
    for count in (1, 60):
        query = rows_of(label, namespace, count)
        text(root, listing(label, **query))  # what is remembered of the first request is remembered
        with CaptureQueriesContext(
            connection,
        ) as queries:
            found = text(root, listing(label, **query))
        assert found.count("data-row") == count + (label == "core.Namespace")
        asked.append(len(queries))
    assert asked[0] == asked[1]
    assert asked[0] <= 12


# What no list reads: secrets, and what may be large.
UNLOADED = {
    "core.Event": ("data", "metadata"),
    "locks.Lock": ("lock_id", "endings", "metadata"),
    "locks.Election": ("lock_id", "endings", "metadata"),
    "core.Session": ("metadata",),
    "rbac.ApiKey": ("digest",),
    "sagas.Saga": ("progress", "input", "output", "error", "metadata"),
    "sagas.Attention": ("progress", "input", "output", "error", "metadata"),
    "sagas.Definition": ("body",),
    "sagas.Schedule": ("input",),
    "sagas.Task": ("body", "lease_token"),
    "discovery.Instance": ("tags", "metadata", "checks", "flaps"),
    "config.Entry": ("value", "next_value"),
    "config.Schema": ("json_schema",),
}


@pytest.mark.parametrize("label", RECORDS)
def test_records_are_neither_counted_nor_skipped(root: Client, namespace: str, label: str) -> None:
    query = rows_of(label, namespace, 130)
    urls = [listing(label), listing(label, **query), f"{listing(label)}?p=9999&all=&_facets=1"]
    with CaptureQueriesContext(connection) as queries:
        for url in urls:
            text(root, url)
    # A statement about the shown rows names them, in an array; it may count what belongs to each.
    asked = " ".join(query["sql"].lower() for query in queries if "('{" not in query["sql"])
    assert "select" in asked
    assert "count(" not in asked
    assert "offset" not in asked
    for column in UNLOADED.get(label, ()):
        assert not re.search(rf'"{column}"(::text)?(,| from)', asked), column


def walk(client: Client, url: str, pattern: str, step: str) -> list[list[str]]:
    """What the pages show, from here to the end in one direction."""
    pages = []
    while True:
        found = text(client, url)
        pages.append(re.findall(pattern, found))
        link = re.search(rf'rel="{step}" href="([^"]*)"', found)
        if not link:
            return pages
        url = url.partition("?")[0] + link[1].replace("&amp;", "&")


@pytest.mark.parametrize("label", ["locks.Lock", "core.Event", "core.Stream", "core.Session", "rbac.ApiKey"])
def test_pages_show_everything_once_and_back_again(root: Client, namespace: str, label: str) -> None:
    query = rows_of(label, namespace, 250)
    pattern = rf">({namespace}\d\d\d)<" if label != "core.Event" else rf">({namespace}\d\d\d)</a>"
    there = walk(root, listing(label, **query), pattern, "next")
    assert [len(page) for page in there] == [100, 100, 50]
    shown = [name for page in there for name in page]
    expected = [f"{namespace}{number:03d}" for number in range(250)]
    assert shown == (expected[::-1] if label == "core.Event" else expected)
    last = apps.get_model(label).objects
    cursor = {"core.Event": lambda: last.get(stream=f"{namespace}049").pk}.get(
        label, lambda: f"{namespace}/{shown[199]}"
    )()
    back = walk(root, f"{listing(label, **query)}&before={url_quote(str(cursor))}", pattern, "prev")
    assert [name for page in reversed(back) for name in page] == shown[: shown.index(back[0][-1]) + 1]
    assert back[0][-1] == (f"{namespace}050" if label == "core.Event" else shown[198])


def test_an_exactly_full_page_has_no_next(root: Client, namespace: str) -> None:
    found = text(root, listing("locks.Lock", **rows_of("locks.Lock", namespace, 100)))
    assert found.count("data-row") == 100
    assert 'rel="next"' not in found
    assert "100 locks" in found


def test_a_list_that_is_too_slow_says_so(root: Client, scene: SimpleNamespace, monkeypatch: Any) -> None:
    from django.db.models import BooleanField
    from django.db.models.expressions import RawSQL

    from core.console import reading

    pages = admin.site.get_model_admin(apps.get_model("locks.Lock"))
    sleep = RawSQL("pg_sleep(20) is null", (), output_field=BooleanField())
    monkeypatch.setattr(reading, "LIST_SECONDS", 0.05)
    monkeypatch.setattr(pages, "found", lambda request, queryset, term: queryset.filter(sleep))
    monkeypatch.setattr(reading, "PANEL_SECONDS", 0.05)
    assert "Choose a namespace, or search for an exact name" in text(root, listing("locks.Lock", q="x"))
    with connection.cursor() as cursor:  # and the connection is as it was
        cursor.execute("show statement_timeout")
        assert cursor.fetchone() == ("0",)


# -- searching and filtering -------------------------------------------------------------------------


def shown(client: Client, label: str, **query: str) -> list[str]:
    """The first column of a list's rows."""
    found = re.findall(
        r'<th class="field-[^>]*><a href="[^"]*"[^>]*>([^<]*)</a></th>', text(client, listing(label, **query))
    )
    return [each.strip() for each in found]


def test_locks_are_found_by_key_and_by_owner(root: Client, world: SimpleNamespace, lane: Lane) -> None:
    lane("locks.acquire", key="jobs_c", owner="some body")
    lane("locks.acquire", key="jobsxc", owner="100%")
    here = {"namespace": world.namespace}
    assert shown(root, "locks.Lock", **here) == ["jobs/a", "jobs/b", "jobs_c", "jobsxc", "pool/s"]
    assert shown(root, "locks.Lock", **here, q="jobs/") == ["jobs/a", "jobs/b"]
    assert shown(root, "locks.Lock", **here, q="jobs_") == ["jobs_c"]  # no wildcard
    assert shown(root, "locks.Lock", **here, q="jobs%") == []
    assert shown(root, "locks.Lock", **here, q="JOBS") == []
    assert shown(root, "locks.Lock", q=f"{world.namespace}/jobs/") == [
        "jobs/a",
        "jobs/b",
    ]  # an address is enough
    assert shown(root, "locks.Lock", **here, q="owner:some body") == ["jobs_c"]
    assert shown(root, "locks.Lock", **here, q="owner:100%") == ["jobsxc"]
    assert shown(root, "locks.Lock", **here, q="owner:first") == []  # it holds no more


def test_locks_are_filtered(root: Client, world: SimpleNamespace, lane: Lane) -> None:
    free = lane("locks.acquire", key="free", owner="x")
    lane("locks.release", key="free", lock_id=free["lock_id"])
    here = {"namespace": world.namespace}
    assert shown(root, "locks.Lock", **here, held="1") == ["jobs/a", "jobs/b", "pool/s"]
    assert shown(root, "locks.Lock", **here, held="0") == ["free"]
    assert shown(root, "locks.Lock", **here, contended="1") == ["jobs/a"]
    assert shown(root, "locks.Lock", **here, contended="0") == ["free", "jobs/b", "pool/s"]
    assert shown(root, "locks.Lock", namespace="nowhere") == []


def test_a_lock_whose_time_is_up_is_free(root: Client, namespace: str) -> None:
    from locks.models import Lock

    rows_of("locks.Lock", namespace, 1)
    past = datetime.now(UTC) - timedelta(seconds=1)
    Lock.objects.filter(id=f"{namespace}/{namespace}000").update(expires_at=past, owner="overdue")
    found = text(root, listing("locks.Lock", namespace=namespace))
    assert "overdue" not in found
    assert ">free" in re.sub(r"\s+", "", found)
    assert shown(root, "locks.Lock", namespace=namespace, held="0") == [f"{namespace}000"]


def cells(client: Client, label: str, key: str) -> dict[str, str]:
    """What a record's line in its list says, by column."""
    found = text(client, listing(label, namespace=key.partition("/")[0]))
    (line,) = [row for row in re.findall(r"<tr.*?</tr>", found, re.DOTALL) if f'value="{key}"' in row]
    columns = re.findall(r'<t[hd][^>]*class="[^"]*field-([a-z_]+)[^>]*>(.*?)</t[hd]>', line, re.DOTALL)
    return {column: words(cell) for column, cell in columns}


def words(cell: str) -> str:
    return " ".join(re.sub("<[^>]*>", " ", cell.replace("<wbr>", "")).replace("\xa0", " ").split())


def panel(client: Client, label: str, key: str, title: str) -> list[list[str]]:
    """The lines of a table below a record."""
    found = text(client, page(label, key))
    (section,) = [
        part for part in found.split("<section")[1:] if re.search(rf"<h2[^>]*>(<a[^>]*>)?{title}", part)
    ]
    section = section.partition("</section>")[0]
    headers = re.findall(r"<th\b.*?>(.*?)</th>", section, re.DOTALL)
    lines = [
        [words(cell) for cell in re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL)]
        for row in re.findall(r"<tbody.*?</tbody>", section, re.DOTALL)
    ]
    assert all(len(line) == len(headers) for line in lines)
    return lines


def test_shared_holds_are_all_seen(root: Client, lane: Lane) -> None:
    key = f"{lane.namespace}/doc"
    for owner in ("ann", "ben", "cid", "dan"):
        lane("locks.acquire", key="doc", owner=owner, mode="shared", ttl_seconds=600, metadata={"who": owner})
    said = cells(root, "locks.Lock", key)
    assert (said["state"], said["mode"], said["permits"]) == ("held", "shared", "-")
    assert said["owners"] == "ann , ben and 2 more"
    assert said["left"].startswith("9 min 5")
    assert [line[:3] for line in panel(root, "locks.Lock", key, "Holds")] == [
        [owner, "shared", "-"] for owner in ("ann", "ben", "cid", "dan")
    ]
    assert "&quot;who&quot;:&quot;cid&quot;" in text(root, page("locks.Lock", key))
    for owner in ("ann", "dan"):
        assert shown(root, "locks.Lock", namespace=lane.namespace, q=f"owner:{owner}") == ["doc"]
    assert shown(root, "locks.Lock", namespace=lane.namespace, q="owner:eve") == []


def test_a_semaphore_says_how_many_permits_are_taken(root: Client, lane: Lane) -> None:
    key = f"{lane.namespace}/pool"
    lane("locks.acquire", key="pool", owner="ann", capacity=10, permits=4, ttl_seconds=600)
    brief = lane("locks.acquire", key="pool", owner="ben", capacity=10, permits=3, ttl_seconds=600)
    said = cells(root, "locks.Lock", key)
    assert (said["state"], said["mode"], said["permits"]) == ("held", "exclusive", "7 of 10")
    lane("locks.release", key="pool", lock_id=brief["lock_id"])
    assert cells(root, "locks.Lock", key)["permits"] == "4 of 10"
    past = panel(root, "locks.Lock", key, "Last holds")
    assert [(line[0], line[1], line[-2]) for line in past] == [
        ("ben", "exclusive, 3 permits", "released"), ("ann", "exclusive, 4 permits", "lasts"),
    ]  # fmt: skip


def test_holds_that_ran_out_unnoticed_are_not_counted(root: Client, lane: Lane) -> None:
    """Nothing has swept them yet: the lock's own row still counts them."""
    from django.db import transaction

    from locks.admin.front import locks_held
    from locks.models import Hold, Lock

    past = datetime.now(UTC) - timedelta(seconds=1)
    for key, owners in (("one", ["ann", "ben"]), ("none", ["cid"])):
        for owner in owners:
            lane("locks.acquire", key=key, owner=owner, capacity=9, permits=2, ttl_seconds=600)
    here = {"namespace": lane.namespace}
    with transaction.atomic():
        held = int(locks_held().replace(",", ""))
        overdue = Hold.objects.filter(id__startswith=f"{lane.namespace}/", owner__in=["ann", "cid"])
        assert overdue.update(expires_at=past) == 2
        Lock.objects.filter(id__startswith=f"{lane.namespace}/").update(expires_at=past)
        now_held = int(locks_held().replace(",", ""))
        one, none = (cells(root, "locks.Lock", f"{lane.namespace}/{key}") for key in ("one", "none"))
        found = [shown(root, "locks.Lock", **here, held=held) for held in "10"]
        by_owner = [shown(root, "locks.Lock", **here, q=f"owner:{owner}") for owner in ("ann", "ben", "cid")]
        transaction.set_rollback(True)
    assert (one["state"], one["owners"], one["permits"]) == ("held", "ben", "2 of 9")
    assert (none["state"], none["owners"], none["permits"], none["left"]) == ("free", "-", "0 of 9", "-")
    assert found == [["one"], ["none"]]
    assert by_owner == [[], ["one"], []]
    assert abs(held - 1 - now_held) <= 2  # other tests' locks expire meanwhile


@pytest.mark.parametrize("permits", [1, 5])
def test_a_hold_of_a_session_ends_with_it(root: Client, lane: Lane, permits: int) -> None:
    session = lane("sessions.open", owner="w", ttl_seconds=600)["session_id"]
    lane("locks.acquire", key="k", owner="w", session_id=session, capacity=5, permits=permits)
    said = cells(root, "locks.Lock", f"{lane.namespace}/k")
    assert (said["state"], said["permits"]) == ("held", f"{permits} of 5")
    assert said["left"].startswith("9 min 5")
    assert shown(root, "locks.Lock", namespace=lane.namespace, held="1") == ["k"]
    (line,) = panel(root, "locks.Lock", f"{lane.namespace}/k", "Holds")
    assert line[3] == f"{session[:8]}…"
    assert page("core.Session", f"{lane.namespace}/{session}") in text(
        root, page("locks.Lock", f"{lane.namespace}/k")
    )


def test_a_session_s_page_shows_what_it_holds_and_waits_for(root: Client, lane: Lane, later: Any) -> None:
    name = lane.namespace
    lane("locks.acquire", key="other", owner="x", ttl_seconds=600)
    session = lane("sessions.open", owner="w", ttl_seconds=600, lock_delay_seconds=2, metadata={"pod": "p-9"})
    about = {"session_id": session["session_id"]}
    lane("locks.acquire", key="mine", owner="w", **about)
    lane("locks.acquire", key="pool", owner="w", capacity=9, permits=2, **about)
    lane("elections.campaign", name="e", candidate="w", **about)
    place = {"key": "other", "owner": "w", "mode": "shared", "wait_seconds": 60, **about}
    waiter = later(Python(lane.served, name), "locks.acquire", **place)
    until(lambda: lane("locks.get", key="other")["queue_length"] == 1)
    key = f"{name}/{session['session_id']}"
    said = cells(root, "core.Session", key)
    assert [said[column] for column in ("owner", "state", "holds", "waits", "ttl", "lock_delay")] == [
        "w", "live", "3", "1", "10 min", "2.0 s",
    ]  # fmt: skip
    assert [line[:3] for line in panel(root, "core.Session", key, "Holds")] == [
        [f"{name}/e (election)", "exclusive", "1"], [f"{name}/mine", "exclusive", "1"],
        [f"{name}/pool", "exclusive", "2"],
    ]  # fmt: skip
    assert [line[:2] for line in panel(root, "core.Session", key, "Waits for")] == [
        [f"{name}/other", "shared"]
    ]
    assert "p-9" in text(root, page("core.Session", key))
    line = panel(root, "locks.Lock", f"{name}/other", "Waiting")[0]
    assert line[1:5] == ["w", "shared", "-", f"{session['session_id'][:8]}…"]
    for state, found in (("live", [f"{session['session_id'][:10]}…"]), ("ended", [])):
        assert shown(root, "core.Session", namespace=name, state=state) == found
    assert shown(root, "core.Session", namespace=name, q="owner:w") == [f"{session['session_id'][:10]}…"]
    lane("sessions.close", session_id=session["session_id"])
    with pytest.raises(Exception, match="session"):
        waiter.result(10)
    assert cells(root, "core.Session", key)["state"] == "closed"
    assert shown(root, "core.Session", namespace=name, state="live") == []
    assert panel(root, "core.Session", key, "Holds") == []


def test_elections_are_not_among_the_locks(root: Client, lane: Lane, later: Any) -> None:
    name = lane.namespace
    led = lane("elections.campaign", name="a/b", candidate="one", value={"at": "10.0.0.7"}, ttl_seconds=600)
    lane("elections.campaign", name="idle", candidate="gone", ttl_seconds=0.1)
    lane("locks.acquire", key="a/b", owner="x")
    campaign = {"name": "a/b", "candidate": "two", "value": {"at": "10.0.0.8"}, "wait_seconds": 60}
    waiter = later(Python(lane.served, name), "elections.campaign", **campaign)
    until(lambda: lane("elections.get", name="a/b")["candidate_count"] == 1)
    assert shown(root, "locks.Lock", namespace=name) == ["a/b"]
    assert shown(root, "locks.Election", namespace=name) == ["a/b", "idle"]
    assert shown(root, "locks.Election", namespace=name, q="id") == ["idle"]
    assert shown(root, "locks.Election", namespace=name, q="owner:one") == ["a/b"]
    key = f"{name}/$election:a/b"
    said = cells(root, "locks.Election", key)
    assert [said[column] for column in ("state", "leader", "term", "candidates")] == [
        "led", "one", str(led["fencing_token"]), "1",
    ]  # fmt: skip
    assert said["said"] == "{&quot;at&quot;:&quot;10.0.0.7&quot;}"
    (line,) = panel(root, "locks.Election", key, "Candidates")
    assert line[1:3] == ["two", "{&quot;at&quot;:&quot;10.0.0.8&quot;}"]
    assert "election.elected" in text(root, page("locks.Election", key))
    until(lambda: cells(root, "locks.Election", f"{name}/$election:idle")["state"] == "vacant")
    lane("elections.resign", name="a/b", lock_id=led["lock_id"])
    assert waiter.result(10)["leader"] == "two"


def test_a_lock_s_page_shows_its_queue_in_order_and_its_events(root: Client, scene: SimpleNamespace) -> None:
    found = text(root, page("locks.Lock", scene.lock))
    assert str(scene.token) in found
    assert "h-17" in found
    assert found.index("second") < found.index("third")
    places = ["lock.queued", "lock.queued", "lock.acquired", "lock.released", "lock.acquired"]
    assert re.findall(r"lock\.[a-z]+", found) == places
    assert found.count("alive") == 2
    assert listing("core.Event", namespace=scene.namespace, q="$lock:jobs/a") in found.replace("&amp;", "&").replace(
        "%24lock%3Ajobs%2Fa", "%24lock%3Ajobs/a")  # fmt: skip


@pytest.mark.parametrize("process", ["system/nobody", "system/late"])
def test_a_waiter_of_a_dead_process_is_seen_as_such(
    root: Client, scene: SimpleNamespace, process: str
) -> None:
    from django.db import transaction

    from core.models import Process
    from locks.models import Claim

    past = datetime.now(UTC) - timedelta(seconds=1)
    late = Process(id="system/late", host="h", pid=1, started_at=past, beat_at=past, expires_at=past)
    with transaction.atomic():  # nobody else sees it: a waiter of a dead process is soon buried
        late.save()
        claim = Claim.objects.filter(id__startswith=f"{scene.lock}#").order_by("id")[0]
        Claim.objects.filter(id=claim.id).update(process=process)
        found = text(root, page("locks.Lock", scene.lock))
        transaction.set_rollback(True)
    assert (found.count("alive"), len(re.findall(r">\s*gone\s*<", found))) == (1, 1)


def test_events_are_found_by_stream_prefix_id_and_position(
    root: Client, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.console.lists.MOST_NAMESPACES", 100_000)  # there is one for each test before
    chosen, name = str(uuid4()), lane.namespace
    for stream in ("order-1", "order-2", "orderx"):
        lane("events.append", stream_id=stream, event_type="t", data={})
    given = lane("events.append", stream_id="own", event_type="t", data={}, event_id=chosen)
    made = lane("events.append", stream_id="place", event_type="t", data={})
    here = {"namespace": name}
    assert shown(root, "core.Event", **here) == ["5", "4", "3", "2", "1"]
    assert shown(root, "core.Event", **here, q="order-1") == ["1"]
    assert shown(root, "core.Event", **here, q="order") == []
    assert shown(root, "core.Event", **here, q="order*") == ["3", "2", "1"]
    assert shown(root, "core.Event", **here, q="order-*") == ["2", "1"]
    assert shown(root, "core.Event", **here, q="order_*") == []
    assert shown(root, "core.Event", **here, q="4") == ["4"]
    assert shown(root, "core.Event", **here, q="6") == []
    assert shown(root, "core.Event", **here, q=chosen.upper()) == ["4"]
    assert (given["event_id"], made["position"]) == (chosen, 5)
    assert shown(root, "core.Event", **here, q=made["event_id"]) == ["5"]
    assert shown(root, "core.Event", q=made["event_id"]) == ["5"]  # an id is enough
    assert shown(root, "core.Event", q=chosen) == ["4"]


def test_a_log_shows_one_namespace(root: Client, served: Served, lane: Lane) -> None:
    lane("events.append", stream_id="here", event_type="t", data={})
    lane("locks.acquire", key="k", owner="o")
    Lane(served, "default")("events.append", stream_id="there", event_type="t", data={})
    found = text(root, listing("core.Event"))
    assert ">there</a>" in found
    assert f">{lane.namespace}</a>" not in found
    assert shown(root, "core.Event", namespace=lane.namespace, streams="clients") == ["1"]
    assert shown(root, "core.Event", namespace=lane.namespace, streams="system") == ["2"]
    assert shown(root, "core.Event", namespace="nowhere") == []


def test_a_log_says_how_long_it_is(root: Client, namespace: str) -> None:
    query = rows_of("core.Event", namespace, 230)
    assert "100 shown of 230" in text(root, listing("core.Event", **query))
    assert "100 shown\n" in re.sub(" +", " ", text(root, listing("core.Event", **query, q=f"{namespace}*")))


def test_an_event_s_page_shows_what_was_written(root: Client, lane: Lane) -> None:
    data = {"total": 129.9, "big": 2**53 - 1, "lines": [{"sku": "€"}]}
    made = lane(
        "events.append", stream_id="order-1", event_type="Placed", data=data, metadata={"source": "app"}
    )
    lane("events.append", stream_id="order-1", event_type="Paid", data=7)
    events = {
        each.type: each.pk
        for each in apps.get_model("core.Event").objects.filter(namespace__name=lane.namespace)
    }
    found = text(root, page("core.Event", events["Placed"]))
    for part in (
        "Placed",
        "Paid",
        "order-1",
        made["event_id"],
        "developer",
        "&quot;source&quot;: &quot;app&quot;",
    ):
        assert part in found
    shown_data = re.search(r"<pre[^>]*>(\{.*?)</pre>", found, re.DOTALL)
    assert shown_data
    import html

    assert json.loads(html.unescape(shown_data[1])) == data
    assert "  &quot;total&quot;: 129.9,\n" in found
    assert re.search(r"<pre[^>]*>7</pre>", text(root, page("core.Event", events["Paid"])))


def test_a_huge_event_shows_its_beginning(root: Client, lane: Lane) -> None:
    lane("events.append", stream_id="big", event_type="t", data={"a": "x" * 900_000})
    (event,) = apps.get_model("core.Event").objects.filter(namespace__name=lane.namespace)
    found = text(root, page("core.Event", event.pk))
    assert "more characters" in found
    assert len(found) < 300_000
    assert len(text(root, listing("core.Event", namespace=lane.namespace))) < 300_000


def test_api_keys_show_whether_they_are_good(root: Client, lane: Lane) -> None:
    ended = lane("api_keys.create", name="old", expires_in_days=1e-9)
    revoked = lane("api_keys.create", name="bad")
    good = lane("api_keys.create", name="ci")
    lane("api_keys.revoke", key_id=revoked["id"])
    here = {"namespace": lane.namespace}
    assert shown(root, "rbac.ApiKey", **here, state="active") == [good["id"]]
    assert sorted(shown(root, "rbac.ApiKey", **here, state="ended")) == sorted([ended["id"], revoked["id"]])
    assert shown(root, "rbac.ApiKey", q=good["id"][:10]) == [good["id"]]
    assert shown(root, "rbac.ApiKey", **here, q="C") == [good["id"]]
    found = text(root, listing("rbac.ApiKey", **here))
    assert [word in found for word in ("expired", "revoked", "active")] == [True, True, True]


@pytest.mark.parametrize("label", MODELS)
def test_odd_input_breaks_nothing(
    root: Client, scene: SimpleNamespace, few_to_search: None, label: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(admin.site.get_model_admin(apps.get_model(label)), "list_per_page", 3)
    values = [url_quote(value) for value in ODD]
    asked = [f"q={value}" for value in values]
    asked += [f"{name}={value}" for name in ("namespace", "after", "before") for value in values[:12]]
    asked += [
        "p=999999",
        "p=x",
        f"p={'9' * 5000}",
        "after=99999999999999999999",
        "before=-99999999999999999999",
        "all=",
    ]
    asked += ["held=x", "held=1&q=owner:x", "state=ended",
              "contended=%00", "state=x", "streams=x", "o=1.-2.x.99", "e=1", "_facets=1", "is_staff__exact=x",
              "groups__id__exact=x", "q=a&q=b", "namespace=a&namespace=b", "%00=1", "q", "_popup=1"]  # fmt: skip
    for query in asked:
        status = root.get(f"{listing(label)}?{query}").status_code
        assert status in {200, 302, 400}, query
    for key in [*ODD, "a b", "_", "_2", "_zz", "default/jobs", "9" * 30]:
        for view in ("change", "history", "delete"):
            status = root.get(page(label, key, view)).status_code
            assert status in {302, 403, 404}, (view, key)
    assert root.get(f"{listing(label)}%ff%fe/change/").status_code in {302, 404}


def test_a_search_box_for_any_name(
    root: Client, lane: Lane, world: SimpleNamespace, few_to_search: None
) -> None:
    def found(term: str) -> list[str]:
        hits = re.findall(r'href="([^"]*)"', text(root, f"/admin/search/?extended=1&s={url_quote(term)}"))
        return [hit for hit in hits if hit.startswith("/admin/")]

    assert page("locks.Lock", world.lock) in found(world.lock)
    assert page("core.Stream", f"{world.namespace}/order-1") in found(f"{world.namespace}/ord")
    assert page("rbac.ApiKey", world.api_key) in found(world.key_id)
    event = apps.get_model("core.Event").objects.get(namespace__name=world.namespace, stream="order-1")
    (shown_event,) = lane("events.read", stream_id="order-1")["events"]
    assert found(shown_event["event_id"]) == [page("core.Event", event.pk)]
    unique = f"Key-{uuid4().hex}"
    lane("locks.acquire", key=unique, owner="o")
    assert found(unique) == [page("locks.Lock", f"{world.namespace}/{unique}")]
    assert found(unique.lower()) == []
    assert listing("locks.Lock") in found("lock")
    assert found("") == []


@pytest.mark.parametrize("term", ODD)
def test_the_search_box_takes_anything(root: Client, few_to_search: None, term: str) -> None:
    for more in ("", "&page=x", "&page=99", "&extended=1"):
        assert root.get(f"/admin/search/?s={url_quote(term)}{more}").status_code == 200


def test_many_namespaces_are_told_of(root: Client, scene: SimpleNamespace, monkeypatch: Any) -> None:
    monkeypatch.setattr(lists, "MOST_NAMESPACES", 1)
    assert "Searched the newest 1 namespaces only" in text(root, listing("locks.Lock", q="x"))
    assert "namespaces only" not in text(root, listing("locks.Lock", q="x", namespace=scene.namespace))


# -- the front page ----------------------------------------------------------------------------------


def figure(client: Client, title: str) -> str:
    found = re.search(rf">{title}</div>\s*<div[^>]*>([^<]*)<", text(client, "/admin/"))
    assert found, title
    return found[1].strip()


def test_the_front_page_says_what_is_now(root: Client, lane: Lane, scene: SimpleNamespace) -> None:
    from core.models import Session
    from locks.admin.holding import is_held
    from locks.models import IS_ELECTION, Election, Lock

    held = Lock.objects.filter(is_held()).exclude(IS_ELECTION).count()
    assert abs(int(figure(root, "Locks held").replace(",", "")) - held) <= 2
    assert (
        int(figure(root, "Elections led").replace(",", "")) == Election.objects.filter(is_held()).count() >= 1
    )
    live = Session.objects.filter(ended_at=None, expires_at__gt=datetime.now(UTC)).count()
    assert int(figure(root, "Sessions").replace(",", "")) == live >= 1
    contended = list(Lock.objects.filter(queued__gt=0).values_list("queued", flat=True))
    assert int(figure(root, "Contended locks")) == len(contended) >= 1
    assert int(figure(root, "Waiters")) == sum(contended) >= 2
    assert int(figure(root, "Processes alive")) == 1
    lane("events.append", stream_id="s", events=[{"event_type": "t", "data": 1}] * 8)
    assert int(figure(root, "Events in the last minute").replace(",", "")) >= 8
    found = text(root, "/admin/")
    assert found.index("second") < found.index("third")  # the longest wait first
    assert page("locks.Lock", scene.lock) in found


def test_stale_writes_are_shown(root: Client, lane: Lane, world: SimpleNamespace) -> None:
    with pytest.raises(Refused, match="fence_stale"):
        lane(
            "events.append",
            stream_id="s",
            event_type="t",
            data={},
            fence={"key": "jobs/a", "fencing_token": 3},
        )
    found = text(root, "/admin/")
    assert "Writes refused for a stale token" in found
    assert page("locks.Lock", world.lock) in found[found.index("Writes refused") :]
    assert "locks.violations" in found
    (address,) = re.findall(r'href="([^"]*)">Writes refused', found)
    events = text(root, address)
    assert "fence.refused" in events
    assert f">{lane.namespace}</a>" in events


def test_deadlocks_are_shown_while_there_are_any(root: Client, lane: Lane) -> None:
    """They are broken within a second, so these are rows that nobody else sees."""
    from django.db import transaction

    from core.models import Process
    from locks.models import Claim, Lock

    assert "Deadlocks" not in text(root, "/admin/")
    alice, bob = (
        lane("sessions.open", owner=owner, ttl_seconds=600)["session_id"] for owner in ("alice", "bob")
    )
    lane("locks.acquire", key="a", owner="alice", session_id=alice)
    lane("locks.acquire", key="b", owner="bob", session_id=bob)
    now = datetime.now(UTC)
    process = Process.objects.all()[0].id
    with transaction.atomic():
        Lock.objects.filter(id__startswith=f"{lane.namespace}/").update(queued=1, last_ticket=1)
        Claim.objects.bulk_create(
            Claim(
                id=f"{lane.namespace}/{key}#{1:015d}", lock_id="x", ticket=1, owner=owner, session=session,
                ttl_seconds=600, since=now, deadline=now + timedelta(seconds=60), process=process,
            )
            for key, owner, session in (("a", "bob", bob), ("b", "alice", alice))
        )  # fmt: skip
        found = text(root, "/admin/")
        transaction.set_rollback(True)
    assert re.search(r"alice at b → bob at a|bob at a → alice at b", found[found.index("Deadlocks") :])


@pytest.mark.parametrize(
    ("floor", "old", "new"),
    [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 7, 13), (5, 0, 9), (40, 100, 1), (3, 64, 64)],
)
def test_growth_is_found_by_halving(served: Served, namespace: str, floor: int, old: int, new: int) -> None:
    from core.admin import GROWTH
    from core.console import fetch
    from core.models import Event, Namespace, log_id

    space = Namespace.objects.get(name=namespace)
    Namespace.objects.filter(pk=space.pk).update(floor=floor)
    now = datetime.now(UTC)
    times = [now - timedelta(seconds=61 + old - n) for n in range(old)] + [now - timedelta(seconds=50)] * new
    Event.objects.bulk_create(
        Event(
            id=log_id(space.number, floor + n), namespace=space, stream="s", version=n, type="t", data="{}",
            actor="a", recorded_at=at,
        )
        for n, at in enumerate(times, 1)
    )  # fmt: skip
    found = {name: (head, grown) for name, head, grown, _ in fetch(GROWTH)}
    assert found[namespace] == (floor + old + new, new)


def test_a_large_table_of_locks_is_sampled(served: Served, namespace: str, monkeypatch: Any) -> None:
    from locks.admin import front as pages

    for number in range(6):
        rows_of("locks.Lock", namespace, 100 * (number + 1))
    assert pages.locks_held().replace(",", "").isdigit()
    monkeypatch.setattr(pages, "SAMPLE_PAGES", 1)
    assert re.fullmatch(r"about [\d,]+", pages.locks_held())


def test_a_slow_figure_does_not_hold_the_front_page_up(
    root: Client, scene: SimpleNamespace, monkeypatch: Any
) -> None:
    from core.console import front, reading

    def weather_report() -> list[Any]:
        reading.fetch("select pg_sleep(20)")
        return []

    monkeypatch.setattr(reading, "PANEL_SECONDS", 0.3)
    monkeypatch.setattr(front, "_sections", [("", weather_report), *front._sections])
    assert figure(root, "Weather report") == "—"
    assert int(figure(root, "Waiters")) >= 2


def test_the_front_page_asks_a_fixed_number_of_questions(root: Client, scene: SimpleNamespace) -> None:
    text(root, "/admin/")
    with CaptureQueriesContext(connection) as queries:
        text(root, "/admin/")
    assert len(queries) <= 50


# -- offline -----------------------------------------------------------------------------------------


def outside(found: str) -> list[str]:
    """What a page would have a browser load, or send its user, on another host."""
    loads = (
        r"""(?:src|href|action|srcset|poster|data|hx-get|hx-post)\s*=\s*["']?\s*((?:https?:)?//[^"'\s>]+)"""
    )
    return re.findall(loads, found) + re.findall(r"url\(\s*[\"']?((?:https?:)?//[^)\"']+)", found) + re.findall(
        r"@import\s+[\"']?((?:https?:)?//[^\"';]+)", found)  # fmt: skip


def test_no_page_reaches_for_another_host(root: Client, scene: SimpleNamespace) -> None:
    urls = [url for label in MODELS for url in every_page(label, scene)] + [
        "/admin/",
        "/admin/password_change/",
        "/admin/core/",
    ]
    pages = {url: text(root, url) for url in urls} | {
        "login": text(Client(headers={"host": "localhost"}), "/admin/login/")
    }
    assert {url: outside(found) for url, found in pages.items() if outside(found)} == {}
    assets = {
        link for found in pages.values() for link in re.findall(r'(?:src|href)="(/static/[^"]+)"', found)
    }
    assert len(assets) > 10
    styles = {}
    for link in sorted(assets):
        response = root.get(link)
        assert response.status_code == 200, link
        if link.endswith(".css"):
            styles[link] = b"".join(response).decode()
    assert {link: outside(style) for link, style in styles.items() if outside(style)} == {}
    fonts = {
        (link, font)
        for link, style in styles.items()
        for font in re.findall(r"url\([\"']?([^)\"']+\.woff2)", style)
    }
    assert fonts
    for link, font in fonts:
        assert root.get(link.rpartition("/")[0] + "/" + font.rpartition("/")[2]).status_code == 200


def test_the_test_for_other_hosts_finds_them() -> None:
    assert outside('<script src="https://cdn.example/x.js">') == ["https://cdn.example/x.js"]
    assert outside("@font-face{src:url(//fonts.example/a.woff2)}") == ["//fonts.example/a.woff2"]
    assert outside('<a href="/admin/">') == []
