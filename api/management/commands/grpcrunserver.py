"""grpcrunserver: `serve grpc`, for those who are used to that name."""

from typing import Any

from core.management.commands.serve import Command as Serve


class Command(Serve):
    help = "Serve gRPC only: the same as `serve grpc`."

    def add_arguments(self, parser: Any) -> None:
        super().add_arguments(parser)
        parser.set_defaults(role="grpc")
