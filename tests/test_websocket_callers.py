"""Whose a WebSocket is: how a client says it, and what happens when it is so no more."""

import threading
import time
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command

from api import websocket
from core.errors import Forbidden
from tests.doors import Lane, Served
from tests.websockets import Raw, opened, refusal, text_frame

LOCK = {"key": "a", "owner": "alice"}


@pytest.fixture
def key(lane: Lane) -> Any:
    return lane("api_keys.create", name="ci")


@pytest.fixture
def production(key: Any, settings: Any) -> None:
    """No development mode: everybody needs credentials."""
    from core.callers import verdicts

    settings.DEV = False
    verdicts.clear()


@pytest.fixture
def alice(database: None, namespace: str) -> Any:
    from django.contrib.auth.models import User

    return User.objects.create_user(f"alice-{namespace}", password="correct horse")


def token(user: Any, seconds: float = 900) -> str:
    from datetime import timedelta

    from rest_framework_simplejwt.tokens import AccessToken

    found: Any = AccessToken.for_user(user)
    found.set_exp(lifetime=timedelta(seconds=seconds))
    return str(found)


def said(how: str, key: str) -> dict[str, Any]:
    """The options of a connection that says its credential this way."""
    return {
        "authorization": {"additional_headers": {"Authorization": f"Bearer {key}"}},
        "x-api-key": {"additional_headers": {"X-API-Key": key}},
        "subprotocol": {"subprotocols": [f"syros.bearer.{key}"]},
        "first frame": {},
    }[how]


WAYS = ["authorization", "x-api-key", "subprotocol", "first frame"]


@pytest.mark.parametrize("how", WAYS)
def test_a_credential_is_said(served: Served, key: Any, production: None, how: str) -> None:
    with opened(served, "", **said(how, key["key"])) as peer:
        if how == "first frame":
            peer.send(op="auth", token=key["key"])
            assert peer.hear() == {"authenticated": True, "principal": f"key:{key['id']}"}
        peer.send(id="1", op="auth.whoami")
        assert peer.hear()["result"]["principal"] == f"key:{key['id']}"
        assert peer.connection.subprotocol == (f"syros.bearer.{key['key']}" if how == "subprotocol" else None)


@pytest.mark.parametrize("how", WAYS)
def test_a_wrong_credential_is_closed_with_4401(served: Served, production: None, how: str) -> None:
    with opened(served, "", **said(how, "syr_nonsense")) as peer:
        if how == "first frame":
            peer.send(op="auth", token="syr_nonsense")
        assert refusal(peer.hear()) == (401, "unauthenticated")
        assert peer.closed() == (4401, "unauthenticated")


def test_who_asks_before_it_said_who_it_is_is_closed_with_4401(served: Served, lane: Lane, production: None,
                                                               settings: Any) -> None:  # fmt: skip
    with opened(served, lane.namespace) as peer:
        assert refusal(peer.ask("locks.acquire", **LOCK)) == (401, "unauthenticated")
        assert peer.closed()[0] == 4401
    settings.DEV = True
    assert lane("locks.get", key="a")["is_locked"] is False


def test_who_never_says_who_it_is_is_closed_with_4401(
    served: Served, production: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "AUTH_SECONDS", 0.5)
    started = time.monotonic()
    with opened(served, "") as peer:
        assert peer.closed() == (4401, "unauthenticated")
    assert 0.5 < time.monotonic() - started < 5


def test_a_stranger_s_message_is_small(served: Served, key: Any, production: None) -> None:
    with opened(served, "") as peer:
        peer.send(op="auth", token="x" * 70_000)
        assert peer.closed()[0] == 1009
    with opened(served, "") as peer:
        peer.send(op="auth", token=key["key"])
        peer.hear()
        events = [{"event_type": "t", "data": "y" * 70_000}]
        peer.send(id="1", op="events.append", params={"stream_id": "s", "events": events})
        assert peer.hear()["status"] == 201


def test_a_user_logs_in_over_the_connection_itself(
    served: Served, alice: Any, key: Any, production: None
) -> None:
    with opened(served, "") as peer:
        peer.send(id="1", op="auth.login", params={"username": alice.username, "password": "correct horse"})
        peer.send(id="2", op="auth", token=peer.hear()["result"]["access"])
        assert peer.hear() == {"id": "2", "authenticated": True, "principal": f"user:{alice.username}"}
        peer.send(id="3", op="auth", token=token(alice))  # and goes on with a new token
        assert peer.hear()["authenticated"] is True
        peer.send(op="auth", token=key["key"])
        assert refusal(peer.hear()) == (403, "forbidden")
        peer.send(id="4", op="auth.whoami")
        assert peer.hear()["result"]["principal"] == f"user:{alice.username}"


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}]
)
def test_a_web_page_cannot_drive_a_laptop_s_syros(served: Served, headers: dict[str, str]) -> None:
    with Raw(served, headers) as connection:
        assert b"forbidden" in connection.until_closed()
        assert connection.code == 4403


def test_a_web_page_with_a_credential_may_come_from_anywhere(served: Served, key: Any) -> None:
    headers = {"Origin": "https://app.example", "Sec-WebSocket-Protocol": f"syros.bearer.{key['key']}"}
    with Raw(served, headers) as connection:
        connection.send(text_frame(b'{"id":"1","op":"auth.whoami"}'))
        assert b'"result"' in connection.recv()


def test_a_key_is_no_administrator(served: Served, key: Any) -> None:
    with opened(served, "", **said("x-api-key", key["key"])) as peer:
        peer.send(id="1", op="api_keys.create", params={"name": "more"})
        assert refusal(peer.hear()) == (403, "forbidden")


def test_a_revoked_key_s_idle_connection_is_closed(served: Served, lane: Lane, key: Any) -> None:
    with opened(served, "", **said("x-api-key", key["key"])) as peer, opened(served, "") as other:
        lane("api_keys.revoke", key_id=key["id"])
        started = time.monotonic()
        assert peer.closed() == (4401, "unauthenticated")
        assert time.monotonic() - started < 5
        other.send(id="1", op="auth.whoami")
        assert other.hear()["status"] == 200


def test_a_revoked_key_s_subscription_ends(served: Served, lane: Lane, key: Any) -> None:
    with opened(served, lane.namespace, **said("x-api-key", key["key"])) as peer:
        peer.subscribe()
        lane("api_keys.revoke", key_id=key["id"])
        assert peer.closed()[0] == 4401
        assert len(list(websocket.sockets)) < 50


@pytest.mark.parametrize("why", ["disabled", "run out"])
def test_a_user_s_idle_connection_is_closed(served: Served, alice: Any, production: None, why: str) -> None:
    access = token(alice, 1.0 if why == "run out" else 900)
    with opened(served, "", **said("authorization", access)) as peer:
        if why == "disabled":  # by nobody who would tell
            type(alice).objects.filter(pk=alice.pk).update(is_active=False)
        started = time.monotonic()
        assert peer.closed() == (4401, "unauthenticated")
        assert time.monotonic() - started < (5 if why == "disabled" else 6)


def test_a_subscription_ends_with_the_right_to_it(
    served: Served, lane: Lane, key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(caller: Any, operation: Any, params: Any) -> None:
        if operation.streams:
            raise Forbidden

    with opened(served, lane.namespace, **said("x-api-key", key["key"])) as peer:
        peer.subscribe()
        monkeypatch.setattr(websocket, "authorize", denied)
        frame = peer.hear()
        assert (frame["id"], *refusal(frame)) == ("s", 403, "forbidden")
        assert peer.ask("locks.get", key="a")["status"] == 200


def test_while_the_database_is_away_nobody_is_turned_away(
    served: Served, key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.callers import verdicts
    from core.errors import Unavailable

    asked = threading.Event()

    async def away(_: Any) -> Any:
        asked.set()
        raise Unavailable

    with opened(served, "", **said("x-api-key", key["key"])) as peer:
        with monkeypatch.context() as patch:
            patch.setattr(websocket, "review", away)
            verdicts.clear()
            assert asked.wait(5)
            time.sleep(0.2)
        peer.send(id="1", op="auth.whoami")
        assert peer.hear()["status"] == 200


def test_an_operator_closes_the_connections_of_a_principal(served: Served, key: Any) -> None:
    with opened(served, "", **said("x-api-key", key["key"])) as peer, opened(served, "") as other:
        call_command("disconnect", f"key:{key['id']}", stdout=StringIO())
        assert peer.closed() == (4403, "closed by an operator")
        other.send(id="1", op="auth.whoami")
        assert other.hear()["status"] == 200
