"""JSON in and out, the same for every transport, the log and kept answers."""

from itertools import accumulate
from typing import Any

import orjson
from pydantic import BaseModel

MAX_DEPTH = 64
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {**dict.fromkeys(b"[{", 1), **dict.fromkeys(b"]}", -1)}


def _default(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.__dict__
    raise TypeError(f"{type(value).__name__} has no JSON form")


class Shared(dict[str, Any]):
    """An object that many are sent, each in an encoding of its own or, where the bytes are the same, in one that is
    made once. Nobody changes it."""

    __slots__ = ("_json",)

    @property
    def json(self) -> bytes:
        try:
            return self._json
        except AttributeError:
            self._json: bytes = _dumps(self)
            return self._json


def encode(value: Any) -> bytes:
    """The JSON of a value: dataclasses, datetimes (RFC 3339, UTC, `Z`), passed-through fragments."""
    return value.json if type(value) is Shared else _dumps(value)


def _dumps(value: Any) -> bytes:
    return orjson.dumps(value, default=_default, option=orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS)


decode = orjson.loads


def depth(body: bytes) -> int:
    """How deep arrays and objects nest; cheap for the common body, exact where it could matter."""
    return 1 if body.count(b"{") + body.count(b"[") <= MAX_DEPTH else nesting(body)


def nesting(body: bytes) -> int:
    """How deep arrays and objects nest, exactly."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(
            b'\\"', b""
        )  # what is left of quotes begins or ends a string
    outside = b"".join(body.split(b'"')[::2])
    return max(accumulate(map(_STEPS.__getitem__, outside.translate(None, _NO_BRACKETS))), default=0)
