"""make_proto: write proto/ from the operations."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from api import proto


class Command(BaseCommand):
    help = (
        "Write the .proto files and the numbers of their fields from the operations; --check only compares."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument(
            "--check", action="store_true", help="fail when a file differs, and write nothing"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        root, wanted = Path(settings.BASE_DIR), proto.documents()
        present = {str(path.relative_to(root)) for path in (root / proto.FOLDER).rglob("*.proto")}
        gone = sorted(present - wanted.keys())
        changed = [name for name, text in wanted.items() if not is_text(root / name, text)]
        if options["check"]:
            if gone or changed:
                raise CommandError(
                    f"Run `manage.py make_proto`: {', '.join([*changed, *gone])} would change."
                )
            return
        for name in gone:
            (root / name).unlink()
        for name in changed:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(wanted[name])
        self.stdout.write(f"{len(changed)} written, {len(gone)} removed.")


def is_text(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text
