"""How values of Python become what Syros keeps.

What JSON says exactly is JSON, so that programs in other languages read it, and Syros counts with it. None is a
negative entry: it is known that there is nothing. Bytes are bytes. Everything else is pickled, and signed with the key
under which it stands: a pickle runs code where it is read, and whoever may write to the cache must not run any in your
process.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import pickle
from collections.abc import Sequence
from typing import Any

BYTES, PICKLE = "application/octet-stream", "application/vnd.syros.pickle"
LARGEST = 2**53 - 1
DEEPEST = 100
SIGNATURE = 32  # bytes


class Forged(ValueError):
    """It is not signed with any of the secrets, or stands under another key."""


def is_json(value: Any, depth: int = 0) -> bool:
    """Whether it comes back from JSON as it is: the same types, the same order."""
    kind = type(value)
    if kind is str:
        return is_text(value)
    if kind is int:
        return bool(-LARGEST <= value <= LARGEST)
    if kind is float:
        return bool(math.isfinite(value))
    if value is None or kind is bool:
        return True
    if depth == DEEPEST:
        return False
    if kind is list:
        return all(is_json(each, depth + 1) for each in value)
    return kind is dict and all(
        type(name) is str and is_text(name) and is_json(each, depth + 1) for name, each in value.items()
    )


def is_text(text: str) -> bool:
    """No NUL, which Syros refuses in JSON, and no half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def packed(value: Any, key: str, secret: str) -> dict[str, Any]:
    """What a put says of the value.

    Raises: as pickle, for what cannot be pickled.
    """
    if value is None:
        return {"negative": True}
    if is_json(value):
        return {"value": value}
    if type(value) is bytes:
        return {"value_base64": base64.b64encode(value).decode(), "content_type": BYTES}
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    signed = signature(data, key, secret) + data
    return {"value_base64": base64.b64encode(signed).decode(), "content_type": PICKLE}


def unpacked(item: dict[str, Any], key: str, secrets: Sequence[str]) -> Any:
    """The value of what Syros answered.

    Raises: Forged; as pickle, for what cannot be unpickled.
    """
    if item["negative"]:
        return None
    if item["value_base64"] is None:
        return item["value"]
    data = base64.b64decode(item["value_base64"])
    if item["content_type"] != PICKLE:
        return data
    given, data = data[:SIGNATURE], data[SIGNATURE:]
    if not any(hmac.compare_digest(given, signature(data, key, secret)) for secret in secrets):
        raise Forged(key)
    return pickle.loads(data)


def signature(data: bytes, key: str, secret: str) -> bytes:
    derived = hmac.digest(secret.encode(), b"syros.cache.pickle", "sha256")
    return hmac.digest(derived, hashlib.sha256(key.encode()).digest() + data, "sha256")
