"""`syros login`, `syros logout` and `syros profiles`: where Syros is and who asks, once and for all."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Annotated, Any

import typer

from syros.cli import output
from syros.cli.profiles import Book, Misuse, Place, Profile, Tokens, find_place

profiles = typer.Typer(no_args_is_help=True, help="The places that you work with.")
Name = Annotated[str, typer.Argument(show_default=False)]


def register(app: typer.Typer) -> None:
    app.command()(login)
    app.command()(logout)
    app.add_typer(profiles, name="profiles")


def login(
    ctx: typer.Context, username: Annotated[str | None, typer.Option(help="else it is asked for")] = None
) -> None:
    """Log in with a username and a password, for a day.

    The password is asked for, or is the first line of stdin. What comes back is kept for the profile in use (or
    `--profile`) in a file that only you can read.
    """
    book = Book.read()
    name = ctx.obj.profile or book.current
    is_new = name not in book.profiles
    place = find_place(replace(ctx.obj, profile=None) if is_new else ctx.obj)
    username = username or typer.prompt("Username")
    with Place(place.url).client() as client:
        answer = client.call("auth.login", {"username": username, "password": read_password()})
    if is_new:  # the first login makes the profile
        book.put(name, Profile(place.url, namespace=place.namespace))
    Tokens.keep(name, place.url, answer)
    print(f"Logged in to {place.url} as {username}.", file=sys.stderr)


def read_password() -> str:
    """Raises: Misuse, when there is none."""
    if sys.stdin.isatty():
        return str(typer.prompt("Password", hide_input=True))
    password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise Misuse("The password is the first line of stdin, and there was none.")
    return password


def logout(ctx: typer.Context) -> None:
    """End the login of the profile in use, here and on the server."""
    name = ctx.obj.profile or Book.read().current
    place = find_place(ctx.obj)
    tokens = Tokens.kept(name, place.url)
    if tokens is None:
        raise Misuse(f"You are not logged in to {place.url}.")
    with Place(place.url).client() as client:
        client.call("auth.logout", {"refresh": tokens.refresh})
    Tokens.path(name).unlink()


@profiles.command("add")
def add(
    name: Name,
    url: Annotated[str, typer.Option(help="Where this Syros is", show_default=False)],
    api_key: Annotated[str | None, typer.Option(help="An API key; else `syros login`")] = None,
    namespace: Annotated[str | None, typer.Option(help="The namespace to work in")] = None,
) -> None:
    """Add a profile, or change it. The first one is the one in use."""
    book = Book.read()
    if not book.profiles:
        book.current = name
    book.put(name, Profile(url, api_key, namespace))


@profiles.command("list")
def find(json: Annotated[bool, typer.Option("--json", help="for programs")] = False) -> None:
    """The profiles, without their secrets."""
    book = Book.read()
    items: list[dict[str, Any]] = [
        {"name": name, "url": each.url, "namespace": each.namespace, "in_use": name == book.current}
        for name, each in book.profiles.items()
    ]
    output.show({"items": items}, raw=json or not sys.stdout.isatty())


@profiles.command("use")
def use(name: Name) -> None:
    """Use a profile from now on."""
    book = Book.read()
    book.get(name)
    book.current = name
    book.write()


@profiles.command("remove")
def remove(name: Name) -> None:
    """Forget a profile and its login."""
    Book.read().remove(name)
