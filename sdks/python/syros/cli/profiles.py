"""Where Syros is and who asks: options, the environment, and profiles kept in `~/.config/syros`."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from syros.client import Client

DEFAULT_URL = "http://localhost:8080"
DEFAULT_PROFILE = "default"
EARLY_SECONDS = 60.0  # an access token is exchanged so long before it runs out
_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")


class Misuse(Exception):
    """What was given cannot be meant: a usage error, with a sentence."""


@dataclass(frozen=True)
class Profile:
    """A Syros to work with; what is None is left to the environment and the defaults."""

    url: str | None = None
    api_key: str | None = None
    namespace: str | None = None


@dataclass(frozen=True)
class Options:
    """What was said before the command."""

    url: str | None = None
    api_key: str | None = None
    namespace: str | None = None
    profile: str | None = None


@dataclass(frozen=True)
class Place:
    """Where Syros is, the namespace to work in, and what shows who asks."""

    url: str
    namespace: str | None = None
    credential: str | Tokens | None = None

    def client(self) -> Client:
        from syros.client import Client  # takes longer than all the rest of a start

        return Client(self.url, credential=self.credential, namespace=self.namespace)


def find_place(options: Options) -> Place:
    """The place that was chosen: an option beats a profile that was named, that beats the environment, and that the
    profile in use. A profile's credentials go to the profile's own address and nowhere else.

    Raises: Misuse, for a profile that is not there and for what is no address.
    """
    book = Book.read()
    name = options.profile or book.current
    kept = book.get(name) if options.profile else book.profiles.get(name, Profile())
    environment = Profile(*(os.environ.get(f"SYROS_{part}") for part in ("URL", "API_KEY", "NAMESPACE")))
    layers = (options, kept, environment) if options.profile else (options, environment, kept)

    def first(part: str) -> str | None:
        return next((value for layer in layers if (value := getattr(layer, part))), None)

    url = (first("url") or DEFAULT_URL).rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise Misuse(f"An address begins with http:// or https://, not as {url} does.")
    is_its_own = url == (kept.url or DEFAULT_URL).rstrip("/")
    own = (kept.api_key if is_its_own else None) or Tokens.kept(name, url)
    beside = (own, environment.api_key) if options.profile else (environment.api_key, own)
    return Place(url, first("namespace"), options.api_key or beside[0] or beside[1])


# -- what is kept ------------------------------------------------------------------------------------


def config_file() -> Path:
    if chosen := os.environ.get("SYROS_CONFIG"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"), "syros", "config.toml")


@dataclass
class Book:
    """The profiles, by name, and the one in use."""

    current: str
    profiles: dict[str, Profile]

    @classmethod
    def read(cls) -> Book:
        """Raises: Misuse, when the file is none of ours."""
        path = config_file()
        try:
            found = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            profiles = {name: Profile(**each) for name, each in found.get("profiles", {}).items()}
            return cls(found.get("current", DEFAULT_PROFILE), profiles)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise Misuse(f"{path} cannot be read: {error}") from error

    def get(self, name: str) -> Profile:
        """Raises: Misuse."""
        if name not in self.profiles:
            raise Misuse(
                f"There is no profile {name}. There are: {', '.join(sorted(self.profiles)) or 'none'}."
            )
        return self.profiles[name]

    def put(self, name: str, profile: Profile) -> None:
        """Raises: Misuse, for a bad name."""
        if not _NAME.fullmatch(name):
            raise Misuse("A profile's name has 1 to 63 letters, digits, - or _.")
        self.profiles[name] = profile
        self.write()

    def remove(self, name: str) -> None:
        """Raises: Misuse."""
        self.get(name)
        del self.profiles[name]
        Tokens.path(name).unlink(missing_ok=True)
        if self.current == name:
            self.current = DEFAULT_PROFILE
        self.write()

    def write(self) -> None:
        lines = [f"current = {json.dumps(self.current)}"]
        for name, profile in self.profiles.items():
            lines += ["", f"[profiles.{name}]"]
            # A JSON string is a TOML string as well, but for DEL, which is in no URL, key or namespace.
            lines += [
                f"{part} = {json.dumps(value, ensure_ascii=False)}"
                for part, value in asdict(profile).items()
                if value
            ]
        write_private(config_file(), "\n".join(lines) + "\n")


@dataclass
class Tokens:
    """What a login gave. Called, it answers an access token that is still good, and keeps a new one."""

    name: str
    url: str
    access: str
    refresh: str
    expires_at: float

    @staticmethod
    def path(name: str) -> Path:
        return config_file().parent / f"tokens-{name}.json"

    @classmethod
    def kept(cls, name: str, url: str) -> Tokens | None:
        """Those of a profile, if they are for this address."""
        try:
            found = cls(name, **json.loads(cls.path(name).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return found if found.url == url else None

    @classmethod
    def keep(cls, name: str, url: str, answer: dict[str, Any]) -> Tokens:
        """Keep what auth.login or auth.refresh answered, where only its owner reads it."""
        expires_at = time.time() + float(answer["expires_in"])
        found = cls(name, url, answer["access"], answer["refresh"], expires_at)
        kept = {key: value for key, value in asdict(found).items() if key != "name"}
        write_private(cls.path(name), json.dumps(kept))
        return found

    def __call__(self) -> str:
        """Raises: Refused, when the login is over; Unavailable."""
        if time.time() > self.expires_at - EARLY_SECONDS:
            with Place(self.url).client() as client:
                answer = client.call("auth.refresh", {"refresh": self.refresh})
            self.__dict__.update(self.keep(self.name, self.url, answer).__dict__)
        return self.access


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)
