"""Django's migrate, in a schema of Syros' own."""

from typing import Any

from django.core.management.commands import migrate
from django.db import connections


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        with connections[options["database"]].cursor() as cursor:
            cursor.execute("create schema if not exists syros")
        super().handle(*args, **options)
