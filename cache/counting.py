"""What is counted of the caches: in this process, and every second added up in the backend."""

from cache.relay import backend
from core.callers import Namespace
from core.errors import Unavailable
from core.runtime import every

_counts: dict[Namespace, dict[str, int]] = {}


def count(namespace: Namespace, name: str, number: int = 1) -> None:
    counts = _counts.get(namespace) or _counts.setdefault(namespace, {})
    counts[name] = counts.get(name, 0) + number


@every(1)
async def add_up() -> None:
    for namespace in list(_counts):
        await add_up_one(namespace)


async def add_up_one(namespace: Namespace) -> None:
    """Raises: Unavailable; then it is added the next time."""
    if not (counts := _counts.pop(namespace, None)):
        return
    try:
        await backend.add_counts(namespace, counts)
    except Unavailable:
        for name, number in counts.items():
            count(namespace, name, number)
        raise
