"""call: carry out one operation in this process, on the database itself."""

import asyncio
import difflib
from collections.abc import Sequence
from secrets import token_hex
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from api import requests
from core.callers import SYSTEM, Call, namespaces
from core.encoding import encode
from core.errors import SyrosError
from core.management.commands.serve import check_secret
from core.operations import Operation, registry
from core.runtime import runtime


class Command(BaseCommand):
    help = (
        "Carry out an operation as the system itself: who runs this owns the database. Values are read as query "
        'strings are, or as JSON where they begin with {, [ or "; a name that repeats is a list. The answer is '
        "JSON; a stream gives a line an item until Ctrl-C."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("operation", help="such as locks.get")
        parser.add_argument("values", nargs="*", metavar="key=value")
        parser.add_argument("--namespace", default="default")
        parser.add_argument(
            "--json", default="", help="the parameters as one JSON object; further values go on top"
        )
        parser.add_argument("--idempotency-key", help="the same key again: the first answer again")

    def handle(self, *args: Any, **options: Any) -> None:
        operation = find(options["operation"])
        check_secret(may_be_kept=True)  # an API key made with another one would be good for nothing
        try:
            params = parameters(operation, options["json"], options["values"])
            asyncio.run(self.carry_out(operation, params, options))
        except SyrosError as error:
            raise CommandError(told(error)) from error
        except KeyboardInterrupt:
            raise CommandError("Interrupted.", returncode=130) from None

    async def carry_out(self, operation: Operation, params: dict[str, Any], options: dict[str, Any]) -> None:
        """Serve for as long as this one call takes. Ctrl-C cancels it: who waits leaves its queue."""
        await runtime.start()
        try:
            call = Call(SYSTEM, await namespaces.get(options["namespace"]), token_hex(8))
            if key := options["idempotency_key"]:
                call.idempotency_key = requests.check_idempotency_key(key)
            if operation.streams:
                async for item in runtime.stream(operation, call, params):
                    self.print(item)
            else:
                self.print((await runtime.run(operation, call, params)).value)
        finally:
            await runtime.stop()

    def print(self, value: Any) -> None:
        self.stdout.write(encode(value).decode())
        self.stdout.flush()


def find(name: str) -> Operation:
    """Raises: CommandError, with the names that are near."""
    names = [operation.name for operation in registry if operation.route]
    if name in names:
        return registry[name]
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    raise CommandError(f"There is no operation {name}. {'Near: ' + ', '.join(near or names)}.", returncode=2)


def parameters(operation: Operation, body: str, values: Sequence[str]) -> dict[str, Any]:
    """What was given, as the operation takes it. Raises: SyrosErrors, CommandError."""
    given = requests.read_body(body.encode(), "application/json")
    found: dict[str, Any] = {}
    for text in values:
        name, sign, value = text.partition("=")
        if not sign:
            raise CommandError(f"{text} is not of the form key=value.", returncode=2)
        found.setdefault(name, []).append(read(value))
    found = {name: each if len(each) > 1 else each[0] for name, each in found.items()}
    if not found and given:
        return operation.parse(given)
    return operation.parse(requests.as_lists(operation, {**given, **found}), strict=False)


def read(value: str) -> Any:
    """A text, or JSON where it looks so. Raises: Malformed."""
    return requests.read_json(value.encode()) if value.startswith(("{", "[", '"')) else value


def told(error: SyrosError) -> str:
    """The code, the sentence, and every bad field."""
    bad = [
        f"\n  {each['pointer']}: {each['detail']} ({each['code']})" for each in error.extra.get("errors", ())
    ]
    return f"{error.code}: {error.detail}{''.join(bad)}"
