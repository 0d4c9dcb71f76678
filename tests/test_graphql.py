"""What is particular to GraphQL over HTTP: documents, refusals, limits, nested reads, sessions."""

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from django.test import Client
from graphql import build_client_schema, get_introspection_query, print_schema

from api.graphql import documents
from core.operations import registry
from sagas import worker
from sagas.services import courses, schedules
from tests.doors import GraphQL, Lane, Served
from tests.doors.graphql import SCHEMA, camel, client, schema
from tests.test_locks import queue, until

ROOT = Path(__file__).resolve().parent.parent


class Asker:
    """Documents as people write them, posted to the served socket."""

    def __init__(self, served: Served, namespace: str) -> None:
        self.url = f"http://127.0.0.1:{served.port}/graphql"
        self.namespace = namespace

    def __call__(self, query: str, **variables: Any) -> dict[str, Any]:
        """The data of an answer without errors."""
        answer = self.post({"query": query, "variables": variables})
        found: dict[str, Any] = answer.json()
        assert "errors" not in found, found
        return found["data"]  # type: ignore[no-any-return]

    def refused(self, query: str, status: int, **variables: Any) -> dict[str, Any]:
        """The first problem of a request of which nothing was carried out."""
        answer = self.post({"query": query, "variables": variables})
        assert answer.status_code == status, answer.text
        assert "data" not in answer.json()
        return answer.json()["errors"][0]["extensions"]  # type: ignore[no-any-return]

    def post(self, body: Any, **headers: str) -> httpx.Response:
        return self.send("POST", json.dumps(body).encode(), **headers)

    def send(
        self, method: str, body: bytes = b"", query: dict[str, str] | None = None, **headers: str
    ) -> httpx.Response:
        about = {"Syros-Namespace": self.namespace, "Content-Type": "application/json"}
        about |= {name.replace("_", "-"): value for name, value in headers.items()}
        return client.request(method, self.url, content=body, params=query, headers=about)


@pytest.fixture
def ask(served: Served, namespace: str) -> Asker:
    return Asker(served, namespace)


# -- the schema -------------------------------------------------------------------------------------


def test_the_checked_in_schema_is_the_schema() -> None:
    for path, text in documents().items():
        assert (ROOT / path).read_text() == text, f"{path} is not what the registry says"


def test_every_operation_is_one_field_and_internal_ones_are_none() -> None:
    roots = (schema().query_type, schema().mutation_type, schema().subscription_type)
    fields = sorted(name for root in roots if root for name in root.fields)
    assert fields == sorted(camel(operation.name) for operation in registry if operation.route)


@pytest.mark.parametrize(
    ("name", "root"),
    [
        ("locksAcquire", "mutation"), ("apiKeysRevoke", "mutation"), ("authLogin", "mutation"),
        ("authLogout", "mutation"), ("locksCheck", "mutation"), ("locksFind", "query"),
        ("eventsFollow", "subscription"),
    ],
)  # fmt: skip
def test_what_changes_something_is_a_mutation(name: str, root: str) -> None:
    assert name in getattr(schema(), f"{root}_type").fields


def test_two_types_of_one_name_are_noticed() -> None:
    from dataclasses import make_dataclass

    from api.graphql.types import made
    from core.operations import Operation, Registry

    found = Registry()
    for name, kind in (("a.get", int), ("b.get", str)):

        async def get(call: Any) -> Any: ...

        answer = make_dataclass("Answer", [("value", kind)])
        found.add(Operation(get, f"GET {name}", kind="query", name=name, returns=answer))
    with pytest.raises(ValueError, match="Two types are called Answer"):
        made(found, found)


# -- documents --------------------------------------------------------------------------------------


def test_a_document_asks_for_several_things_and_only_what_it_wants(ask: Asker) -> None:
    data = ask(
        """mutation Take($key: String!, $owner: String = "nobody") {
            first: locksAcquire(key: $key, owner: $owner, metadata: {why: ["a", 1, null, $key]}) { key owner }
            ...More
        }
        fragment More on Mutation { second: locksAcquire(key: "b", owner: "bob") { fencingToken } }""",
        key="a",
    )
    assert data["first"] == {"key": "a", "owner": "nobody"}
    assert list(data["second"]) == ["fencingToken"]
    state = ask('{ locksGet(key: "a") { __typename holders { metadata } } }')["locksGet"]
    assert state == {"__typename": "LockState", "holders": [{"metadata": {"why": ["a", 1, None, "a"]}}]}


def test_mutations_are_carried_out_one_after_another(ask: Asker) -> None:
    names = [f"n{number}" for number in range(20)]
    fields = " ".join(
        f'{name}: eventsAppend(streamId: "s", eventType: "t", data: 1, expectedVersion: {number}) {{ version }}'
        for number, name in enumerate(names)
    )
    data = ask(f"mutation {{ {fields} }}")
    assert [data[name]["version"] for name in names] == list(range(1, 21))


def test_one_field_s_refusal_leaves_the_others_be(ask: Asker) -> None:
    fields = [f'{name}: locksAcquire(key: "k", owner: "{owner}") {{ owner }}' for name, owner in ("ax", "by")]
    answer = ask.post({"query": f"mutation {{ {' '.join(fields)} }}"})
    assert answer.status_code == 200
    body = answer.json()
    assert body["data"] == {"a": {"owner": "x"}, "b": None}
    assert body["extensions"] == {"syros": {"a": {"status": 201, "replayed": False}}}
    (error,) = body["errors"]
    assert (error["path"], error["message"]) == (["b"], error["extensions"]["detail"])
    assert error["extensions"]["code"] == "lock_held"
    assert error["extensions"]["holders"][0]["owner"] == "x"
    assert error["extensions"]["request_id"] == answer.headers["x-request-id"]


def test_a_replay_is_told_and_may_ask_for_other_fields(ask: Asker) -> None:
    document = 'mutation {{ locksAcquire(key: "a", owner: "me", idempotencyKey: "k") {{ {} }} }}'
    first = ask.post({"query": document.format("lockId expiresAt")}, Idempotency_Key="x").json()
    again = ask.post({"query": document.format("lockId expiresAt fencingToken")}, Idempotency_Key="y").json()
    assert again["extensions"]["syros"]["locksAcquire"] == {"status": 201, "replayed": True}
    assert again["data"]["locksAcquire"].items() >= first["data"]["locksAcquire"].items()


def test_the_operation_that_is_named_is_meant(ask: Asker) -> None:
    query = 'query A { authWhoami { namespace } } mutation B { locksAcquire(key: "a", owner: "b") { key } }'
    found = ask.post({"query": query, "operationName": "A"}).json()
    assert found == {
        "data": {"authWhoami": {"namespace": ask.namespace}},
        "extensions": {"syros": {"authWhoami": {"status": 200, "replayed": False}}},
    }
    for name in (None, "C", ""):
        answer = ask.post({"query": query, "operationName": name})
        assert (answer.status_code, answer.json()["errors"][0]["extensions"]["code"]) == (400, "malformed")
    assert ask('{ locksGet(key: "a") { isLocked } }') == {"locksGet": {"isLocked": False}}


def test_a_query_may_be_in_the_address_and_a_mutation_may_not(ask: Asker) -> None:
    asked = {"query": "query($k: String!) { locksGet(key: $k) { key } }", "variables": '{"k": "a"}'}
    assert ask.send("GET", query=asked).json()["data"] == {"locksGet": {"key": "a"}}
    taking = {"query": 'mutation { locksAcquire(key: "a", owner: "b") { key } }'}
    answer = ask.send("GET", query=taking)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert ask('{ locksGet(key: "a") { isLocked } }') == {"locksGet": {"isLocked": False}}
    assert ask.send("GET", query={**asked, "variables": "{"}).status_code == 400  # JSON, but malformed


@pytest.mark.parametrize("accept", ["application/graphql-response+json", "application/json", "*/*", ""])
def test_the_answer_is_of_the_type_that_is_asked_for(ask: Asker, accept: str) -> None:
    answer = ask.post({"query": "{ __typename }"}, Accept=accept)
    assert answer.json() == {"data": {"__typename": "Query"}}
    wanted = accept if "graphql" in accept else "application/json"
    assert answer.headers["content-type"] == wanted


# -- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "malformed"),
        (b'{"query": "\xff"}', "application/json", 400, "malformed"),
        (b'{"query": "{a}", "variables": ' + b"[" * 70 + b"]" * 70 + b"}", "application/json", 400, "malformed"),
        (b"", "application/json", 422, "invalid"),
        (b"{}", "application/json", 422, "invalid"),
        (b"[]", "application/json", 422, "invalid"),
        (b'{"query": ""}', "application/json", 422, "invalid"),
        (b'{"query": 1}', "application/json", 422, "invalid"),
        (b'{"query": "{ __typename }", "variables": [1]}', "application/json", 422, "invalid"),
        (b'{"query": "{ __typename }", "colour": 1}', "application/json", 422, "invalid"),
        (b'{"query": "{ __typename }"}', "text/plain", 415, "unsupported_media_type"),
        (b"query=%7B__typename%7D", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b'{"query": "{"}', "application/json", 400, "malformed"),
        (b'{"query": "{ nothing }"}', "application/json", 400, "malformed"),
        (b'{"query": "{ locksGet(key: \\"a\\") }"}', "application/json", 400, "malformed"),
        (b'{"query": "{ ...A } fragment A on Query { ...A }"}', "application/json", 400, "malformed"),
        (b'{"query": "type A { b: Int }"}', "application/json", 400, "malformed"),
        (b'{"query": "subscription { eventsFollow { __typename } }"}', "application/json", 406, "not_acceptable"),
    ],
)  # fmt: skip
def test_what_is_no_request(ask: Asker, body: bytes, kind: str, status: int, code: str) -> None:
    answer = ask.send("POST", body, Content_Type=kind)
    problem = answer.json()["errors"][0]["extensions"]
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert problem["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(ask: Asker, method: str) -> None:
    answer = ask.send(method, b'{"query": "{ __typename }"}')
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")


@pytest.mark.parametrize(
    ("document", "variables", "bad"),
    [
        ("mutation { locksAcquire { key } }", {}, {"/key", "/owner"}),
        ('mutation { locksAcquire(key: 1, owner: "x", ttlSeconds: "y") { key } }', {}, {"/key", "/ttl_seconds"}),
        ('mutation { locksAcquire(key: "a", owner: "b", colourOf: 1) { key } }', {}, {"/colour_of"}),
        ('mutation { locksAcquire(key: "a", owner: "b", fence: {fencingToken: true}) { key } }', {},
         {"/fence/key", "/fence/fencing_token"}),
        ("mutation($k: String!, $t: Float) { locksAcquire(key: $k, owner: 1, ttlSeconds: $t) { key } }",
         {"k": 1, "t": []}, {"/key", "/owner", "/ttl_seconds"}),
        ("mutation($k: String!) { locksAcquire(key: $k, owner: \"b\") { key } }", {}, {"/key"}),
        ("mutation($e: [NewEventInput!]) { eventsAppend(streamId: \"s\", events: $e) { version } }",
         {"e": [{"eventType": 1, "data": 2, "odd": 3}, 4]},
         {"/events/0/event_type", "/events/0/odd", "/events/1"}),
    ],
)  # fmt: skip
def test_every_bad_argument_is_named(
    ask: Asker, document: str, variables: dict[str, Any], bad: set[str]
) -> None:
    problem = ask.refused(document, 422, **variables)
    assert problem["code"] == "invalid"
    assert {error["pointer"] for error in problem["errors"]} == bad


def test_what_a_type_lets_through_the_operation_refuses(ask: Asker) -> None:
    """Null for what has a default, a size beyond the limit, a text for a number: its own types are wider."""
    answer = ask.post(
        {"query": 'mutation { locksAcquire(key: "a", owner: "b", waitSeconds: null, permits: "1") { key } }'}
    )
    problem = answer.json()["errors"][0]["extensions"]
    assert (answer.status_code, problem["status"]) == (200, 422)
    assert {error["pointer"] for error in problem["errors"]} == {"/wait_seconds", "/permits"}
    answer = ask.post({"query": "{ locksFind(first: 201) { nodes { key } } }"})
    assert answer.json()["errors"][0]["extensions"]["errors"][0]["pointer"] == "/limit"


def test_a_number_of_thousands_of_digits_is_refused(ask: Asker) -> None:
    for value in ("9" * 5000, f"[{'9' * 5000}]"):
        document = f'mutation {{ eventsAppend(streamId: "s", eventType: "t", data: {value}) {{ version }} }}'
        error = ask.post({"query": document}).json()["errors"][0]
        assert error["extensions"]["status"] in {400, 422}
        assert len(error["message"]) <= 500


def test_errors_are_bounded(ask: Asker) -> None:
    fields = " ".join(f"f{number}" for number in range(500))
    answer = ask.post({"query": '{ locksGet(key: "a") { ' + fields + " } }"})
    assert answer.status_code == 400
    assert len(answer.json()["errors"]) <= 31
    assert len(answer.content) < 50_000


def test_a_body_over_the_limit_is_refused(ask: Asker) -> None:
    query = 'mutation($d: JSON) { eventsAppend(streamId: "s", eventType: "t", data: $d) { version } }'
    assert ask.post({"query": query, "variables": {"d": "x" * (17 << 20)}}).status_code == 413
    assert ask(query, d="x" * (2 << 20))["eventsAppend"] == {"version": 1}


def test_an_operation_s_own_limit_of_bytes_holds(ask: Asker) -> None:
    query = 'mutation($m: JSON) { locksAcquire(key: "a", owner: "b", metadata: $m) { key } }'
    assert ask.refused(query, 413, m={"x": "y" * (1 << 20)})["code"] == "too_large"
    both = query.replace(
        "{ locks", '{ eventsAppend(streamId: "s", eventType: "t", data: 1) { version } locks'
    )
    answer = ask.post({"query": both, "variables": {"m": {"x": "y" * (1 << 20)}}}).json()
    assert answer["errors"][0]["extensions"]["code"] == "too_large"
    assert answer["data"] == {"eventsAppend": {"version": 1}, "locksAcquire": None}
    assert ask('{ locksGet(key: "a") { isLocked } }') == {"locksGet": {"isLocked": False}}


@pytest.mark.parametrize(
    "query",
    [
        'mutation($e: [NewEventInput!]) { eventsAppend(streamId: "s", events: $e) { version } }',
        'mutation($e: [NewEventInput!]) { locksAcquire(key: "a", owner: "b", nothing: $e) { key } }',
        "query($e: [NewEventInput!]) { authWhoami { principal } }",
    ],
)
def test_a_flood_of_small_values_is_refused_at_once(ask: Asker, query: str) -> None:
    """16 MB of empty objects: to look at each would take a minute, and 2 GB."""
    body = b'{"query": %b, "variables": {"e": [%b{}]}}' % (json.dumps(query).encode(), b"{}," * 5_500_000)
    spent = time.process_time()
    answer = ask.send("POST", body)
    assert answer.status_code in {400, 413}
    assert answer.json()["errors"][0]["extensions"]["code"] in {"too_complex", "too_large"}
    assert time.process_time() - spent < 8  # a second, and as much to measure the depth of the body


def test_a_long_list_is_refused_as_over_rest(ask: Asker) -> None:
    query = 'mutation($e: [NewEventInput!]) { eventsAppend(streamId: "s", events: $e) { version } }'
    problem = ask.post({"query": query, "variables": {"e": [{"eventType": "t", "data": 1}] * 1001}}).json()
    assert problem["errors"][0]["extensions"]["errors"][0]["pointer"] == "/events"
    problem = ask.refused(query, 422, e=[{}] * 3000)
    assert {error["pointer"] for error in problem["errors"]} == {"/events"}


def test_only_the_first_bad_field_is_explained(ask: Asker) -> None:
    fields = " ".join(f"a{n}: locksAcquire {{ key }}" for n in range(15))
    assert len(ask.post({"query": f"mutation {{ {fields} }}"}).json()["errors"]) == 1


def test_variables_in_values_add_up(ask: Asker) -> None:
    """What is in a body once may stand in a document hundreds of times."""
    head = 'mutation($d: JSON) { eventsAppend(streamId: "s", eventType: "t", data: '
    wide = head + "[" + "$d " * 300 + "]) { version } }"
    assert ask(wide, d="x" * 100)["eventsAppend"] == {"version": 1}
    assert ask.refused(wide, 413, d="x" * 100_000)["code"] == "too_large"
    again = " ".join(
        f'a{n}: eventsAppend(streamId: "s", eventType: "t", data: $d) {{ version }}' for n in range(20)
    )
    assert ask.refused(f"mutation($d: JSON) {{ {again} }}", 413, d="x" * 1_000_000)["code"] == "too_large"

    def value(depth: int) -> Any:
        return json.loads("[" * depth + "]" * depth)

    deep = head + "[" * 30 + "$d" + "]" * 30 + ") { version } }"
    assert ask(deep, d=value(34))["eventsAppend"] == {"version": 2}
    assert ask.refused(deep, 400, d=value(35))["code"] == "too_complex"


@pytest.mark.parametrize("depth", [65, 250, 480])
def test_a_default_nests_no_deeper_than_a_body(ask: Asker, depth: int) -> None:
    for query in (
        'mutation($d: JSON = {}) {{ eventsAppend(streamId: "s", eventType: "t", data: $d) {{ version }} }}',
        "query A($d: JSON = {}) {{ __typename }} query B {{ __typename }}",
    ):
        document = query.format("[" * depth + "]" * depth)
        name = "B" if "query B" in query else None
        answer = ask.post({"query": document, "operationName": name})
        assert answer.status_code == 400
        # What is deeper still, the parser itself refuses.
        code = "too_complex" if depth < 200 else "malformed"
        assert answer.json()["errors"][0]["extensions"]["code"] == code


def test_a_default_that_is_no_json_is_refused(ask: Asker) -> None:
    query = 'mutation($d: JSON = %s) { eventsAppend(streamId: "s", eventType: "t", data: [$d]) { version } }'
    assert ask.refused(query % ("9" * 30), 400)["code"] == "too_complex"


def test_a_document_guesses_one_password(ask: Asker, production: None) -> None:
    guesses = [f'a{n}: authLogin(username: "a", password: "{n}") {{ access }}' for n in range(2)]
    for query in (" ".join(guesses), guesses[0] + " ... { " + guesses[1] + " }"):
        assert ask.refused(f"mutation {{ {query} }}", 400)["code"] == "too_complex"


def test_a_field_that_breaks_is_logged_and_tells_nothing(
    ask: Asker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the secret is 42")

    monkeypatch.setattr(registry["auth.whoami"], "function", broken)
    answer = ask.post({"query": "{ authWhoami { principal } }"})
    error = answer.json()["errors"][0]
    assert (error["extensions"]["code"], answer.json()["data"]) == ("internal", {"authWhoami": None})
    assert "the secret" not in answer.text
    assert "the secret is 42" in caplog.text


# -- limits -----------------------------------------------------------------------------------------


def nested_fragments(count: int) -> str:
    """2^count fields in a document of some kilobytes."""
    fragments = [f"fragment F{n} on Query {{ ...F{n + 1} ...F{n + 1} }}" for n in range(count)]
    return " ".join(["{ ...F0 }", *fragments, f"fragment F{count} on Query {{ __typename }}"])


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{ " + " ".join(f'a{n}: locksGet(key: "k") {{ key }}' for n in range(31)) + " }", "Names"),
        ("{ " + "__typename " * 600 + "}", "Names"),
        ('{ locksGet(key: "k") { ' + "key " * 600 + "} }", "Names"),
        ("{ ...A ...A } fragment A on Query { " + " ".join(f"a{n}: __typename" for n in range(15)) + " }", "Names"),
        (nested_fragments(80), "Names"),
        ("{ " + "... { __typename } " * 31 + "}", "Names"),
        ("{ locksFind(first: 200) { nodes { history(limit: 100) { data } } } }", "Cost"),
        ("query($n: BigInt = 200) { locksFind(first: $n) { nodes { history(limit: $n) { data } } } }", "Cost"),
        ("{ eventsRead(streamId: \"s\", limit: 1000) { ...E } } fragment E on StreamPage { events { " +
         " ".join(f"a{n}: version" for n in range(20)) + " } }", "Cost"),
        ("{ " + " ".join(f"a{n}: __schema {{ queryType {{ name }} }}" for n in range(20)) + " }", "Cost"),
        ("{ __schema { types { name } more: types { name } } }", "aliases"),
        ("{ __schema { ...T } } fragment T on __Schema { types { name } more: types { name } }", "aliases"),
        ("{ a" + " { a" * 20 + " }" * 20 + " }", "Depth"),
        ('query A { __typename } query B { locksGet(key: "k") { ' + "key " * 200 + "} }", "Names"),
        ("{ __typename } fragment F on LockState { " + "key " * 200 + "}", "Names"),
        ("{ __typename # " + "x" * 1_100_000 + "\n}", "query"),
        ("{ " + "# c\n" * 3000 + "__typename }", "comment"),
        ("{ " + "__typename " * 3000 + "}", "1000"),
        ('mutation { eventsAppend(streamId: "s", eventType: "t", data: ' + "[" * 70 + "]" * 70 + ") { version } }",
         "nests deeper"),
        ("{ a" * 500 + " }" * 500, "deep"),
    ],
)  # fmt: skip
def test_what_asks_for_too_much_is_refused_at_once(ask: Asker, document: str, said: str) -> None:
    started = time.monotonic()
    answer = ask.post({"query": document, "operationName": "A" if "query A" in document else None})
    assert time.monotonic() - started < 5
    error = answer.json()["errors"][0]
    assert answer.status_code in {400, 422}
    assert said.lower() in error["message"].lower()


def test_what_the_limits_are_for_fits(ask: Asker) -> None:
    """The largest pages that REST gives, with all that belongs to an item."""
    event = "eventId streamId eventType version position data metadata correlationId causationId recordedAt"
    holder = "owner mode permits sessionId fencingToken acquiredAt expiresAt metadata"
    ask(f'{{ eventsRead(streamId: "s", limit: 1000) {{ events {{ {event} }} version hasMore }} }}')
    lock = f"key isLocked capacity lastToken queueLength holders {{ {holder} }}"
    ask(f"{{ locksFind(first: 200) {{ nodes {{ {lock} }} pageInfo {{ endCursor }} }} }}")


def test_a_client_may_ask_for_the_whole_schema(ask: Asker) -> None:
    query = get_introspection_query(specified_by_url=True, directive_is_repeatable=True, schema_description=True,
                                    input_value_deprecation=True)  # fmt: skip
    assert print_schema(build_client_schema(ask(query))) == print_schema(schema())  # type: ignore[arg-type]


def test_the_documents_that_are_kept_are_bounded(ask: Asker) -> None:
    from api.graphql.asking import graph
    from api.graphql.parsing import KEPT_CHARACTERS

    for number in range(200):
        ask(f'{{ locksGet(key: "{number}{"x" * 200}") {{ key }} }}')
    kept = graph()._documents._kept
    assert sum(map(len, kept)) == graph()._documents._characters <= KEPT_CHARACTERS
    assert len(kept) > 100


# -- nested reads -----------------------------------------------------------------------------------


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement that goes to the database through the async pools, from now on."""
    found: list[str] = []
    execute = psycopg.AsyncConnection.execute

    async def noted(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        found.append(str(query))
        return await execute(self, query, *arguments, **options)

    monkeypatch.setattr(psycopg.AsyncConnection, "execute", noted)
    return found


NESTED = """query($n: BigInt!) { locksFind(first: $n) { nodes {
    key holders { owner } waiters(limit: 5) { owner } history(limit: 5) { eventType version }
    again: history(limit: 5) { position } older: history(limit: 1) { data }
} } }"""


def test_a_list_of_locks_with_waiters_and_history_costs_as_many_statements_as_one(
    ask: Asker, lane: Lane, later: Callable[..., Any], statements: list[str]
) -> None:
    for number in range(50):
        lane("locks.acquire", key=f"k{number:02}", owner="holder")
    waiting = [
        later(lane, "locks.acquire", key=f"k{n:02}", owner="waiter", wait_seconds=30) for n in range(3)
    ]
    until(lambda: [queue(lane, f"k{n:02}") for n in range(3)] == [["waiter"]] * 3)

    def asked(count: int) -> tuple[list[dict[str, Any]], int]:
        statements.clear()
        nodes = ask(NESTED, n=count)["locksFind"]["nodes"]
        about = [each for each in statements if "where l.id >=" in each or "with ordinality" in each]
        return nodes, len(about)

    one, few = asked(1)
    nodes, many = asked(50)
    # The list, who waits, the last five events (asked for twice) and the last one.
    assert (few, many, len(one), len(nodes)) == (4, 4, 1, 50)
    assert nodes[0]["waiters"] == [{"owner": "waiter"}]
    assert nodes[0]["history"] == [
        {"eventType": "lock.queued", "version": 2}, {"eventType": "lock.acquired", "version": 1},
    ]  # fmt: skip
    assert nodes[0]["older"][0]["data"]["owner"] == "waiter"
    assert nodes[49] == {
        "key": "k49", "holders": [{"owner": "holder"}], "waiters": [], "older": nodes[49]["older"],
        "history": [{"eventType": "lock.acquired", "version": 1}], "again": nodes[49]["again"],
    }  # fmt: skip
    for number in range(3):
        lane("locks.release", key=f"k{number:02}", lock_id=held(ask, number, lane))
    for each in waiting:
        each.result(10)


def held(ask: Asker, number: int, lane: Lane) -> str:
    """The secret of a hold, as no answer would tell it."""
    from locks.models import Lock

    return str(Lock.objects.get(id=f"{lane.namespace}/k{number:02}").lock_id)


def test_a_lock_has_its_history_and_a_stream_its_events(ask: Asker, lane: Lane) -> None:
    grant = lane("locks.acquire", key="a/b", owner="me")
    lane("locks.release", key="a/b", lock_id=grant["lock_id"])
    lane("events.append", stream_id="s", events=[{"event_type": "t", "data": {"n": n}} for n in range(30)])
    data = ask("""{
        locksGet(key: "a/b") { waiters { owner } history { eventType data recordedAt } }
        streamsGet(streamId: "s") { version events(limit: 2) { version data eventId } }
        none: streamsGet(streamId: "none") { events { version } }
    }""")
    assert [each["eventType"] for each in data["locksGet"]["history"]] == ["lock.released", "lock.acquired"]
    assert data["locksGet"]["history"][1]["data"]["fencing_token"] == grant["fencing_token"]
    assert grant["lock_id"] not in str(data)
    assert [each["data"] for each in data["streamsGet"]["events"]] == [{"n": 29}, {"n": 28}]
    assert data["none"]["events"] == []


BY_THE_CLOCK = {
    worker.DUE,
    worker.ABANDONED,
    worker.LEASES_OVER,
    worker.MINE,
    worker.WAITING_FOR,
    schedules.DUE,
}
SAGAS = """query($n: BigInt!) { sagasFind(first: $n) { nodes {
    sagaId status steps { name status } locks(limit: 1) { key mode fencingToken } events(limit: 2) { eventType version }
    again: events(limit: 2) { data } all: locks { key }
} } }"""


def test_a_list_of_sagas_with_all_that_lies_beside_them_costs_as_many_statements_as_one(
    ask: Asker, lane: Lane, statements: list[str]
) -> None:
    locks = [{"key": "b/${input}"}, {"key": "a/${input}", "mode": "shared"}]
    gate = {"name": "gate", "kind": "signal", "locks": locks}
    ids = [lane("sagas.start", name="s", steps=[gate], input=f"{n:02}")["saga_id"] for n in range(30)]
    courses._plans.clear()

    def asked(count: int) -> tuple[list[dict[str, Any]], int]:
        statements.clear()
        nodes = ask(SAGAS, n=count)["sagasFind"]["nodes"]
        about = [each for each in statements if "sagas_" in each or "with ordinality" in each]
        return nodes, len([each for each in about if each not in BY_THE_CLOCK])

    one, few = asked(1)
    _, known = asked(1)
    nodes, many = asked(30)
    # The list, how far they are and, the first time, what they do; one lock and twenty; the last events, asked twice.
    assert (few, known, many, len(one), len(nodes)) == (6, 5, 5, 1, 30)
    assert [each["sagaId"] for each in nodes] == ids[::-1]
    for number, node in enumerate(nodes[::-1]):
        assert node["steps"] == [{"name": "gate", "status": "waiting"}]
        assert node["locks"][0]["key"] == f"a/{number:02}"
        assert (node["locks"][0]["mode"], node["locks"][0]["fencingToken"] > 0) == ("shared", True)
        assert node["all"] == [{"key": f"a/{number:02}"}, {"key": f"b/{number:02}"}]
        assert [each["eventType"] for each in node["events"]] == ["step.waiting", "step.locked"]


def test_a_saga_has_its_locks_and_its_events_also_as_an_answer_that_was_kept(ask: Asker, lane: Lane) -> None:
    gate = {"name": "gate", "kind": "signal", "locks": [{"key": "k"}]}
    start = """mutation($steps: [StepInput!]!) { sagasStart(name: "s", steps: $steps, idempotencyKey: "once") {
        sagaId steps { name } locks { key } events { eventType } } }"""
    first, again = (ask(start, steps=[gate])["sagasStart"] for _ in range(2))
    assert first == again
    assert first["locks"] == [{"key": "k"}]
    assert first["events"][-1] == {"eventType": "saga.started"}
    lane("sagas.signal", saga_id=first["sagaId"], signal="gate")
    query = "query($id: String!) { sagasGet(sagaId: $id) { status locks { key } events(limit: 1) { eventType } } }"
    assert ask(query, id=first["sagaId"])["sagasGet"] == {
        "status": "succeeded", "locks": [], "events": [{"eventType": "saga.succeeded"}],
    }  # fmt: skip


def test_nested_reads_stay_in_their_namespace(ask: Asker, lane: Lane, served: Served) -> None:
    key = f"shared-{uuid4().hex}"
    lane("locks.acquire", key=key, owner="me")
    elsewhere = Asker(served, "default")
    found = elsewhere("query($k: String!) { locksGet(key: $k) { isLocked history { data } } }", k=key)
    assert found["locksGet"] == {"isLocked": False, "history": []}


def test_a_nested_field_s_bad_argument_is_its_own_refusal(ask: Asker) -> None:
    answer = ask.post({"query": '{ locksGet(key: "a") { key history(limit: 0) { version } } }'}).json()
    assert answer["data"] == {"locksGet": {"key": "a", "history": None}}
    problem = answer["errors"][0]
    assert (problem["path"], problem["extensions"]["status"]) == (["locksGet", "history"], 422)
    assert problem["extensions"]["errors"][0]["pointer"] == "/limit"


def test_a_nested_field_that_fails_is_null_and_said_a_bounded_number_of_times(
    ask: Asker, lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core import log
    from core.errors import Unavailable

    async def away(*_: Any) -> Any:
        raise Unavailable

    for number in range(40):
        lane("locks.acquire", key=f"k{number:02}", owner="me")
    monkeypatch.setattr(log, "last", away)
    answer = ask.post({"query": "{ locksFind(first: 40) { nodes { key history { version } } } }"}).json()
    assert [each["history"] for each in answer["data"]["locksFind"]["nodes"]] == [None] * 40
    assert {error["extensions"]["code"] for error in answer["errors"]} == {"unavailable"}
    assert len(answer["errors"]) == 30


# -- waiting ----------------------------------------------------------------------------------------


def test_a_client_that_goes_away_leaves_the_queue(ask: Asker, lane: Lane) -> None:
    lane("locks.acquire", key="a", owner="alice")
    body = {"query": 'mutation { locksAcquire(key: "a", owner: "bob", waitSeconds: 60) { key } }'}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(ask.url, json=body, headers={"Syros-Namespace": ask.namespace}, timeout=0.5)
    until(lambda: queue(lane, "a") == [])
    kinds = [each["event_type"] for each in lane("events.read", stream_id="$lock:a")["events"]]
    assert kinds == ["lock.acquired", "lock.queued", "lock.withdrawn"]


# -- who asks ---------------------------------------------------------------------------------------

WHO = "{ authWhoami { principal isAdmin } }"
TAKE = 'mutation { locksAcquire(key: "a", owner: "x") { key } }'


def free(lane: Lane) -> bool:
    from locks.models import Lock

    return not Lock.objects.filter(id=f"{lane.namespace}/a", lock_id__isnull=False).exists()


@pytest.mark.parametrize(
    "query",
    [
        WHO,
        TAKE,
        "{ __schema { types { name } } }",
        "{ nothing }",
        "{ ...A } fragment A on Query { authWhoami { principal } }",
    ],
)
def test_without_credentials_nothing_is_told(ask: Asker, lane: Lane, production: None, query: str) -> None:
    answer = ask.post({"query": query})
    problem = answer.json()["errors"][0]["extensions"]
    assert (answer.status_code, problem["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert free(lane)


def test_everybody_may_log_in(ask: Asker, production: None) -> None:
    from django.contrib.auth.models import User

    name = f"alice-{ask.namespace}"
    User.objects.create_user(name, password="correct horse", is_staff=True)
    query = (
        "mutation($n: String!, $p: String!) { authLogin(username: $n, password: $p) { access tokenType } }"
    )
    tokens = ask(query, n=name, p="correct horse")["authLogin"]
    who = ask.post({"query": WHO}, Authorization=f"Bearer {tokens['access']}").json()
    assert who["data"]["authWhoami"] == {"principal": f"user:{name}", "isAdmin": True}
    wrong = ask.post({"query": query, "variables": {"n": name, "p": "wrong"}}).json()
    assert wrong["errors"][0]["extensions"]["code"] == "wrong_credentials"
    assert ask("{ __typename }") == {"__typename": "Query"}


def test_who_may_log_in_may_not_do_more_in_the_same_document(
    ask: Asker, lane: Lane, production: None
) -> None:
    query = 'mutation { authLogin(username: "a", password: "b") { access } locksAcquire(key: "a", owner: "x") { key } }'
    assert ask.refused(query, 401)["code"] == "unauthenticated"
    assert free(lane)


def test_a_key_is_no_administrator(ask: Asker, lane: Lane) -> None:
    key = lane("api_keys.create", name="ci")["key"]
    query = 'mutation { apiKeysCreate(name: "more") { id } locksAcquire(key: "b", owner: "x") { key } }'
    answer = ask.post({"query": query}, X_API_Key=key).json()
    assert answer["data"] == {"apiKeysCreate": None, "locksAcquire": {"key": "b"}}
    assert answer["errors"][0]["extensions"]["code"] == "forbidden"
    assert len(lane("api_keys.find")["items"]) == 1
    elsewhere = ask.post({"query": WHO}, X_API_Key=key, Syros_Namespace="default")
    assert elsewhere.status_code == 404


def test_a_web_page_cannot_drive_a_laptop_s_syros(ask: Asker, lane: Lane) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
        answer = ask.post({"query": TAKE}, **headers)
        assert (answer.status_code, answer.json()["errors"][0]["extensions"]["code"]) == (403, "forbidden")
    assert free(lane)


def test_a_session_asks_with_the_page_s_token_and_not_without(
    ask: Asker, lane: Lane, production: None, staff: Client
) -> None:
    session = staff.cookies["sessionid"].value
    for headers in (
        {},
        {"X-CSRFToken": "x" * 32},
        {"X-CSRFToken": "y" * 32, "Cookie": f"sessionid={session}; csrftoken={'x' * 32}"},
    ):
        answer = ask.post({"query": TAKE}, **{"Cookie": f"sessionid={session}", **headers})
        assert (answer.status_code, answer.json()["errors"][0]["extensions"]["code"]) == (403, "forbidden")
    assert free(lane)
    token = "x" * 32
    proof = {"Cookie": f"sessionid={session}; csrftoken={token}", "X-CSRFToken": token}
    answer = ask.post({"query": TAKE}, **proof)
    assert answer.json()["data"] == {"locksAcquire": {"key": "a"}}
    foreign = ask.post({"query": TAKE}, **proof, Origin="https://evil.example")
    assert foreign.status_code == 403
    who = ask.post({"query": WHO}, **proof).json()["data"]["authWhoami"]
    assert who == {"principal": f"user:ada-{ask.namespace}", "isAdmin": True}


def test_a_session_that_ended_is_none(ask: Asker, production: None, staff: Client) -> None:
    session = staff.cookies["sessionid"].value
    staff.logout()
    answer = ask.post(
        {"query": WHO}, Cookie=f"sessionid={session}; csrftoken={'x' * 32}", X_CSRFToken="x" * 32
    )
    assert answer.status_code == 401


def test_the_page_is_for_staff_and_others_are_sent_to_sign_in(
    ask: Asker, production: None, staff: Client
) -> None:
    page = ask.send("GET", Accept="text/html", Cookie=f"sessionid={staff.cookies['sessionid'].value}")
    assert (page.status_code, "graphiql.min.js" in page.text) == (200, True)
    assert page.headers["content-security-policy"].startswith("default-src 'self';")
    assert "http" not in page.text.replace("http://www.w3.org/2000/svg", "").replace("xmlns", "")
    for path in ("/graphql", "/graphql/"):
        other = client.get(ask.url.replace("/graphql", path), headers={"Accept": "text/html"})
        assert (other.status_code, other.headers["location"]) == (302, f"/admin/login/?next={path}")


def test_on_a_laptop_the_page_is_there(ask: Asker) -> None:
    assert "graphiql.min.js" in ask.send("GET", Accept="text/html").text


def test_the_door_s_documents_are_the_schema_s(served: Served, namespace: str) -> None:
    """A door that asked for less than everything would compare less."""
    query, variables = GraphQL(served, namespace).document(registry["locks.get"], {"key": "a"}, {})
    assert variables == {"key": "a"}
    assert query == (
        "query($key: String!) { answer: locksGet(key: $key) { key isLocked capacity lastToken "
        "holders { owner mode permits sessionId fencingToken acquiredAt expiresAt metadata } queueLength "
        "lockDelayUntil waiters { ticket owner mode permits since deadline sessionId ageSeconds } } }"
    )
    assert SCHEMA.exists()


# -- what is read, and where ------------------------------------------------------------------------------


def test_of_who_is_nobody_only_little_is_read(ask: Asker, production: None) -> None:
    big = {"query": "{ __typename }", "variables": {"x": "y" * (64 << 10)}}
    assert ask.post(big).status_code == 413
    assert ask.post(big, Authorization="Bearer nonsense").status_code == 413
    assert ask.post({"query": "{ authWhoami { principal } }"}).status_code == 401


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "syr_wrong"}, {"Cookie": "sessionid=none"}])
def test_a_stranger_s_large_body_is_refused_before_it_comes(
    ask: Asker, served: Served, production: None, headers: dict[str, str]
) -> None:
    about = {"Host": "syros", "Content-Type": "application/json", **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in about.items())
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as peer:
        peer.sendall(f"POST /graphql HTTP/1.1\r\n{head}Content-Length: 65537\r\n\r\n{{".encode())
        assert peer.recv(65536).startswith(b"HTTP/1.1 413 ")
    login = 'mutation { authLogin(username: "nobody", password: "x") { access } }'
    answer = ask.post({"query": login}, **headers)
    assert answer.json()["errors"][0]["extensions"]["code"] == "wrong_credentials"


def test_who_is_revoked_while_the_body_comes_is_not_served(ask: Asker, served: Served, lane: Lane) -> None:
    made = lane("api_keys.create", name="gone")
    body = json.dumps({"query": TAKE}).encode()
    head = f"Host: syros\r\nX-API-Key: {made['key']}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=5) as peer:
        start = f"POST /graphql HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n"
        peer.sendall(start.encode() + body[:10])
        time.sleep(0.3)
        lane("api_keys.revoke", key_id=made["id"])
        time.sleep(0.5)
        peer.sendall(body[10:])
        assert peer.recv(65536).startswith(b"HTTP/1.1 401 ")
    assert free(lane)


def test_a_long_document_is_read_beside_the_loop(ask: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    from api.graphql import parsing

    threads: dict[int, str] = {}
    parsed = parsing.parsed

    def noted(text: str) -> Any:
        threads[len(text)] = threading.current_thread().name
        return parsed(text)

    monkeypatch.setattr(parsing, "parsed", noted)
    short, long = (f"{{ __typename # {'x' * size}\n}}" for size in (100, 90_000))
    assert ask(short) == ask(long) == {"__typename": "Query"}
    assert threads[len(short)] != threads[len(long)]
    assert ask.refused(f"{{ __typename # {'x' * 100_000}\n}}", 422)["errors"][0]["pointer"] == "/query"


def test_who_waits_leaves_the_queue_when_the_key_is_revoked(ask: Asker, lane: Lane, later: Any) -> None:
    made = lane("api_keys.create", name="ci")
    lane("locks.acquire", key="a", owner="holder", ttl_seconds=60)
    query = 'mutation { locksAcquire(key: "a", owner: "revoked", waitSeconds: 30) { key } }'
    waiting = later(ask.post, {"query": query}, X_API_Key=made["key"])
    until(lambda: queue(lane, "a") == ["revoked"])
    lane("api_keys.revoke", key_id=made["id"])
    until(lambda: queue(lane, "a") == [], 8)
    assert waiting.result(10).json()["errors"][0]["extensions"]["code"] == "unauthenticated"
