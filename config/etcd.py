"""What is asked of etcd, version 3, over its HTTP gateway: a range at a revision, and a watch from one."""

import asyncio
import ssl
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from core.encoding import decode, encode

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 20.0
SILENCE_SECONDS = 60.0  # of a watch; then it is begun again, in case that nobody is there any more
PAGE = 500  # keys
MAX_BYTES = 64 << 20  # of one message


class EtcdAway(Exception):
    """etcd does not answer, or not as it should."""


class Silent(EtcdAway):
    """etcd said nothing for long: no fault of a watch."""


class Compacted(Exception):
    """What was asked for is not in etcd's history: gone from it, or of another history than this one."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as etcd has it since a revision; `value` None: it was deleted."""

    key: bytes
    value: bytes | None
    revision: int


class Etcd:
    """One etcd, or what stands before several.

    Parameters: an address as `http://user:password@host:2379`; the name and password only where etcd wants them.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._is_secure = parts.hostname or "", parts.scheme == "https"
        self._port = parts.port or 2379
        self._user, self._password = unquote(parts.username or ""), unquote(parts.password or "")

    async def cluster(self) -> str:
        """Which etcd this is: another one counts revisions of its own.

        Raises: EtcdAway.
        """
        async with self._ask(
            "/v3/kv/range", {"key": b64encode(b"\0").decode(), "count_only": True}
        ) as messages:
            return str((await within(anext(messages), ANSWER_SECONDS))["header"]["cluster_id"])

    async def everything(self, prefix: bytes) -> tuple[int, list[KeyValue]]:
        """All keys that begin so, as they were at one revision, and that revision.

        Raises: EtcdAway, Compacted.
        """
        found: list[KeyValue] = []
        revision, start, more = 0, prefix or b"\0", True
        while more:
            asked = {
                "key": b64encode(start).decode(), "range_end": b64encode(end_of(prefix)).decode(),
                "limit": PAGE, "revision": revision,
            }  # fmt: skip
            async with self._ask("/v3/kv/range", asked) as messages:
                answer = await within(anext(messages), ANSWER_SECONDS)
            revision = revision or int(answer["header"]["revision"])
            found += [key_value(each) for each in answer.get("kvs", ())]
            more = bool(answer.get("more"))
            start = found[-1].key + b"\0" if found else start
        return revision, found

    async def changes(self, prefix: bytes, revision: int) -> AsyncGenerator[list[KeyValue]]:
        """What changes from a revision on, as it comes: the changes of one revision are never apart. First of all an
        empty list: etcd listens from there on. It ends when nothing came for long.

        Raises: EtcdAway, Compacted.
        """
        create = {
            "key": b64encode(prefix or b"\0").decode(), "range_end": b64encode(end_of(prefix)).decode(),
            "start_revision": revision,
        }  # fmt: skip
        async with self._ask("/v3/watch", {"create_request": create}) as messages:
            check_history(going_on(await within(anext(messages), ANSWER_SECONDS)), revision)
            yield []
            while message := await heard(messages):
                if events := going_on(message).get("events"):
                    yield [key_value(each["kv"], each.get("type") == "DELETE") for each in events]

    @asynccontextmanager
    async def _ask(self, path: str, body: Any) -> AsyncIterator[AsyncIterator[Any]]:
        """The messages of an answer, on a connection of its own.

        Raises: EtcdAway, Compacted.
        """
        token = await self._token() if self._user and path != "/v3/auth/authenticate" else ""
        secure = ssl.create_default_context() if self._is_secure else None
        try:
            opened = asyncio.open_connection(self._host, self._port, ssl=secure, limit=MAX_BYTES)
            reader, writer = await within(opened, CONNECT_SECONDS)
        except OSError as error:
            raise EtcdAway(str(error)) from error
        try:
            writer.write(request(self._host, path, token, encode(body)))
            yield messages(reader)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise EtcdAway(str(error) or type(error).__name__) from error
        finally:
            writer.close()

    async def _token(self) -> str:
        asked = {"name": self._user, "password": self._password}
        async with self._ask("/v3/auth/authenticate", asked) as found:
            token: str = (await within(anext(found), ANSWER_SECONDS))["token"]
        return token


async def heard(messages: AsyncIterator[Any]) -> Any:
    """The next message; None when none came for long.

    Raises: EtcdAway, Compacted.
    """
    try:
        return await within(anext(messages), SILENCE_SECONDS)
    except Silent:
        return None


def going_on(message: Any) -> dict[str, Any]:
    """What a watch says, as long as it goes on.

    Raises: EtcdAway, Compacted.
    """
    found: dict[str, Any] = message.get("result") or {}
    if int(found.get("compact_revision") or 0):
        raise Compacted
    if found.get("canceled"):
        raise EtcdAway(found.get("cancel_reason") or "the watch was cancelled")
    return found


def check_history(created: dict[str, Any], start: int) -> None:
    """An etcd that was made anew, or out of a backup, may not have come as far as where a watch goes on. It would wait
    without a word until it has, and leave out what changes until then.

    Raises: Compacted.
    """
    if int(created["header"]["revision"]) < start - 1:
        raise Compacted


async def within(what: Any, seconds: float) -> Any:
    """Raises: Silent, when it takes longer; EtcdAway, when there is no more."""
    try:
        async with asyncio.timeout(seconds):
            return await what
    except TimeoutError as error:
        raise Silent("it does not answer") from error
    except StopAsyncIteration as error:
        raise EtcdAway("it does not answer") from error


def request(host: str, path: str, token: str, body: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", "Connection: close",
             f"Content-Length: {len(body)}", *([f"Authorization: {token}"] if token else [])]  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def messages(reader: asyncio.StreamReader) -> AsyncIterator[Any]:
    """The JSON lines of an answer.

    Raises: EtcdAway, Compacted.
    """
    status, is_chunked = await head(reader)
    parts = chunks(reader) if is_chunked else whole(reader)
    kept = b""
    async for part in parts:
        *lines, kept = (kept + part).split(b"\n")
        for line in lines:
            if line:
                yield checked(status, decode(line))
    if kept:
        yield checked(status, decode(kept))


def checked(status: int, message: Any) -> Any:
    error = message.get("error")
    said = str(error.get("message") if isinstance(error, dict) else error or "")
    if "compacted" in said:
        raise Compacted
    if status != 200 or error:
        raise EtcdAway(f"{status} {said}")
    return message


async def head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    is_chunked = any(line.startswith(b"transfer-encoding:") and b"chunked" in line for line in lines)
    return int(lines[0].split(b" ")[1]), is_chunked


async def chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readline()).partition(b";")[0] or b"0", 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)


async def whole(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while part := await reader.read(1 << 16):
        yield part


def end_of(prefix: bytes) -> bytes:
    """The first key after all that begin so; one NUL: there is none."""
    short = prefix.rstrip(b"\xff")
    return short[:-1] + bytes([short[-1] + 1]) if short else b"\0"


def key_value(found: dict[str, Any], is_deleted: bool = False) -> KeyValue:
    value = None if is_deleted else b64decode(found.get("value") or "")
    return KeyValue(b64decode(found["key"]), value, int(found["mod_revision"]))
