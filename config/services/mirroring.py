"""Keys that follow another store: it alone changes them, and what it says is a revision here."""

from typing import Any

from orjson import Fragment

from config import rules
from config.errors import MirrorMoved
from config.models import Entry, Mirror
from config.services.changing import changed, touches
from config.types import ConfigChange, Key, Revision
from core.batch import Transaction
from core.operations import command
from core.types import Text

Told = tuple[str, str | None, int]
IS_ALIVE = "select 1 from core_process where id = $1 and expires_at > statement_timestamp()"


@command(name="config.take_over")
def take_over(tx: Transaction, *, source: Text, followed: Text | None = None) -> dict[str, Any]:
    """Follow a store in this process, if no other that lives does: how far it was followed. `followed` tells it from
    others that had its name before, of which nothing counts.

    Errors: `mirror_moved` (409): another one does.
    """
    mirror = tx.get(Mirror, source) or tx.add(Mirror, source, revision=0)
    if mirror.owner not in {None, tx.process_id} and tx.look(IS_ALIVE, mirror.owner or ""):
        raise MirrorMoved(source=source)
    mirror.owner = tx.process_id
    if followed is not None and followed != mirror.followed:
        mirror.followed, mirror.revision = followed, 0
    return {"revision": mirror.revision}


@command(
    name="config.mirror",
    touches=lambda p: ((Mirror, p["source"]), *((Entry, key) for key, *_ in p["changes"])),
)
def mirror(
    tx: Transaction, *, source: Text, changes: list[Told], expected: Revision, reached: Revision
) -> dict[str, Any]:
    """What a store says, in order: keys, their values as JSON text, or None where they are gone, and since which of its
    revisions. All of it or nothing, and only where it was followed up to `expected`; then it is up to `reached`.

    Errors: `mirror_moved` (409): another process follows it, or it was followed further.
    """
    found = tx.get(Mirror, source)
    if found is None or found.owner != tx.process_id or found.revision != expected:
        raise MirrorMoved(source=source)
    found.revision = reached
    for key, value, revision in changes:
        tell(tx, source, key, value, f"{source} at {revision}")
    return {"revision": reached}


def tell(tx: Transaction, source: str, key: str, value: str | None, reason: str) -> None:
    """Set a key, or unset it if it follows this store, as far as that is a change."""
    entry = tx.get(Entry, key)
    follows = entry is not None and entry.is_set and entry.source == source
    if value is None:
        if entry is not None and follows:
            rules.unset(entry)
            changed(tx, entry, "config.deleted", reason)
    elif not (entry and follows and entry.value == value):
        entry = entry or tx.add(Entry, key)
        rules.settle(entry, value, None)
        entry.source = source
        changed(tx, entry, "config.put", reason, source=Fragment(f'"{source}"'))


@command("POST config/{key}/adopt", name="config.adopt", returns=ConfigChange, touches=touches)
def adopt(
    tx: Transaction, *, key: Key, expected_revision: Revision | None = None, reason: Text | None = None
) -> Any:
    """Have a key follow no other store any longer, so that it can be changed here: for when that store is gone. As long
    as it is followed, its next change of the key takes the key back.

    Errors: `config_not_found` (404), `wrong_expected_revision` (409).
    """
    entry = rules.present(key, tx.get(Entry, key))
    rules.check_revision(key, expected_revision, entry)
    entry.source = None
    return changed(tx, entry, "config.adopted", reason)
