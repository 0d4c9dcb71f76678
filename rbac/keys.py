"""The form of an API key: `syr_<id>_<secret><check>`. Pure.

The prefix lets secret scanners find a leaked key, the check (CRC-32) refuses typing errors before the database is
asked; 32 characters of base 62 are 190 bits, so a plain HMAC is enough and a slow hash would only be slow.
"""

import hashlib
import hmac
import re
import secrets
import string
from zlib import crc32

ALPHABET = string.digits + string.ascii_letters
_FORM = re.compile(r"syr_([0-9a-z]{12})_([0-9A-Za-z]{32})([0-9A-Za-z]{6})")


def new_key() -> tuple[str, str]:
    """A fresh key and its id."""
    key_id = "".join(secrets.choice(string.digits + string.ascii_lowercase) for _ in range(12))
    body = f"syr_{key_id}_" + "".join(secrets.choice(ALPHABET) for _ in range(32))
    return body + check(body), key_id


def check(body: str) -> str:
    number, digits = crc32(body.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = ALPHABET[digit] + digits
    return digits


def id_of(key: str) -> str | None:
    """The id of a key that is well-formed, else None."""
    found = _FORM.fullmatch(key)
    return found[1] if found and check(key[:-6]) == found[3] else None


def digest(key: str, pepper: str) -> str:
    return hmac.new(pepper.encode(), key.encode(), hashlib.sha256).hexdigest()
