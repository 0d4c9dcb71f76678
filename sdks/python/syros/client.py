"""Calls over HTTP: every operation by its name, tried again where that is safe; streams that lose nothing."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any
from urllib.parse import quote

import httpx

from syros import __version__
from syros.operations import Operation, operations

API = "api/v1/"
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 15.0  # beyond what the operation was told to wait
PAUSES = (0.2, 0.5, 1.0)  # seconds between attempts; half of each is left to chance
LONGEST_PAUSE = 10.0  # who is told to come back later than this is told so
RECONNECT_SECONDS = 5.0  # between attempts to go on with a stream that was lost
HEARTBEAT_SECONDS = 15.0  # what a stream sends at least once in this time, unless told otherwise


class SyrosError(Exception):
    """A call that came to nothing."""


class Refused(SyrosError):
    """The problem (RFC 9457) that Syros answered: `code` is stable, `detail` is for people."""

    def __init__(self, problem: dict[str, Any], retry_after: float = 0.0) -> None:
        self.problem = problem
        self.status = int(problem.get("status", 500))
        self.code = str(problem.get("code", "unknown"))
        self.detail = str(problem.get("detail", ""))
        self.retryable = bool(problem.get("retryable"))
        self.retry_after = retry_after
        super().__init__(f"{self.code}: {self.detail}")


class Unavailable(SyrosError):
    """There was no answer, or none that Syros gives."""


class Client:
    """A connection to Syros. Threads may share it.

    Parameters: the base `url`; `credential`, an API key or access token, or a function that gives the present one;
    `namespace`, else the credential's own.
    Raises: Unavailable, when the URL cannot be one.
    """

    def __init__(
        self, url: str, *, credential: str | Callable[[], str] | None = None, namespace: str | None = None
    ) -> None:
        self.url, self.namespace = url.rstrip("/") + "/", namespace
        self._credential = credential
        headers = {"User-Agent": f"syros-python/{__version__}", "Accept": "application/json"}
        if namespace:
            headers["Syros-Namespace"] = namespace
        # Reading the certificate authorities takes longer than a call: only where they are needed.
        try:
            self._http = httpx.Client(
                base_url=self.url, headers=headers, verify=self.url.startswith("https:"),
                timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            )  # fmt: skip
        except httpx.InvalidURL as error:
            raise Unavailable(f"{url} is no address: {error}") from error

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def call(
        self,
        name: str,
        params: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        timeout: float = ANSWER_SECONDS,
        pauses: Sequence[float] = PAUSES,
    ) -> Any:
        """The answer of an operation.

        What was lost or is `retryable` is sent again after each of `pauses`, or after Retry-After. A command that may
        be sent again gets an Idempotency-Key, so that it is carried out once. `timeout`: seconds for one answer, beside
        `wait_seconds`.

        Raises: Refused, Unavailable.
        """
        operation, params = operations()[name], dict(params or {})
        if operation.kind == "command" and pauses:
            idempotency_key = idempotency_key or uuid.uuid4().hex
        seconds = timeout + float(params.get("wait_seconds") or 0) * operation.waits
        left = iter(pauses)
        while True:
            try:
                return self._answer(self._send(operation, params, idempotency_key, seconds))
            except (Refused, Unavailable) as error:
                wait = pause_before_retry(error, next(left, None))
                if wait is None:
                    raise
                time.sleep(wait)

    def stream(self, name: str, params: Mapping[str, Any] | None = None) -> Iterator[tuple[str, Any]]:
        """The items of an operation that streams, each with its kind: `("event", {...})`, `("heartbeat", {...})`.

        A connection that is lost is made again, and the stream goes on after the last position: nothing is missed and
        nothing comes twice. Only the first connection may fail.

        Raises: Refused, Unavailable.
        """
        operation, params = operations()[name], dict(params or {})
        pauses: Iterator[float] = iter(PAUSES)
        while True:
            failure: SyrosError = Unavailable(f"{self.url} ended the stream")
            try:
                for kind, value in self._items(operation, params):
                    pauses = chain(PAUSES, repeat(RECONNECT_SECONDS))
                    if operation.takes("from_position"):
                        params["from_position"] = value["position"] + 1
                    yield kind, value
            except (Refused, Unavailable) as error:
                failure = error
            wait = pause_before_retry(failure, next(pauses, None))
            if wait is None:
                raise failure
            time.sleep(wait)

    def health(self) -> dict[str, Any]:
        """What /health says, whatever its status.

        Raises: Unavailable.
        """
        try:
            found = self._http.get("health").json()
        except (httpx.HTTPError, ValueError) as error:
            raise Unavailable(f"{self.url}health: {error}") from error
        if not isinstance(found, dict):
            raise Unavailable(f"{self.url} does not answer as Syros does")
        return found

    # -- one request ---------------------------------------------------------------------------------

    def _request(self, operation: Operation, params: dict[str, Any], key: str | None) -> dict[str, Any]:
        path = operation.path
        rest = {name: value for name, value in params.items() if name not in operation.path_names}
        for name in operation.path_names:
            path = path.replace(f"{{{name}}}", in_path(name, str(params[name])))
        headers = self._headers(operation)
        if key:
            headers["Idempotency-Key"] = key
        found = {"method": operation.method, "url": API + path, "headers": headers}
        if operation.method == "GET":
            return {**found, "params": rest}
        headers["Content-Type"] = "application/json"
        # What is no JSON after all (NaN, half a surrogate pair) is for the server to refuse.
        return {**found, "content": json.dumps(rest)}

    def _headers(self, operation: Operation) -> dict[str, str]:
        if operation.anonymous or not self._credential:
            return {}
        credential = self._credential if isinstance(self._credential, str) else self._credential()
        return {"Authorization": f"Bearer {credential}"}

    def _send(
        self, operation: Operation, params: dict[str, Any], key: str | None, seconds: float
    ) -> httpx.Response:
        timeout = httpx.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds))
        try:
            return self._http.request(**self._request(operation, params, key), timeout=timeout)
        except httpx.RequestError as error:
            raise self._lost(error) from error

    def _lost(self, error: httpx.RequestError) -> Unavailable:
        return Unavailable(f"{self.url} does not answer: {error or type(error).__name__}")

    def _answer(self, response: httpx.Response) -> Any:
        """Raises: Refused; Unavailable, when something else than Syros answered."""
        try:
            value = response.json()
        except ValueError:
            value = None
        if response.is_success and value is not None:
            return value
        if isinstance(value, dict) and "code" in value:
            raise Refused(value, seconds_of(response.headers.get("Retry-After", "")))
        raise Unavailable(f"{self.url} does not answer as Syros does: {response.status_code}")

    def _items(self, operation: Operation, params: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """One connection's items. Raises: Refused, Unavailable."""
        silence = float(params.get("heartbeat_seconds") or HEARTBEAT_SECONDS) + ANSWER_SECONDS
        timeout = httpx.Timeout(silence, connect=CONNECT_SECONDS)
        try:
            with self._http.stream(**self._request(operation, params, None), timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    self._answer(response)
                for kind, value in server_sent(lines(response.iter_bytes())):
                    if kind == "error":
                        raise Refused(value)
                    yield kind, value
        except httpx.RequestError as error:
            raise self._lost(error) from error


def in_path(name: str, value: str) -> str:
    """A parameter as a part of a path, where it may hold slashes.

    Raises: Refused, as the server would, what a path cannot say.
    """
    if not value or value.endswith("/"):
        bad = {"pointer": f"/{name}", "code": "bad_segment", "detail": "is not empty and does not end with /"}
        detail = f"Wrong type or value: /{name}"
        raise Refused({"status": 422, "code": "invalid", "detail": detail, "errors": [bad]})
    return "/".join(map(segment, value.split("/")))


def segment(text: str) -> str:
    """As they are, dots alone would lead to another address."""
    if text in {".", ".."}:
        return text.replace(".", "%2E")
    return quote(text, safe=":@=+$", errors="surrogateescape")


def lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """The lines of a body, which end in nothing but a newline: httpx would also cut at U+2028, which JSON may hold."""
    parts: list[bytes] = []
    for chunk in chunks:
        first, *more = chunk.split(b"\n")
        parts.append(first)
        for piece in more:
            yield b"".join(parts).decode()
            parts = [piece]


def server_sent(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """The events of a text/event-stream whose data is JSON. One that is cut off is none."""
    kind = data = ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            data += value
        elif not line and data:
            yield kind, json.loads(data)
            kind = data = ""


def pause_before_retry(error: SyrosError, pause: float | None) -> float | None:
    """How long to wait before the same is sent again; None: it is of no use, or was tried often enough."""
    if pause is None:
        return None
    pause *= random.uniform(0.5, 1)
    if isinstance(error, Refused):
        # The outcome is known to be safe to ask for again: queries change nothing, commands carry a key.
        if not error.retryable and error.code != "outcome_unknown":
            return None
        pause = max(pause, error.retry_after)
    return pause if pause <= LONGEST_PAUSE else None


def seconds_of(text: str) -> float:
    """A Retry-After in seconds; its other form, a date, is not one that Syros sends."""
    return float(text) if text.isdigit() else 0.0
