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
    from cache.backends.postgres import PostgresCache
    from cache.backends.redis import RedisCache

    async def remove_from_redis(self: Any, namespace: Any, key: str) -> bool:
        connection = await self.valkey.ready()
        return bool(await connection.ask("DEL", f"{self._space(namespace)}item:{key}"))

    async def remove_from_postgres(self: Any, namespace: Any, key: str) -> bool:
        remove = "delete from cache_item where namespace_id = %(space)s and key = %(key)s returning 1"
        return bool(await self._rows(namespace, remove, key=key))

    plant_into(RedisCache, remove_from_redis)
    plant_into(PostgresCache, remove_from_postgres)


def plant_into(backend: Any, remove: Any) -> None:
    put, delete = backend.put, backend.delete

    async def put_as_of_now(self: Any, namespace: Any, key: str, item: Any) -> int:
        if namespace.name.startswith("version-at-set"):
            item.as_of = None
        found: int = await put(self, namespace, key, item)
        return found

    async def delete_only(self: Any, namespace: Any, key: str) -> bool:
        chosen = remove if namespace.name.startswith("delete-only") else delete
        return bool(await chosen(self, namespace, key))

    backend.put, backend.delete = put_as_of_now, delete_only


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "syros_project.settings")
    django.setup()
    plant()
    execute_from_command_line(sys.argv)
