"""Who needs no credential, and how long a verdict is remembered."""

import asyncio
import inspect
from collections.abc import Sequence
from typing import Any

import pytest

from core import callers
from core.callers import (
    DEVELOPER,
    SYSTEM,
    Caller,
    Verdicts,
    authorize,
    developer,
    identify,
    is_loopback,
    namespaces,
)
from core.errors import Forbidden, NotFound, SyrosError, Unauthenticated
from core.operations import registry

ALICE = Caller("user:alice")


@pytest.fixture(autouse=True)
def development(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.DEV = True
    monkeypatch.setattr(callers, "verdicts", Verdicts())
    monkeypatch.setattr(callers, "_authenticators", [])


# -- development mode --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "peer",
    ["127.0.0.1", "127.0.0.2", "127.255.255.254", "::1", "::1%lo", "::ffff:127.0.0.1", "::ffff:127.9.9.9",
     "0:0:0:0:0:0:0:1"],
)  # fmt: skip
def test_loopback_peer_is_the_developer(peer: str) -> None:
    assert is_loopback(peer)
    assert developer(peer, "localhost:8080", None) is DEVELOPER


@pytest.mark.parametrize(
    "peer",
    ["10.0.0.1", "192.168.1.2", "126.255.255.255", "128.0.0.1", "0.0.0.0", "::", "::2", "fe80::1%lo", "169.254.1.1",
     "::ffff:10.0.0.1", "::127.0.0.1", "8.8.8.8", "", "localhost", "127.1", "0x7f000001", "2130706433",
     "127.0.0.1, 8.8.8.8", "127.0.0.1:8080", "[::1]"],
)  # fmt: skip
def test_any_other_peer_is_unauthenticated(peer: str) -> None:
    assert not is_loopback(peer)
    with pytest.raises(Unauthenticated):
        developer(peer, "localhost:8080", None)


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "10.0.0.1"])
def test_nobody_is_the_developer_outside_development_mode(peer: str, settings: Any) -> None:
    settings.DEV = False
    with pytest.raises(Unauthenticated):
        developer(peer, "localhost", None)


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8080", "LocalHost:1", "127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080"],
)
def test_loopback_host_is_answered(host: str) -> None:
    assert developer("127.0.0.1", host, None) is DEVELOPER


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:8080", "localhost.evil.example", "evil.localhost", "127.0.0.1.evil.example",
     "127.0.0.2", "10.0.0.1:8080", "[::2]:80", "::1", "localhost.", "localhost@evil.example", "[evil.example]"],
)  # fmt: skip
def test_foreign_host_is_refused(host: str) -> None:
    with pytest.raises(Forbidden) as refused:
        developer("127.0.0.1", host, None)
    assert refused.value.extra == {"host": host}


@pytest.mark.parametrize(
    "origin",
    [None, "", "http://localhost", "http://localhost:3000", "https://127.0.0.1:8443", "http://[::1]:8080",
     "http://LOCALHOST:1"],
)  # fmt: skip
def test_loopback_origin_is_answered(origin: str | None) -> None:
    assert developer("127.0.0.1", "localhost:8080", origin) is DEVELOPER


@pytest.mark.parametrize(
    "origin",
    ["null", "http://evil.example", "https://evil.example:8080", "http://localhost.evil.example", "file://", "//",
     "localhost:8080", "http://10.0.0.1", "http://evil.example/localhost", "chrome-extension://localhostx",
     "http://evil.example#localhost", "http://evil.example?localhost", "http://me@evil.example"],
)  # fmt: skip
def test_foreign_origin_is_refused(origin: str) -> None:
    with pytest.raises(Forbidden) as refused:
        developer("127.0.0.1", "localhost:8080", origin)
    assert refused.value.extra == {"origin": origin}


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost", "http://localhost:80@evil.example"),
        ("localhost", "http://[::1].evil.example"),
        ("[::1].evil.example", None),
        ("localhost:evil.example", None),
    ],
)
def test_name_that_only_begins_like_loopback_is_refused(host: str, origin: str | None) -> None:
    with pytest.raises(Forbidden):
        developer("127.0.0.1", host, origin)


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "http://[evil]", "http://]"])
def test_origin_that_is_no_url_is_refused(origin: str) -> None:
    with pytest.raises(Forbidden):
        developer("127.0.0.1", "localhost", origin)


# -- identify ----------------------------------------------------------------------------------------


def who(
    credential: str | None, peer: str = "127.0.0.1", host: str = "localhost", origin: str | None = None
) -> Caller:
    return asyncio.run(identify(credential, peer=peer, host=host, origin=origin))


def test_forwarding_headers_cannot_matter() -> None:
    assert list(inspect.signature(identify).parameters) == ["credential", "peer", "host", "origin"]
    assert list(inspect.signature(developer).parameters) == ["peer", "host", "origin"]


@pytest.mark.parametrize("credential", [None, ""])
def test_no_credential_from_loopback_is_the_developer(credential: str | None) -> None:
    assert who(credential) is DEVELOPER


def test_no_credential_from_elsewhere_is_unauthenticated() -> None:
    with pytest.raises(Unauthenticated):
        who(None, peer="10.0.0.1")


def test_wrong_credential_is_not_the_developer_after_all() -> None:
    with pytest.raises(Unauthenticated):
        who("wrong")


def test_each_authenticator_is_asked_in_turn_until_one_knows() -> None:
    asked: list[str] = []

    def asking(name: str, answer: Caller | None) -> Any:
        async def authenticate(credentials: Sequence[str]) -> dict[str, Caller]:
            asked.append(f"{name} {' '.join(credentials)}")
            return dict.fromkeys(credentials, answer) if answer else {}

        return authenticate

    for name, answer in (("first", None), ("second", ALICE), ("third", SYSTEM)):
        callers.authenticator(asking(name, answer))
    assert who("a", peer="8.8.8.8", host="evil.example", origin="null") is ALICE
    assert asked == ["first a", "second a"]


def test_verdict_is_remembered_and_a_refusal_is_not() -> None:
    asked: list[str] = []

    async def authenticate(credentials: Sequence[str]) -> dict[str, Caller]:
        asked.extend(credentials)
        return {credential: ALICE for credential in credentials if credential == "good"}

    callers.authenticator(authenticate)
    assert [who("good"), who("good")] == [ALICE, ALICE]
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            who("bad")
    assert asked == ["good", "bad", "bad"]


def test_thousands_who_ask_for_the_same_credential_at_once_cost_one_review() -> None:
    asked: list[str] = []

    async def authenticate(credentials: Sequence[str]) -> dict[str, Caller]:
        asked.extend(credentials)
        await asyncio.sleep(0)
        return {credential: ALICE for credential in credentials if credential == "good"}

    async def ask(credential: str) -> Caller:
        return await callers.identify(credential, peer="8.8.8.8", host="example", origin=None)

    async def ask_often() -> list[Any]:
        first = asyncio.create_task(ask("good"))
        others = [asyncio.create_task(ask(credential)) for credential in ["good", "bad"] * 100]
        await asyncio.sleep(0)
        first.cancel()  # the others go on
        return await asyncio.gather(*others, return_exceptions=True)

    callers.authenticator(authenticate)
    found = asyncio.run(ask_often())
    assert found[::2] == [ALICE] * 100
    assert all(isinstance(refusal, Unauthenticated) for refusal in found[1::2])
    assert asked == ["good", "bad"]
    assert not callers._reviews


def test_several_credentials_are_reviewed_together_and_only_once() -> None:
    asked: list[list[str]] = []

    def asking(known: dict[str, Caller]) -> Any:
        async def authenticate(credentials: Sequence[str]) -> dict[str, Caller]:
            asked.append(list(credentials))
            return {credential: known[credential] for credential in credentials if credential in known}

        return authenticate

    callers.authenticator(asking({"a": ALICE}))
    callers.authenticator(asking({"b": SYSTEM}))
    assert asyncio.run(callers.review(["a", "b", "c"])) == {"a": ALICE, "b": SYSTEM}
    assert asked == [["a", "b", "c"], ["b", "c"]]
    assert [callers.verdicts.get(credential) for credential in "abc"] == [ALICE, SYSTEM, None]


# -- verdicts ----------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(callers, "monotonic", found)
    return found


def test_verdict_runs_out_within_five_seconds(clock: Clock) -> None:
    verdicts = Verdicts()
    verdicts.put("a", ALICE)
    clock.now = 1002.999
    assert verdicts.get("a") is ALICE
    clock.now = 1003.0
    assert verdicts.get("a") is None
    assert callers.VERDICT_SECONDS + callers.REVIEW_SECONDS < 5


def test_asking_does_not_prolong_a_verdict(clock: Clock) -> None:
    verdicts = Verdicts()
    verdicts.put("a", ALICE)
    for clock.now in (1001.0, 1002.0, 1002.9):
        assert verdicts.get("a") is ALICE
    clock.now = 1003.0
    assert verdicts.get("a") is None


def test_verdicts_are_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "VERDICTS", 3)
    verdicts = Verdicts()
    for credential in "abcd":
        verdicts.put(credential, ALICE)
        assert len(verdicts._kept) <= 3
    assert [verdicts.get(credential) for credential in "abcd"] == [None, None, None, ALICE]


def test_cleared_verdicts_are_gone(clock: Clock) -> None:
    verdicts = Verdicts()
    verdicts.put("a", ALICE)
    verdicts.clear()
    assert verdicts.get("a") is None
    assert verdicts.get("unknown") is None


# -- authorize ---------------------------------------------------------------------------------------


def test_administrators_operation_is_refused_to_others() -> None:
    guarded = [operation for operation in registry if operation.admin]
    assert {"api_keys.create", "api_keys.revoke", "api_keys.find"} <= {
        operation.name for operation in guarded
    }
    for operation in guarded:
        authorize(DEVELOPER, operation, {})
        with pytest.raises(Forbidden) as refused:
            authorize(ALICE, operation, {})
        assert refused.value.extra == {"operation": operation.name}


def test_every_other_operation_is_open_to_every_caller() -> None:
    for operation in registry:
        if not operation.admin:
            authorize(ALICE, operation, {})


def test_refusals_are_problems() -> None:
    assert issubclass(Forbidden, SyrosError)
    assert (Forbidden.status, Unauthenticated.status) == (403, 401)
    assert Unauthenticated.headers == {"WWW-Authenticate": "Bearer"}


@pytest.mark.parametrize("name", ["\0", "a\nb", "x" * 64])
def test_what_can_be_no_namespace_is_not_looked_for(name: str) -> None:
    """In a unit test there is no database to ask."""
    with pytest.raises(NotFound):
        asyncio.run(namespaces.get(name))
