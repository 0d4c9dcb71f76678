"""make_contracts: write the documents that clients rely on, or tell how they differ from what is checked in."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from api import contracts


class Command(BaseCommand):
    help = (
        "Write OpenAPI, protobuf, GraphQL SDL, AsyncAPI and the command line's operations from the registry. Refuses "
        "to write what would break a client of the versions that are there."
    )

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("--check", action="store_true", help="write nothing; fail if anything differs")
        parser.add_argument("--breaking", action="store_true", help="write although clients will break")

    def handle(self, *args: Any, **options: Any) -> None:
        changed = contracts.changed(settings.BASE_DIR)
        broken = [complaint for path, text in changed.items() for complaint in self._broken(path, text)]
        for complaint in broken:
            self.stderr.write(f"breaks clients: {complaint}")
        if options["check"] and changed:
            raise CommandError(
                f"Not as the operations say: {', '.join(changed)}. Run manage.py make_contracts."
            )
        if broken and not options["breaking"]:
            raise CommandError("Nothing was written. Keep what was there, or insist with --breaking.")
        for path, text in changed.items() if not options["check"] else ():
            self._write(path, text)

    @staticmethod
    def _broken(path: str, text: str) -> list[str]:
        old = contracts.checked_in(settings.BASE_DIR / path)
        return [] if old is None else list(contracts.broken(path, old, text))

    def _write(self, path: str, text: str) -> None:
        file = settings.BASE_DIR / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        self.stdout.write(path)
