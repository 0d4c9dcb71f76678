"""export_config: what is set, as a file."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand

from config import files
from config.management.serving import Session, serve


class Command(BaseCommand):
    help = (
        "Write down what is set, as YAML, TOML or NAME=value lines. Secrets are left out, unless --reveal, which is in "
        "the log. Of a rollout the value before it is written."
    )

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument(
            "--format", choices=files.FORMATS, help="unless said, as the file's name ends, or yaml"
        )
        parser.add_argument(
            "--output", help="a file, which only its owner reads; unless said, to the terminal"
        )
        parser.add_argument("--prefix", default="", help="only keys that begin so, written without it")
        parser.add_argument("--namespace", default="default")
        parser.add_argument("--reveal", action="store_true", help="secrets too")

    def handle(self, *args: Any, **options: Any) -> None:
        async def work(session: Session) -> None:
            values: dict[str, Any] = {}
            left = 0
            for key, item in (await session.present(options["prefix"])).items():
                if item["secret"] and not options["reveal"]:
                    left += 1
                    continue
                known = await session.known(item, "export_config")
                values[key.removeprefix(options["prefix"])] = known.value
            self.write(values, options)
            if left:
                self.stderr.write(f"{left} secrets are left out.")

        serve(options["namespace"], work)

    def write(self, values: dict[str, Any], options: dict[str, Any]) -> None:
        output = options["output"]
        form = files.format_of(output or "yaml", options["format"])
        text = files.write(values, form)
        if output:
            path = Path(output)
            path.touch(mode=0o600)
            path.chmod(0o600)  # it may have been there
            path.write_text(text, encoding="utf-8")
        else:
            self.stdout.write(text, ending="")
