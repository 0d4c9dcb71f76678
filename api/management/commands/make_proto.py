"""make_proto: `make_contracts`, of the .proto files and the numbers of their fields only."""

from typing import ClassVar

from api import proto
from api.management.commands.make_contracts import Command as MakeContracts


class Command(MakeContracts):
    help = "Write proto/ from the operations: the same as `make_contracts`, and no other document."
    sources: ClassVar = [proto.documents]
