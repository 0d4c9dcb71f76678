"""A command for each operation, made from its description."""

from __future__ import annotations

import inspect
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from getpass import getuser
from pathlib import Path
from typing import Annotated, Any

import typer

from syros.cli import output
from syros.cli.profiles import Misuse, find_place
from syros.operations import Operation, Parameter, operations

# What a value is to the shell; the server says what is wrong with it. JSON is given as text and read here.
TYPES: dict[str, type] = {"integer": int, "number": float, "boolean": bool}
JSON_HELP = "JSON, @FILE, or - for stdin"


def add_commands(app: typer.Typer) -> dict[str, typer.Typer]:
    """`syros <group> <verb>` for every operation. Returns the groups, by name."""
    groups: dict[str, typer.Typer] = {}
    for operation in operations().values():
        group, _, verb = operation.name.replace("_", "-").partition(".")
        if group not in groups:
            groups[group] = typer.Typer(no_args_is_help=True)
            app.add_typer(groups[group], name=group, help=f"The operations of {group}.")
        groups[group].command(verb, help=operation.doc)(command(operation))
    return groups


def command(operation: Operation) -> Callable[..., None]:
    """A function that has the operation's parameters as Typer reads them: from its signature."""

    def run(ctx: typer.Context, **values: Any) -> None:
        raw = values["json"] or not sys.stdout.isatty()
        ctx.meta[output.JSON] = values["json"]
        if values.get("from_start"):
            values["from_position"] = 1
        params = parameters(operation, values)
        with find_place(ctx.obj).client() as client:
            if operation.streams:
                for kind, value in client.stream(operation.name, params):
                    output.show_item(kind, value, raw=raw)
            else:
                key = values.get("idempotency_key")
                output.show(client.call(operation.name, params, idempotency_key=key), raw=raw)

    keyword = inspect.Parameter.KEYWORD_ONLY
    signature = [
        inspect.Parameter("ctx", keyword, annotation=typer.Context),
        *(
            inspect.Parameter(name, keyword, annotation=kind, default=default)
            for name, kind, default in fields(operation)
        ),
    ]
    run.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in signature}
    return run


def fields(operation: Operation) -> Iterator[tuple[str, Any, Any]]:
    """Name, annotation and default of what a command takes."""
    arguments = inline(operation)
    for each in operation.parameters:
        argument = each in arguments
        yield each.name, annotation(each, argument=argument), inspect.Parameter.empty if argument else None
    if operation.streams and operation.takes("from_position"):
        about = "all there is, then what comes"
        yield "from_start", Annotated[bool, typer.Option("--from-start", help=about)], False
    if operation.kind == "command":
        about = "the same key again: the first answer again"
        yield "idempotency_key", Annotated[str | None, typer.Option(help=about, show_default=False)], None
    yield "json", Annotated[bool, typer.Option("--json", help="the exact answer")], False


def inline(operation: Operation) -> list[Parameter]:
    """The parameters that are given without a name: those of the path, else the first that must be there."""
    in_path = [each for each in operation.parameters if each.name in operation.path_names]
    return in_path or [each for each in operation.parameters if each.required][:1]


def annotation(parameter: Parameter, *, argument: bool) -> Any:
    kind: Any = TYPES.get(parameter.type, str)
    if parameter.list:
        kind = list[kind]
    if argument:
        return Annotated[kind, typer.Argument(help=about(parameter), show_default=False)]
    # The server has the defaults: what is not given is not sent.
    option = typer.Option(*names(parameter), help=about(parameter), show_default=False)
    return Annotated[kind | None, option]


def names(parameter: Parameter) -> list[str]:
    """--ttl-seconds, --ttl; --streams, --stream; --held/--no-held."""
    found = [parameter.name, *parameter.aliases]
    if parameter.list and parameter.name.endswith("s"):
        found.append(parameter.name[:-1])
    options = [f"--{name.replace('_', '-')}" for name in found]
    return [f"{option}/--no-{option[2:]}" for option in options] if parameter.type == "boolean" else options


def about(parameter: Parameter) -> str:
    """The help: what it is, its choices and limits, and the default that the server has for it."""
    parts = [parameter.help] if parameter.help else []
    if parameter.type == "json":
        parts.append(JSON_HELP)
    if parameter.enum:
        parts.append(" | ".join(map(str, parameter.enum)))
    limits = parameter.limits
    if "maximum" in limits and limits["maximum"] < 2**53 - 1:
        parts.append(f"{limits.get('minimum', 'above 0')} to {limits['maximum']}")
    if parameter.name == "owner" and parameter.required:
        parts.append("default user@host:pid")
    elif parameter.required:
        parts.append("required")
    elif parameter.default is not None:
        parts.append(f"default {parameter.default}")
    return "; ".join(parts)


def default_owner() -> str:
    """Who holds what this process takes, for people to read."""
    try:
        user = getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}:{os.getpid()}"


def parameters(operation: Operation, values: dict[str, Any]) -> dict[str, Any]:
    """What was given, as the operation takes it.

    Raises: Misuse, naming what is missing or is no JSON.
    """
    found = {
        each.name: value_of(each, given)
        for each in operation.parameters
        if is_given(given := values[each.name])
    }
    if "owner" not in found and any(each.name == "owner" and each.required for each in operation.parameters):
        found["owner"] = default_owner()
    missing = [names(each)[0] for each in operation.parameters if each.required and each.name not in found]
    if missing:
        raise Misuse(f"Missing: {', '.join(missing)}.")
    return found


def is_given(value: Any) -> bool:
    return value is not None and value != []


def value_of(parameter: Parameter, given: Any) -> Any:
    if parameter.type == "json":
        return read_json(parameter, given)
    if parameter.type == "scalar":
        return int(given) if given.isdecimal() else given
    return given


def read_json(parameter: Parameter, given: str) -> Any:
    """JSON from the command line, a file or stdin.

    Raises: Misuse.
    """
    try:
        if given == "-":
            given = sys.stdin.read()
        elif given.startswith("@"):
            given = Path(given[1:]).read_text(encoding="utf-8")
        return json.loads(given)
    except (OSError, ValueError, RecursionError) as error:
        raise Misuse(f"{names(parameter)[0]} takes {JSON_HELP}: {error}") from error
