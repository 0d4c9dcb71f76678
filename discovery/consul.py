"""What Consul's HTTP API is asked and what its answers mean; one request a connection, answers bounded.

The forms are those of its documentation: blocking queries, the catalogue, health of a service, TTL checks of an agent.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from re import compile
from time import monotonic
from typing import Any, get_args
from urllib.parse import quote, urlencode, urlsplit

import httptools
import orjson

from core.errors import Invalid
from core.operations import registry
from discovery.types import Scheme

MAX_ANSWER = 16 << 20  # bytes
CONNECT_SECONDS = 5.0
SCHEMES = get_args(Scheme)
MARK = "consul:"  # what the ids of imported instances begin with
INSTANCE_ID = compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


class Away(Exception):
    """Consul does not answer, or not as Consul would."""


class Refused(Away):
    """It answers, and says no."""

    def __init__(self, status: int, why: str) -> None:
        self.status = status
        super().__init__(f"{status} {why}".strip())


@dataclass(slots=True)
class Answer:
    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""

    @property
    def index(self) -> int:
        """Where a blocking query is to go on; 0 where the answer does not say."""
        found = self.headers.get(b"x-consul-index", b"")
        return int(found) if found.isdigit() and len(found) < 20 else 0

    def json(self, kind: type[Any]) -> Any:
        """Raises: Away."""
        try:
            found = orjson.loads(self.body)
        except ValueError:
            raise Away("The answer is no JSON.") from None
        if not isinstance(found, kind):
            raise Away("The answer is JSON of another form.")
        return found


class Reader:
    """Puts an answer together (httptools' callbacks)."""

    def __init__(self) -> None:
        self.answer, self.is_whole, self._size = Answer(), False, 0
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Raises: Away."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            raise Away(
                f"The answer is no HTTP: {cause if isinstance(cause, Away) else error}"[:300]
            ) from None

    def on_header(self, name: bytes, value: bytes) -> None:
        self.answer.headers[name.lower()] = value

    def on_body(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > MAX_ANSWER:
            raise Away("larger than 16 MiB")
        self._parts.append(part)

    def on_message_complete(self) -> None:
        self.answer.status, self.answer.body = self._parser.get_status_code(), b"".join(self._parts)
        self.is_whole = True


class Client:
    """Consul at one address.

    Parameters: its URL, http:// or https://; the token for it and the datacenter to ask, if any.
    Raises: ValueError, of a URL that is none.
    """

    def __init__(self, url: str, token: str = "", datacenter: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"DISCOVERY_CONSUL_URL is no URL such as http://127.0.0.1:8500: {url!r}.")
        if not (token.isascii() and token.isprintable()):
            raise ValueError("DISCOVERY_CONSUL_TOKEN has characters that no token has.")
        self._host, self._netloc, self._path = parts.hostname, parts.netloc, parts.path.rstrip("/")
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._token, self._datacenter = token, datacenter

    async def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] = {},
        body: Any = None,
        *,
        seconds: float = 10.0,
    ) -> Answer:
        """An answer of status 200.

        Raises: Away, Refused.
        """
        request = self._request(method, path, query, b"" if body is None else orjson.dumps(body))
        try:
            async with asyncio.timeout(seconds):
                answer = await self._exchange(request)
        except TimeoutError:
            raise Away(f"No answer within {seconds:.0f} s.") from None
        except (OSError, UnicodeError) as error:
            raise Away(f"Cannot reach {self._netloc}: {error}"[:300]) from None
        if answer.status != 200:
            raise Refused(answer.status, answer.body[:200].decode("utf-8", "replace").strip())
        return answer

    def _request(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> bytes:
        asked = {**({"dc": self._datacenter} if self._datacenter and method == "GET" else {}), **query}
        head = [f"{method} {self._path}/v1/{path}{'?' if asked else ''}{urlencode(asked)} HTTP/1.1"]
        head += [f"Host: {self._netloc.rpartition('@')[2]}", "Connection: close", "Accept: application/json"]
        head += [f"X-Consul-Token: {self._token}"] * bool(self._token)
        head += [f"Content-Length: {len(body)}", "Content-Type: application/json"] * bool(
            body or method == "PUT"
        )
        return "\r\n".join([*head, "", ""]).encode() + body

    async def _exchange(self, request: bytes) -> Answer:
        async with asyncio.timeout(CONNECT_SECONDS):
            stream, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        try:
            writer.write(request)
            reader = Reader()
            while not reader.is_whole:
                data = await stream.read(1 << 16)
                if not data:
                    raise Away("The connection was closed before the answer was complete.")
                reader.feed(data)
            return reader.answer
        finally:
            writer.transport.abort()


def segment(name: str) -> str:
    """A name as a part of a path."""
    return quote(name, safe="")


# -- what an answer means -----------------------------------------------------------------------------


def services(found: Mapping[str, Any], prefix: str, tag: str, own: str) -> set[str]:
    """Which of a catalogue's services are imported: not Consul's own, not Syros, none whose name Syros refuses."""
    return {
        name
        for name, tags in found.items()
        if name.startswith(prefix)
        and name not in ("consul", own)
        and (not tag or tag in (tags or ()))
        and is_name(name)
    }


def is_name(name: str) -> bool:
    try:
        registry["services.get"].parse({"service": name})
    except Invalid:
        return False
    return True


def instances(service: str, found: list[Any], ttl_seconds: float) -> dict[str, dict[str, Any]]:
    """The healthy instances of a service as `services.register` takes them, by their ids. What Syros does not take,
    such as one without a port, is left out."""
    registrations = (registration(service, entry, ttl_seconds) for entry in found)
    return {each["instance_id"]: each for each in registrations if each}


def registration(service: str, entry: Any, ttl_seconds: float) -> dict[str, Any] | None:
    try:
        node, here = entry["Node"], entry["Service"]
        meta = here.get("Meta") or {}
        return registry["services.register"].parse(
            {
                "service": service,
                "instance_id": instance_id(str(node["Node"]), str(here["ID"])),
                "address": here.get("Address") or node["Address"],
                "port": here["Port"],
                "scheme": meta["scheme"] if meta.get("scheme") in SCHEMES else "http",
                "ttl_seconds": ttl_seconds,
                "tags": [tag for tag in here.get("Tags") or () if 0 < len(tag) <= 255 and tag.isprintable()][
                    :64
                ],
                "metadata": {"source": "consul", "node": node["Node"], "id": here["ID"], "meta": meta},
                "weight": max(0, min(1000, int((here.get("Weights") or {}).get("Passing", 1)))),
            }
        )
    except (Invalid, KeyError, TypeError, ValueError, AttributeError):
        return None


def instance_id(node: str, service_id: str) -> str:
    """Ids in Consul are a node's: with its name they are one in all. What is no id in Syros has a digest for one."""
    found = f"{MARK}{node}:{service_id}"
    return found if INSTANCE_ID.fullmatch(found) else MARK + sha256(found.encode()).hexdigest()[:32]


class Index:
    """Where a blocking query goes on: never back without beginning anew, never 0 once there was an answer."""

    def __init__(self) -> None:
        self.value = 0

    def follow(self, answered: int) -> None:
        self.value = 0 if answered < self.value else max(1, answered)


class Pace:
    """Lets a few through at once, and then one every so often: what changes all the time is looked at less often."""

    def __init__(self, seconds: float, burst: int) -> None:
        self._seconds, self._burst = seconds, burst
        self._left, self._at = float(burst), monotonic()

    async def wait(self) -> None:
        now = monotonic()
        self._left = min(self._burst, self._left + (now - self._at) / self._seconds) - 1
        self._at = now
        if self._left < 0:
            await asyncio.sleep(-self._left * self._seconds)
