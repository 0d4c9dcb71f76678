"""Operations out of a management command: as the system, in a runtime of its own."""

import asyncio
from collections.abc import Awaitable, Callable
from secrets import token_hex
from typing import Any

from django.core.management.base import CommandError

from config.files import BadFile, Present
from core.callers import SYSTEM, Call, namespaces
from core.encoding import decode, encode
from core.errors import SyrosError
from core.management.commands.serve import check_secret
from core.operations import registry
from core.runtime import runtime

PAGE = 200


class Session:
    """Carries operations out in one namespace, while the runtime lasts."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def ask(self, name: str, **params: Any) -> Any:
        """The answer as JSON has it.

        Raises: what the operation raises.
        """
        operation = registry[name]
        outcome = await runtime.run(operation, self._call, operation.parse(params))
        return decode(encode(outcome.value))

    @staticmethod
    def check(name: str, params: dict[str, Any]) -> None:
        """Raises: BadFile, of what the operation would refuse whatever is set."""
        try:
            registry[name].parse(params)
        except SyrosError as error:
            why = "; ".join(f"{each['pointer']}: {each['detail']}" for each in error.extra.get("errors", ()))
            raise BadFile(f"{params['key']}: {why or error.detail}") from error

    async def present(self, prefix: str) -> dict[str, dict[str, Any]]:
        """What is set under a prefix, by key."""
        found: dict[str, dict[str, Any]] = {}
        page: dict[str, Any] = {"next_cursor": ""}
        while (cursor := page["next_cursor"]) is not None:
            page = await self.ask(
                "config.find", prefix=prefix, limit=PAGE, **({"cursor": cursor} if cursor else {})
            )
            found |= {item["key"]: item for item in page["items"]}
        return found

    async def known(self, item: dict[str, Any], reason: str) -> Present:
        """What a key is set to; of a secret, the value too, which is written down."""
        value = item["value"]
        if item["secret"]:
            value = (await self.ask("config.reveal", key=item["key"], reason=reason))["value"]
        return Present(value, item["revision"], item["secret"])


def serve(namespace: str, work: Callable[[Session], Awaitable[None]]) -> None:
    """Raises: CommandError."""
    check_secret(may_be_kept=True)
    try:
        asyncio.run(carry_out(namespace, work))
    except BadFile as error:
        raise CommandError(str(error)) from error
    except SyrosError as error:
        bad = [f"\n  {each['pointer']}: {each['detail']}" for each in error.extra.get("errors", ())]
        raise CommandError(f"{error.code}: {error.detail}{''.join(bad)}") from error


async def carry_out(namespace: str, work: Callable[[Session], Awaitable[None]]) -> None:
    await runtime.start()
    try:
        await work(Session(Call(SYSTEM, await namespaces.get(namespace), token_hex(8))))
    finally:
        await runtime.stop()
