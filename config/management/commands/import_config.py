"""import_config: make what is set what a file says."""

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand

from config import files
from config.management.serving import Session, serve


class Command(BaseCommand):
    help = (
        "Set what a file says: YAML, TOML, or NAME=value lines, as export_config writes them. What is the same is left "
        "alone; every change is a revision, guarded by the one that was read. It prints each: + new, ~ another, - gone."
    )

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("file", help="- for what comes in")
        parser.add_argument("--format", choices=files.FORMATS, help="unless said, as the file's name ends")
        parser.add_argument("--prefix", default="", help="put before every key of the file")
        parser.add_argument("--namespace", default="default")
        parser.add_argument("--dry-run", action="store_true", help="only say what would change")
        parser.add_argument(
            "--prune", action="store_true", help="unset what begins so and is not in the file"
        )
        parser.add_argument("--secret", action="store_true", help="seal what is set")
        parser.add_argument("--reason", default="import_config", help="stands in the history")

    def handle(self, *args: Any, **options: Any) -> None:
        async def work(session: Session) -> None:
            wanted = read(options)
            items = await session.present(options["prefix"])
            items = {key: item for key, item in items.items() if options["prune"] or key in wanted}
            followed = [key for key in wanted if (items.get(key) or {}).get("source")]
            if followed:
                raise files.BadFile(f"These follow another store: {', '.join(followed)}.")
            present = {
                key: await session.known(item, options["reason"])
                for key, item in items.items()
                if not item["source"]
            }
            steps = files.steps(present, wanted, options["prune"])
            for step in steps:
                session.check(*what(step, options))
            for step in steps:
                if not options["dry_run"]:
                    name, params = what(step, options)
                    await session.ask(name, **params)
                self.stdout.write(step.line(options["secret"]))
            same = len(wanted) - sum(step.sign != "-" for step in steps)
            self.stdout.write(
                f"{len(steps)} changes{', none made' if options['dry_run'] else ''}; {same} the same."
            )

        serve(options["namespace"], work)


def read(options: dict[str, Any]) -> dict[str, Any]:
    """Raises: BadFile."""
    path = options["file"]
    form = files.format_of(path, options["format"])
    if form == "env" and options["prune"]:
        raise files.BadFile("Names of lines are not keys, so nothing is pruned by them: use YAML or TOML.")
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise files.BadFile(f"{path} cannot be read: {error}") from error
    return {f"{options['prefix']}{key}": value for key, value in files.read(text, form).items()}


def what(step: files.Step, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The operation of a step, and its parameters."""
    about = {
        "key": step.key,
        "expected_revision": step.before.revision if step.before else 0,
        "reason": options["reason"],
    }
    if step.sign == "-":
        return "config.delete", about
    secret = {"secret": True} if options["secret"] else {}
    return "config.put", {**about, **secret, "value": step.after}
