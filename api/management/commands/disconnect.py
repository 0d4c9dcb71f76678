"""disconnect: close somebody's WebSockets, in every process."""

from typing import Any

from asgiref.sync import async_to_sync
from django.core.management.base import BaseCommand, CommandError
from redis import RedisError

from api.websocket import close_everywhere
from core.management.commands.serve import check_secret


class Command(BaseCommand):
    help = (
        "Close the WebSockets of a principal in every process, with code 4403. It may connect again: to keep it out, "
        "revoke its key or disable its user first."
    )

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("principal", help="user:alice or key:9f2c…, as auth.whoami answers it")

    def handle(self, *args: Any, **options: Any) -> None:
        check_secret(may_be_kept=True)  # with another one, it would speak where nobody listens
        try:
            async_to_sync(close_everywhere)(options["principal"])
        except (RedisError, OSError) as error:
            raise CommandError(f"Valkey is away: {error}") from error
        self.stdout.write(f"Told every process to close the WebSockets of {options['principal']}.")
