"""`syros`: the global options, the commands, and how each of them ends."""

from __future__ import annotations

import math
import sys
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from syros import __version__
from syros.cli import account, generated, output
from syros.cli.profiles import Misuse, Options, find_place


class Root(TyperGroup):
    """All commands: what they raise becomes a sentence on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (Misuse, UnicodeEncodeError) as error:
            print(f"syros: {error}", file=sys.stderr)
            raise typer.Exit(output.MISUSED) from error
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except output.failures() as error:
            output.complain(error, raw=ctx.meta.get(output.JSON, False))
            raise typer.Exit(output.exit_code(error)) from error


app = typer.Typer(
    name="syros",
    cls=Root,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Locks, events and what else Syros coordinates.

    Exit codes: 0 done, 1 refused, 2 wrong usage or values, 3 unavailable, 4 unauthenticated or forbidden, 5 not
    found.""",
)


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"syros {__version__}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    url: Annotated[str | None, typer.Option(help="where Syros is; else SYROS_URL")] = None,
    api_key: Annotated[str | None, typer.Option(help="else SYROS_API_KEY")] = None,
    namespace: Annotated[str | None, typer.Option(help="else SYROS_NAMESPACE")] = None,
    profile: Annotated[str | None, typer.Option(help="instead of the one in use")] = None,
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True)] = False,
) -> None:
    ctx.obj = Options(url, api_key, namespace, profile)


@app.command()
def lock(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="the key of the lock", show_default=False)],
    command: Annotated[
        list[str], typer.Argument(help="after --: a program and its arguments", show_default=False)
    ],
    ttl: Annotated[
        float, typer.Option(min=1, max=86400, help="seconds from the last renewal to the end of the lease")
    ] = 30.0,
    wait: Annotated[str, typer.Option(help="seconds to wait for the lock, or: forever")] = "0",
    owner: Annotated[str | None, typer.Option(help="who holds it, for people; else user@host:pid")] = None,
    on_lost: Annotated[
        Literal["kill", "ignore"], typer.Option(help="what becomes of the program when the lock is lost")
    ] = "kill",
    shared: Annotated[bool, typer.Option("--shared", help="beside other shared holders")] = False,
    capacity: Annotated[int | None, typer.Option(min=1, help="permits of a semaphore")] = None,
    permits: Annotated[int, typer.Option(min=1, help="how many of them to take")] = 1,
) -> None:
    """Run a program under a lock: `syros lock jobs/nightly --ttl 30 --wait 60 -- ./nightly.sh`.

    The lock is renewed as long as the program runs, and released when it ends; the exit code is the program's. It
    finds SYROS_LOCK_KEY, SYROS_LOCK_ID and SYROS_FENCING_TOKEN in its environment. When the lock is lost or cannot be
    confirmed, the program and all that it started is ended before somebody else can have the lock.
    """
    seconds = read_wait(wait)
    place = find_place(ctx.obj)
    from syros.cli.lock import hold

    with place.client() as client:
        owner = owner or generated.default_owner()
        kind = {"mode": "shared" if shared else "exclusive", "permits": permits}
        kind |= {} if capacity is None else {"capacity": capacity}
        code = hold(client, name, command, owner=owner, ttl=ttl, wait=seconds, on_lost=on_lost, **kind)
    raise typer.Exit(code)


def read_wait(text: str) -> float:
    """Raises: Misuse."""
    try:
        seconds = math.inf if text == "forever" else float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise Misuse(f"--wait takes seconds or `forever`, not {text}.")
    return seconds


@app.command()
def top(
    ctx: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="one frame, and no more")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="seconds between two looks")] = 1.0,
) -> None:
    """A live screen: the parts of the server, the contended locks, and how fast the log grows. Ctrl-C ends it."""
    from rich.console import Console
    from rich.live import Live

    from syros.cli.top import Watch

    console = Console()
    with find_place(ctx.obj).client() as client:
        watch = Watch(client)
        if once:
            console.print(watch.frame())
            raise typer.Exit(output.exit_code(watch.trouble) if watch.trouble else output.OK)
        if not console.is_terminal:
            for frame in watch.frames(every):
                console.print(frame)
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for frame in watch.frames(every):
                live.update(frame, refresh=True)


def watch(
    ctx: typer.Context,
    saga_id: Annotated[str, typer.Argument(help="the id of the saga", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="each event whole, a line of JSON")] = False,
) -> None:
    """What became of a saga and becomes of it, a line a change, until it is over or needs a human.

    Exit codes: 0 succeeded, 10 compensated, 11 failed, 12 terminated, 13 attention; 1 to 5 as everywhere. A Syros that
    goes away meanwhile is waited for.
    """
    ctx.meta[output.JSON] = json
    place = find_place(ctx.obj)
    from syros.cli import saga

    with place.client() as client:
        found = client.call("sagas.get", {"saga_id": saga_id})
        width = max(len("saga"), *(len(step["name"]) for step in found["steps"]))

        def tell(event: dict[str, Any]) -> None:
            print(output.as_json({"event": event}) if json else saga.line(event, width), flush=True)

        code = saga.follow(client, saga_id, tell)
    raise typer.Exit(code)


groups = generated.add_commands(app)
groups["sagas"].command("watch")(watch)
account.register(app)
