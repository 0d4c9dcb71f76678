"""Following a prefix of etcd: everything once, then each change from there on, by one process at a time.

How far it came is stored in the transaction that stores what it heard: whoever goes on, after whichever outage, misses
nothing and repeats nothing.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import aclosing
from hashlib import sha256
from typing import Any

from django.conf import settings
from pydantic_core import PydanticCustomError

from config.errors import MirrorMoved
from config.etcd import Compacted, Etcd, EtcdAway, KeyValue
from config.services.mirroring import Told
from core.callers import SYSTEM, Call, namespaces
from core.database import rows
from core.encoding import decode, encode
from core.operations import registry
from core.runtime import every, runtime
from core.types import check_name, to_json_text

logger = logging.getLogger("syros.etcd")

SOURCE = "etcd"
_troubles: set[str] = set()  # told of already, since etcd was heard the last time
AT_ONCE = 200  # keys a transaction
FOLLOWED = "select id from config_entry where id > %s || '/' and id < %s || '0' and is_set and source = %s"


class Mirror:
    """Follows one prefix of one etcd."""

    def __init__(self, url: str, prefix: str, into: str, namespace: str) -> None:
        self._etcd, self._url = Etcd(url), url
        self._prefix, self._into, self._namespace = prefix.encode(), into, namespace
        self._call: Call | None = None
        self.revision = 0

    async def follow(self) -> None:
        """Follow it until it is away, is silent for long, or another process does.

        Raises: EtcdAway, MirrorMoved, Unavailable, OutcomeUnknown.
        """
        self._call = Call(SYSTEM, await namespaces.get(self._namespace))
        await self._carry_out("config.take_over", source=SOURCE)  # only who may follow asks etcd
        followed = fingerprint(self._url, self._prefix, self._into, await self._etcd.cluster())
        self.revision = (await self._carry_out("config.take_over", source=SOURCE, followed=followed))[
            "revision"
        ]
        if not self.revision:
            await self._take_everything()
        try:
            changes = self._etcd.changes(self._prefix, self.revision + 1)
            async with aclosing(changes):
                async for found in changes:
                    _troubles.clear()
                    for part in by_revision(self._told(found)):
                        await self._tell(part, part[-1][2])
        except Compacted:
            await self._tell([], 0)  # who goes on after an outage in between takes everything too
            await self._take_everything()

    async def _take_everything(self) -> None:
        """All that is there now; what follows etcd and is not there is gone."""
        revision, found = await self._etcd.everything(self._prefix)
        told = self._told(found)
        known, space = {key for key, *_ in told}, self._namespace
        followed = [address.partition("/")[2] for (address,) in await rows(FOLLOWED, [space, space, SOURCE])]
        told += [(key, None, revision) for key in followed if key not in known]
        for start in range(0, len(told), AT_ONCE):
            await self._tell(told[start : start + AT_ONCE], self.revision)
        await self._tell([], revision)

    async def _tell(self, changes: list[Told], reached: int) -> None:
        params = {"source": SOURCE, "changes": changes, "expected": self.revision, "reached": reached}
        await self._carry_out("config.mirror", **params)
        self.revision = reached

    async def _carry_out(self, name: str, **params: Any) -> Any:
        assert self._call
        return (await runtime.carry_out(registry[name], self._call, params)).value

    def _told(self, found: Iterable[KeyValue]) -> list[Told]:
        """The keys as they are called here, and their values as JSON text; what cannot be either is left out."""
        told: list[Told] = []
        for each in found:
            try:
                name = check_name(f"{self._into}{below(self._prefix, each.key)}")
                value = None if each.value is None else json_of(each.value)
                told.append((name, value, each.revision))
            except (PydanticCustomError, UnicodeDecodeError) as error:
                logger.warning("etcd's %r is left out: %s", each.key, error)
        return told


def below(prefix: bytes, key: bytes) -> str:
    """What a key is called under a prefix: the slash between them is neither's, and no other one is lost: no two keys
    under a prefix with its slash are called the same.

    Raises: UnicodeDecodeError.
    """
    rest = key.removeprefix(prefix).decode()
    return rest if prefix.endswith(b"/") else rest.removeprefix("/")


def fingerprint(url: str, prefix: bytes, into: str, cluster: str) -> str:
    """What tells apart what is followed: the address without the password, which may change."""
    said = [url.rpartition("@")[2].rpartition("://")[2], prefix.hex(), into, cluster]
    return sha256(encode(said)).hexdigest()


def by_revision(told: Sequence[Told]) -> Iterator[list[Told]]:
    """Parts of about AT_ONCE changes that leave no revision half told."""
    part: list[Told] = []
    for each in told:
        if len(part) >= AT_ONCE and part[-1][2] != each[2]:
            yield part
            part = []
        part.append(each)
    if part:
        yield part


def json_of(value: bytes) -> str:
    """JSON where it is some, else the text.

    Raises: UnicodeDecodeError, PydanticCustomError.
    """
    text = value.decode()
    try:
        return to_json_text(decode(text))
    except ValueError:
        return to_json_text(text)


def mirrors() -> Sequence[Mirror]:
    if not settings.CONFIG_ETCD_URL:
        return ()
    return (
        Mirror(
            settings.CONFIG_ETCD_URL, settings.CONFIG_ETCD_PREFIX, settings.CONFIG_ETCD_INTO,
            settings.CONFIG_ETCD_NAMESPACE,
        ),
    )  # fmt: skip


@every(1)
async def follow_etcd() -> None:
    """In the processes that work. The one that follows stays in here; another one looks whether it still lives."""
    if not settings.WORKS or runtime.stopping:
        return
    for mirror in mirrors():
        try:
            await mirror.follow()
        except MirrorMoved:
            pass
        except EtcdAway as error:
            if str(error) not in _troubles:
                logger.warning("etcd is away: %s", error)
            _troubles.add(str(error))
