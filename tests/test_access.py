"""Who may call: development mode, API keys, tokens. Denied means also: nothing changed."""

import os
import subprocess
import sys
import time
from contextlib import closing
from typing import Any

import httpx
import pytest
from django.test import Client

from tests.doors import Door, Lane, Refused, Served
from tests.test_events import follow
from tests.test_locks import until


@pytest.fixture
def production(settings: Any) -> None:
    """No development mode: everybody needs credentials."""
    from core.callers import verdicts

    settings.DEV = False
    verdicts.clear()


class Web:
    """Plain requests to the served socket, whose own door (lane or Django) answers."""

    def __init__(self, served: Served, namespace: str, html: bool) -> None:
        self.served, self.namespace, self.html = served, namespace, html

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        headers = {"Syros-Namespace": self.namespace, **{k.replace("_", "-"): v for k, v in headers.items()}}
        url = f"http://127.0.0.1:{self.served.port}/api/v1/{path}"
        if not self.html:
            return httpx.request(method, url, json=body, headers=headers, timeout=20)
        # Django's test client, with the peer address of a caller on this machine.
        host = headers.pop("Host", "localhost")
        client = Client(headers={"host": host, **headers})
        found: Any = client.generic(method, f"/api/v1/{path}", httpx.Request("POST", url, json=body).content,
                                    content_type="application/json")  # fmt: skip
        return httpx.Response(found.status_code, headers=dict(found.items()), content=found.content)


@pytest.fixture(params=["lane", "drf"])
def web(request: pytest.FixtureRequest, served: Served, namespace: str) -> Web:
    return Web(served, namespace, request.param == "drf")


LOCK = {"key": "a", "owner": "alice"}


def held(lane: Lane) -> bool:
    found: bool = lane("locks.get", key="a")["is_locked"]
    return found


# -- development mode --------------------------------------------------------------------------------


def test_a_caller_on_this_machine_needs_no_credentials(web: Web) -> None:
    assert web("POST", "locks", LOCK).status_code == 201
    assert web("GET", "auth/whoami").json()["principal"] == "developer"


def test_without_development_mode_everybody_needs_credentials(web: Web, production: None) -> None:
    answer = web("POST", "locks", LOCK)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Real-IP", "Forwarded"])
def test_a_header_does_not_make_a_caller_local(web: Web, production: None, header: str) -> None:
    assert web("POST", "locks", LOCK, **{header: "127.0.0.1"}).status_code == 401


def test_a_peer_from_elsewhere_needs_credentials(namespace: str) -> None:
    client = Client(headers={"host": "localhost", "syros-namespace": namespace}, REMOTE_ADDR="192.0.2.7")
    answer = client.post("/api/v1/locks", LOCK, content_type="application/json",
                         headers={"X-Forwarded-For": "127.0.0.1"})  # fmt: skip
    assert answer.status_code == 401


def test_a_peer_from_elsewhere_needs_credentials_in_the_lane(served: Served) -> None:
    from core.callers import identify
    from core.errors import Unauthenticated

    with pytest.raises(Unauthenticated):
        served.do(identify(None, peer="192.0.2.7", host="localhost", origin=None))


def test_a_web_page_cannot_drive_a_laptop_s_syros(web: Web, lane: Lane) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
        answer = web("POST", "locks", LOCK, **headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert not held(lane)


def test_wrong_credentials_are_refused_even_there(web: Web) -> None:
    for headers in ({"Authorization": "Bearer nonsense"}, {"X-API-Key": "syr_nonsense"}):
        assert web("POST", "locks", LOCK, **headers).status_code == 401


# -- API keys ----------------------------------------------------------------------------------------


def test_a_key_calls_until_it_is_revoked(web: Web, lane: Lane, production: None, settings: Any) -> None:
    settings.DEV = True
    made = lane("api_keys.create", name="ci")
    settings.DEV = False
    key = made["key"]
    assert made["id"] in key
    assert web("POST", "locks", LOCK, X_API_Key=key).status_code == 201
    answer = web("GET", "auth/whoami", Authorization=f"Bearer {key}").json()
    assert answer == {"principal": f"key:{made['id']}", "namespace": lane.namespace, "is_admin": False}
    settings.DEV = True
    assert lane("api_keys.revoke", key_id=made["id"])["is_active"] is False
    settings.DEV = False
    until(lambda: web("GET", "auth/whoami", X_API_Key=key).status_code == 401, 5)


def test_who_follows_is_cut_off_when_the_key_is_revoked(lane: Lane) -> None:
    made = lane("api_keys.create", name="ci")
    with closing(follow(lane, {"X-API-Key": made["key"]}, heartbeat_seconds=60)) as items:
        assert next(items)[0] == "heartbeat"
        lane("api_keys.revoke", key_id=made["id"])
        revoked_at = time.monotonic()
        kind, _, problem = next(items)
        assert (kind, problem["code"]) == ("error", "unauthenticated")
        assert next(items, None) is None
        assert time.monotonic() - revoked_at < 8


def test_a_key_is_shown_once_and_kept_as_a_digest(lane: Lane) -> None:
    from rbac.models import ApiKey

    made = lane("api_keys.create", name="ci")
    (kept,) = lane("api_keys.find")["items"]
    assert (kept["id"], kept["name"], kept["is_active"]) == (made["id"], "ci", True)
    assert made["key"] not in str(kept)
    row = ApiKey.objects.get(key_id=made["id"])
    assert made["key"].rpartition("_")[2] not in str(row.__dict__)
    assert made["key"] not in str(lane("events.read", stream_id="$access").value)


def test_an_expired_key_is_refused(web: Web, lane: Lane) -> None:
    made = lane("api_keys.create", name="ci", expires_in_days=1 / 86400)
    time.sleep(1.1)
    assert web("GET", "auth/whoami", X_API_Key=made["key"]).status_code == 401


def test_a_key_works_in_its_namespace_when_none_is_named(served: Served, lane: Lane) -> None:
    key = lane("api_keys.create", name="ci")["key"]
    url = f"http://127.0.0.1:{served.port}/api/v1/auth/whoami"
    assert httpx.get(url, headers={"X-API-Key": key}).json()["namespace"] == lane.namespace


def test_a_key_works_in_its_own_namespace_only(web: Web, lane: Lane) -> None:
    key = lane("api_keys.create", name="ci")["key"]
    answer = web("POST", "locks", LOCK, X_API_Key=key, Syros_Namespace="default")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_key_is_no_administrator(web: Web, lane: Lane) -> None:
    key = lane("api_keys.create", name="ci")["key"]
    answer = web("POST", "auth/api-keys", {"name": "more"}, X_API_Key=key)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert len(lane("api_keys.find")["items"]) == 1


def test_a_mistyped_key_is_refused_without_asking_the_database(lane: Lane) -> None:
    from rbac.keys import id_of

    key = lane("api_keys.create", name="ci")["key"]
    assert id_of(key)
    assert id_of(key[:-1] + ("a" if key[-1] != "a" else "b")) is None


def test_an_unknown_key_cannot_be_revoked(call: Door) -> None:
    with pytest.raises(Refused, match="api_key_not_found"):
        call("api_keys.revoke", key_id="0" * 12)


# -- tokens ------------------------------------------------------------------------------------------


@pytest.fixture
def alice(database: None, namespace: str) -> Any:
    from django.contrib.auth.models import User

    return User.objects.create_user(f"alice-{namespace}", password="correct horse", is_staff=True)


def login(web: Web, name: str, password: str = "correct horse") -> httpx.Response:
    return web("POST", "auth/login", {"username": name, "password": password})


def test_a_user_logs_in_and_calls(web: Web, alice: Any, production: None) -> None:
    tokens = login(web, alice.username).json()
    assert tokens["token"] == tokens["access"]
    assert (tokens["token_type"], tokens["expires_in"]) == ("Bearer", 900)
    who = web("GET", "auth/whoami", Authorization=f"Bearer {tokens['access']}").json()
    assert who["principal"] == f"user:{alice.username}"
    assert who["is_admin"] is True


def test_a_wrong_password_is_refused(web: Web, alice: Any, production: None) -> None:
    answer = login(web, alice.username, "wrong")
    assert (answer.status_code, answer.json()["code"]) == (401, "wrong_credentials")
    assert login(web, "nobody").json()["code"] == "wrong_credentials"


def test_a_session_goes_on_and_ends(web: Web, alice: Any, production: None) -> None:
    tokens = login(web, alice.username).json()
    again = web("POST", "auth/refresh", {"refresh": tokens["refresh"]}).json()
    assert web("GET", "auth/whoami", Authorization=f"Bearer {again['access']}").status_code == 200
    assert web("POST", "auth/logout", {"refresh": tokens["refresh"]}).json() == {"logged_out": True}
    refused = web("POST", "auth/refresh", {"refresh": tokens["refresh"]})
    assert (refused.status_code, refused.json()["code"]) == (401, "token_invalid")


def test_a_refresh_token_is_not_an_access_token(web: Web, alice: Any, production: None) -> None:
    tokens = login(web, alice.username).json()
    assert web("GET", "auth/whoami", Authorization=f"Bearer {tokens['refresh']}").status_code == 401
    assert web("POST", "auth/refresh", {"refresh": tokens["access"]}).status_code == 401


def test_a_disabled_user_is_out(web: Web, alice: Any, production: None) -> None:
    token = login(web, alice.username).json()["access"]
    assert web("GET", "auth/whoami", Authorization=f"Bearer {token}").status_code == 200
    type(alice).objects.filter(pk=alice.pk).update(is_active=False)
    until(lambda: web("GET", "auth/whoami", Authorization=f"Bearer {token}").status_code == 401, 5)
    assert login(web, alice.username).status_code == 401


@pytest.mark.parametrize("token", ["a.b.c", "..", "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.", "x" * 5000])
def test_a_forged_token_is_refused(web: Web, production: None, token: str) -> None:
    assert web("GET", "auth/whoami", Authorization=f"Bearer {token}").status_code == 401


def test_behind_tls_the_admin_s_cookies_go_over_https_only() -> None:
    script = "from django.conf import settings as s; print(s.SESSION_COOKIE_SECURE, s.CSRF_COOKIE_SECURE)"
    for value, said in {"1": "True True", "0": "False False"}.items():
        environ = {**os.environ, "SYROS_HTTPS": value, "DJANGO_SETTINGS_MODULE": "syros_project.settings"}
        found = subprocess.run(
            [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == said


def test_a_browser_gets_its_icon(lane: Lane) -> None:
    found = httpx.get(f"http://127.0.0.1:{lane.served.port}/favicon.ico")
    assert found.headers["content-type"] == "image/svg+xml"
    assert found.text.startswith("<svg")


def test_a_signed_in_person_may_use_the_hot_operations_from_a_page_of_ours(
    lane: Lane, staff: Client, production: None
) -> None:
    url = f"http://127.0.0.1:{lane.served.port}/api/v1/locks"
    cookies = {"sessionid": staff.cookies["sessionid"].value, "csrftoken": "c" * 32}
    body, about = {"key": "a", "owner": "ada"}, {"Syros-Namespace": lane.namespace}
    assert httpx.post(url, json=body, headers=about, cookies=cookies).status_code == 403
    assert httpx.get(f"{url}/a", headers=about, cookies=cookies).json()["is_locked"] is False
    ours = {**about, "X-CSRFToken": "c" * 32}
    assert httpx.post(url, json=body, headers=ours, cookies=cookies).status_code == 201
    assert httpx.get(f"{url}/a", headers=about, cookies=cookies).json()["is_locked"] is True


def test_who_waits_leaves_the_queue_when_the_key_is_revoked(lane: Lane, later: Any) -> None:
    made = lane("api_keys.create", name="ci")
    held = lane("locks.acquire", key="a", owner="holder", ttl_seconds=60)
    url = f"http://127.0.0.1:{lane.served.port}/api/v1/locks"
    body = {"key": "a", "owner": "revoked", "wait_seconds": 30}
    waiting = later(httpx.post, url, json=body, headers={"X-API-Key": made["key"]}, timeout=40)
    until(lambda: lane("locks.get", key="a")["queue_length"] == 1)
    lane("api_keys.revoke", key_id=made["id"])
    until(lambda: lane("locks.get", key="a")["queue_length"] == 0, 8)
    assert waiting.result(10).status_code == 401
    lane("locks.release", key="a", lock_id=held["lock_id"])
    assert lane("locks.get", key="a")["is_locked"] is False
