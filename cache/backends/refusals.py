"""Why a value is not stored, in the same words whatever backend says so."""

from cache.errors import AlreadyCached, CacheFull, EtagMismatch, StaleLoad
from core.errors import SyrosError

REFUSALS = {
    "generation": "The cache began anew after the load began.",
    "too_old": "The load began too long ago.",
    "invalidated": "A tag was invalidated after the load began.",
    "deleted": "The key was deleted after the load began.",
    "newer": "A newer value was put after the load began.",
}


def refusal(kind: str, facts: list[str]) -> SyrosError:
    """Why a value was not stored."""
    if kind == "present":
        return AlreadyCached(etag=facts[0])
    if kind == "changed":
        return EtagMismatch(etag=facts[0] or None)
    if kind == "full":
        return CacheFull()
    tag = {"tag": facts[1]} if len(facts) > 1 else {}
    return StaleLoad(REFUSALS[facts[0]], reason=facts[0], **tag)
