"""serve: the one entry. Everything on a laptop, or one role of a deployment."""

import asyncio
from typing import Any

import uvloop
from django.conf import settings
from django.core.management.base import BaseCommand

from core import serving


class Command(BaseCommand):
    help = "Serve Syros."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("--port", type=int, default=settings.REST_PORT)

    def handle(self, *args: Any, **options: Any) -> None:
        from syros_project.asgi import application

        sockets = [serving.listen(settings.SERVER_HOST, options["port"])]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serving.serve(application, sockets))
