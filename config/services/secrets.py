"""Secrets: told to who asks for exactly one, and written down that they were."""

from typing import Any

from orjson import Fragment

from config import rules
from config.models import Entry
from config.services.changing import touches, unsealed
from config.types import InstanceName, Key, Revealed
from core.batch import Transaction
from core.operations import command
from core.types import Text

REVEALS = "$config-reveals"


@command(
    "POST config/{key}/reveal", name="config.reveal", returns=Revealed, touches=touches, secret=["value"]
)
def reveal(
    tx: Transaction, *, key: Key, instance_id: InstanceName | None = None, reason: Text | None = None
) -> dict[str, Any]:
    """Tell what a key is set to, also if it is a secret; with `instance_id`, what that instance gets of a rollout. Each
    time is an event in `$config-reveals`, with who asked and why.

    Errors: `config_not_found` (404), `unknown_sealing_key` (409).
    """
    entry = rules.present(key, tx.get(Entry, key))
    value, sealed = rules.choice(entry, instance_id)
    text = value if sealed is None else unsealed(tx, key, sealed)
    said = {} if reason is None else {"reason": reason}
    tx.emit(tx.stream(REVEALS), "config.revealed", {"key": key, "revision": entry.version, **said})
    return {"key": key, "value": Fragment(text or "null"), "revision": entry.version}
