"""The published documents of every transport: made from the registry, checked in, compared with what is checked in."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from api import asyncapi, breaking, graphql, openapi, operations, proto

Documents = dict[str, str]  # path in the repository: text
Source = Callable[[], Documents]
SOURCES: list[Source] = [
    openapi.documents,
    operations.documents,
    graphql.documents,
    proto.documents,
    asyncapi.documents,
]


FOLDERS = ("docs/contracts", proto.FOLDER)  # where nothing else is, but
BY_HAND = {f"{proto.FOLDER}/syros/v1/participant_service.proto"}  # what participants serve: no operation


def documents(sources: Sequence[Source]) -> Documents:
    """All of them, as they should be."""
    return {path: text for source in sources for path, text in source().items()}


def changed(root: Path, wanted: Documents) -> Documents:
    """Those that are not what is checked in below `root`."""
    return {path: text for path, text in wanted.items() if checked_in(root / path) != text}


def left_over(root: Path, wanted: Documents) -> list[str]:
    """What is checked in beside them and is made no more."""
    folders = [folder for folder in FOLDERS if any(path.startswith(f"{folder}/") for path in wanted)]
    found = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    return sorted({str(path.relative_to(root)) for path in found} - wanted.keys() - BY_HAND)


def checked_in(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def broken(path: str, old: str, new: str) -> Iterator[str]:
    """What a new version of a document breaks for the clients of the old one."""
    if path.endswith("openapi.json"):
        yield from breaking.in_openapi(json.loads(old), json.loads(new))
    elif path.endswith("asyncapi.json"):
        yield from breaking.in_asyncapi(json.loads(old), json.loads(new))
    elif path.endswith("operations.json"):
        yield from breaking.in_operations(json.loads(old), json.loads(new))
    elif path.endswith(".graphql"):
        yield from breaking.in_sdl(old, new)
    elif path.endswith(".proto"):
        yield from breaking.in_proto(old, new)
