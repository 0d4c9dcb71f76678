"""print_guard: what a user installs in a database of their own, so that it refuses stale fencing tokens."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

# The Python SDK installs the same texts, so they are there; a client knows nothing of the server.
GUARDS = settings.BASE_DIR / "sdks" / "python" / "syros" / "guards"
DATABASES = {
    "postgres": "PostgreSQL",
    "mysql": "MySQL or MariaDB",
    "sqlite": "SQLite",
    "redis": "Redis or Valkey",
}


class Command(BaseCommand):
    help = (
        "Print a guard for a database of your own: it refuses the writes of who holds a lock no longer. How to "
        "install and call it is in the comment on top."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: Any) -> None:
        choice = parser.add_mutually_exclusive_group(required=True)
        for name, title in DATABASES.items():
            choice.add_argument(
                f"--{name}", dest="database", action="store_const", const=name, help=f"the guard for {title}"
            )

    def handle(self, *args: Any, **options: Any) -> None:
        (path,) = GUARDS.glob(f"{options['database']}.*")
        self.stdout.write(path.read_text(encoding="utf-8"), ending="")
