"""Configuration as files: YAML and TOML with a key and its value each, or NAME=value lines. Pure."""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import tomli_w
import yaml

from core.encoding import decode, encode

FORMATS = ("yaml", "toml", "env")
_NAME = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_.]*)=(.*)")
MERGE = "tag:yaml.org,2002:merge"
_ODD = re.compile(r"[^A-Za-z0-9_]")


class BadFile(ValueError):
    """The file is not of its format, or a value has no form in it."""


def format_of(path: str, said: str | None) -> str:
    """Raises: BadFile."""
    ending = path.rpartition(".")[2]
    found: str = said or {"yml": "yaml"}.get(ending, ending)
    if found not in FORMATS:
        raise BadFile(f"Say --format: one of {', '.join(FORMATS)}.")
    return found


def read(text: str, form: str) -> dict[str, Any]:
    """The values by key, as JSON has them.

    Raises: BadFile.
    """
    try:
        found = READ[form](text)
        if not isinstance(found, dict):
            raise BadFile("The file is no mapping of keys to values.")
        for key, value in found.items():
            check_key(key)
            check(value, key)
        values: dict[str, Any] = decode(encode(found))
    except RecursionError as error:
        raise BadFile("It is nested too deep, or a value holds itself.") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise BadFile(str(error)) from error
    return values


def check(value: Any, name: str) -> None:
    """Raises: BadFile, naming the key, of what JSON has no form for."""
    if isinstance(value, dict):
        for key, each in value.items():
            check_key(key)
            check(each, name)
    elif isinstance(value, list):
        for each in value:
            check(each, name)
    elif isinstance(value, float) and not isfinite(value):
        raise BadFile(f"{name}: JSON has no {value}.")
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise BadFile(f"{name}: a number has more than 64 bits; put quotes around it.")


def check_key(key: Any) -> None:
    """Raises: BadFile."""
    if not isinstance(key, str):
        raise BadFile(f"A key is a text; put quotes around {key}.")


def write(values: Mapping[str, Any], form: str) -> str:
    """Raises: BadFile."""
    text: str = WRITE[form](values)
    return text


def read_env(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, line in enumerate(re.split(r"\r?\n", text), 1):
        if not (line := line.strip()) or line.startswith("#"):
            continue
        match = _NAME.fullmatch(line)
        if match is None:
            raise BadFile(f"Line {number} is not of the form NAME=value.")
        found[match[1]] = value_of(match[2].strip())
    return found


def value_of(text: str) -> Any:
    """JSON where it is some, else the text itself, less the quotes of a shell."""
    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError:
        is_quoted = len(text) > 1 and text[0] == text[-1] == "'"
        return text[1:-1] if is_quoted else text


def refuse(constant: str) -> Any:
    raise ValueError(f"JSON has no {constant}")  # which Python reads all the same


def write_env(values: Mapping[str, Any]) -> str:
    lines: dict[str, str] = {}
    for key, value in values.items():
        name = _ODD.sub("_", key)
        name = f"_{name}" if name[:1].isdigit() else name
        if not name:
            raise BadFile(
                "The key that is the prefix itself has no name left: use YAML or TOML, or a shorter --prefix."
            )
        if name in lines:
            raise BadFile(f"Two keys would be called {name}: export them apart, by --prefix.")
        is_plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_./:@+-]+", value)
        lines[name] = value if is_plain and value_of(value) == value else encode(value).decode()
    return "".join(f"{name}={text}\n" for name, text in lines.items())


def write_toml(values: Mapping[str, Any]) -> str:
    if nulls := [key for key, value in values.items() if has_null(value)]:
        raise BadFile(f"TOML has no null: {', '.join(nulls)}.")
    return tomli_w.dumps(values)


def has_null(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(has_null, value.values() if isinstance(value, dict) else value))
    return value is None


class Loader(yaml.SafeLoader):
    """YAML in which no key is said twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != MERGE]
        if twice := [key for n, key in enumerate(keys) if key in keys[:n]]:
            raise BadFile(f"{twice[0]} is there twice.")
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    return yaml.load(text, Loader)


def write_yaml(values: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(values), allow_unicode=True, sort_keys=True))


READ: dict[str, Any] = {"yaml": read_yaml, "toml": tomllib.loads, "env": read_env}
WRITE: dict[str, Any] = {"yaml": write_yaml, "toml": write_toml, "env": write_env}


# -- what an import would change ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Present:
    """What a key is set to."""

    value: Any
    revision: int
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One change: `+` set, `~` set to something else, `-` unset."""

    sign: str
    key: str
    before: Present | None
    after: Any

    def line(self, secret: bool) -> str:
        """For people; nothing of a secret."""
        if self.sign == "-":
            return f"- {self.key}"
        if secret or (self.before and self.before.secret):
            return f"{self.sign} {self.key}: (secret)"
        was = f"{encode(self.before.value).decode()} -> " if self.before else ""
        return f"{self.sign} {self.key}: {was}{encode(self.after).decode()}"


def steps(present: Mapping[str, Present], wanted: Mapping[str, Any], prune: bool) -> list[Step]:
    """What makes of what is set what is wanted. `prune`: what is not wanted is unset, but for secrets: an export may
    have left them out."""
    found = []
    for key, value in sorted(wanted.items()):
        known = present.get(key)
        if known is None:
            found.append(Step("+", key, None, value))
        elif not same(known.value, value):
            found.append(Step("~", key, known, value))
    gone = [key for key in sorted(present) if key not in wanted and not present[key].secret] if prune else []
    return found + [Step("-", key, present[key], None) for key in gone]


def same(one: Any, other: Any) -> bool:
    """Are they the same JSON? 1 is not true, and 1.0 is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
