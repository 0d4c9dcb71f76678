"""Sealing secrets: AES-256-GCM, by the first of several keys; all of them open."""

import os
from base64 import b64encode, urlsafe_b64decode
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings

from config.errors import NoSealingKey, UnknownSealingKey

NONCE_BYTES = 12


def seal(text: str, address: str) -> str:
    """The text, sealed for this address only: `key.nonce-and-text`, where the key's name tells nothing of it.

    Raises: NoSealingKey.
    """
    key = first_key()
    nonce = os.urandom(NONCE_BYTES)
    sealed = AESGCM(key).encrypt(nonce, text.encode(), address.encode())
    return f"{name_of(key)}.{b64encode(nonce + sealed).decode()}"


def unseal(token: str, address: str) -> str:
    """Raises: UnknownSealingKey."""
    name, _, sealed = token.partition(".")
    parts = urlsafe_b64decode(sealed.replace("+", "-").replace("/", "_"))
    for key in settings.CONFIG_KEYS:
        if name_of(key) == name:
            try:
                return (
                    AESGCM(key).decrypt(parts[:NONCE_BYTES], parts[NONCE_BYTES:], address.encode()).decode()
                )
            except InvalidTag:
                break
    raise UnknownSealingKey


def first_key() -> bytes:
    """Raises: NoSealingKey."""
    if not settings.CONFIG_KEYS:
        raise NoSealingKey
    found: bytes = settings.CONFIG_KEYS[0]
    return found


def name_of(key: bytes) -> str:
    return sha256(b"syros configuration" + key).hexdigest()[:12]
