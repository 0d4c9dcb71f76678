"""make_contracts: write the documents that clients rely on, or tell how they differ from what is checked in."""

from typing import Any, ClassVar

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from api import contracts


class Command(BaseCommand):
    help = (
        "Write OpenAPI, protobuf, GraphQL SDL, AsyncAPI and the command line's operations from the registry. Refuses "
        "to write what would break a client of the versions that are there."
    )
    requires_system_checks: list[str] = []
    sources: ClassVar = contracts.SOURCES

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("--check", action="store_true", help="write nothing; fail if anything differs")
        parser.add_argument("--breaking", action="store_true", help="write although clients will break")

    def handle(self, *args: Any, **options: Any) -> None:
        root, wanted = settings.BASE_DIR, contracts.documents(self.sources)
        changed, left_over = contracts.changed(root, wanted), contracts.left_over(root, wanted)
        broken = [f"{path}: is gone" for path in left_over]
        broken += [complaint for path, text in changed.items() for complaint in self._broken(path, text)]
        for complaint in broken:
            self.stderr.write(f"breaks clients: {complaint}")
        if options["check"]:
            self._check([*changed, *left_over])
        elif broken and not options["breaking"]:
            raise CommandError("Nothing was written. Keep what was there, or insist with --breaking.")
        else:
            self._write(changed, left_over)

    @staticmethod
    def _broken(path: str, text: str) -> list[str]:
        old = contracts.checked_in(settings.BASE_DIR / path)
        return [] if old is None else list(contracts.broken(path, old, text))

    @staticmethod
    def _check(different: list[str]) -> None:
        if different:
            raise CommandError(
                f"Not as the operations say: {', '.join(different)}. Run manage.py make_contracts."
            )

    def _write(self, changed: contracts.Documents, left_over: list[str]) -> None:
        for path in left_over:
            (settings.BASE_DIR / path).unlink()
        for path, text in changed.items():
            file = settings.BASE_DIR / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        for path in (*changed, *left_over):
            self.stdout.write(path)
