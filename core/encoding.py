"""JSON in and out, the same for every transport, the log and kept answers."""

from typing import Any

import orjson
from pydantic import BaseModel

MAX_DEPTH = 64


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
    if body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return 1
    deepest = level = 0
    in_string = escaped = False
    for byte in body:
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in (0x7B, 0x5B):
            level += 1
            deepest = max(deepest, level)
        elif byte in (0x7D, 0x5D):
            level -= 1
    return deepest
