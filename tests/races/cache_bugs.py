"""A Syros whose cache has a bug: `python -m tests.races.cache_bugs serve …`, in namespaces that are named after it.

- `version_at_set`: a value is as old as its put, not as the miss that it answers. What is loaded before an invalidation
  and put after it is then served.
- `delete_only`: a deleted key may be put by who loaded it before.
"""

import os
import sys
from typing import Any

import django
from django.core.management import execute_from_command_line

BUGS = ("version_at_set", "delete_only")


def plant() -> None:
    from cache.backends.redis import RedisCache

    put, delete = RedisCache.put, RedisCache.delete

    async def put_as_of_now(self: RedisCache, namespace: Any, key: str, item: Any) -> int:
        if namespace.name.startswith("version-at-set"):
            item.as_of = None
        return await put(self, namespace, key, item)

    async def delete_only(self: RedisCache, namespace: Any, key: str) -> bool:
        if not namespace.name.startswith("delete-only"):
            return await delete(self, namespace, key)
        connection = await self.valkey.ready()
        return bool(await connection.ask("DEL", f"{self._space(namespace)}item:{key}"))

    RedisCache.put = put_as_of_now  # type: ignore[method-assign]
    RedisCache.delete = delete_only  # type: ignore[method-assign]


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syros_project.settings")
    django.setup()
    plant()
    execute_from_command_line(sys.argv)
