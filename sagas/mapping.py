"""What a step is given: JSON in which `${path}` stands for something that is known by then.

`"${steps.charge.output.id}"` as a whole string gives the value as it is; inside a longer string, its text. `${path ??
default}` has a default, which is JSON; without one a path that leads nowhere is an error. `${= expression}` is CEL
(https://cel.dev), as conditions are. `$${` is a plain `${`. Templates are compiled once and know no code but CEL's.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cel
import orjson

from core.encoding import encode

Scope = dict[str, Any]
Render = Callable[[Scope], Any]
ROOTS = ("input", "steps", "saga", "metadata")
MAX_EXPRESSION = 2048  # characters
_PART = re.compile(r"\$\$\{|\$\{(=?)((?:[^{}\"]|\"(?:[^\"\\]|\\.)*\"|\{[^{}]*\})*)\}")
_PATH = re.compile(r"\s*([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+|\[[0-9]+\])*)\s*")
_MACRO = re.compile(
    r"\.(?:all|exists|exists_one|map|filter)\(\s*([A-Za-z_]\w*)\s*,"
)  # names that CEL gives itself
_MISSING = object()


class MappingError(Exception):
    """A template that is none, or that found nothing; where (a JSON pointer) and why."""

    def __init__(self, detail: str, pointer: str = "") -> None:
        super().__init__(detail)
        self.detail, self.pointer = detail, pointer


@dataclass(frozen=True, slots=True)
class Template:
    """Something that is rendered when its scope is known, and the paths that it looks at."""

    render: Render
    paths: frozenset[tuple[str, ...]]


def compile_template(value: Any) -> Template:
    """Parameter: any JSON.

    Raises: MappingError.
    """
    paths: set[tuple[str, ...]] = set()
    render = _compile(value, paths, "")
    return Template(render, frozenset(paths))


def compile_condition(text: str) -> Template:
    """A CEL expression that says yes or no.

    Raises: MappingError; rendering does too where the answer is neither.
    """
    paths: set[tuple[str, ...]] = set()
    expression = _expression(text, paths, "")

    def render(scope: Scope) -> bool:
        found = expression(scope)
        if not isinstance(found, bool):
            raise MappingError(f"{text} is neither true nor false but {found!r:.80}")
        return found

    return Template(render, frozenset(paths))


def _compile(value: Any, paths: set[tuple[str, ...]], pointer: str) -> Render:
    if isinstance(value, str):
        return _text(value, paths, pointer)
    if isinstance(value, dict):
        members = {name: _compile(each, paths, f"{pointer}/{name}") for name, each in value.items()}
        return lambda scope: {name: render(scope) for name, render in members.items()}
    if isinstance(value, list):
        items = [_compile(each, paths, f"{pointer}/{place}") for place, each in enumerate(value)]
        return lambda scope: [render(scope) for render in items]
    return lambda scope: value


def _text(text: str, paths: set[tuple[str, ...]], pointer: str) -> Render:
    parts = list(_parts(text, paths, pointer))
    if len(parts) == 1:
        return parts[0] if callable(parts[0]) else _constant(parts[0])
    return lambda scope: "".join(_plain(part(scope)) if callable(part) else part for part in parts)


def _constant(text: str) -> Render:
    return lambda scope: text


def _parts(text: str, paths: set[tuple[str, ...]], pointer: str) -> Iterator[Any]:
    """Plain text and what is to be rendered, in turn."""
    place, plain = 0, ""
    for found in _PART.finditer(text):
        plain += _checked(text[place : found.start()], pointer)
        place = found.end()
        if found[0] == "$${":
            plain += "${"
            continue
        if plain:
            yield plain
        plain = ""
        yield (_expression if found[1] else _reference)(found[2], paths, pointer)
    plain += _checked(text[place:], pointer)
    if plain or not text:
        yield plain


def _checked(plain: str, pointer: str) -> str:
    if "${" in plain:
        raise MappingError("a ${ without its }", pointer)
    return plain


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else encode(value).decode()


def _reference(text: str, paths: set[tuple[str, ...]], pointer: str) -> Render:
    path, has_default, default_text = text.partition("??")
    match = _PATH.fullmatch(path)
    if not match:
        raise MappingError(f"{path.strip() or 'nothing'} is no path", pointer)
    steps = tuple(re.split(r"[.\[\]]+", match[1].rstrip("]")))
    _add(paths, steps, pointer)
    default = _default(default_text, pointer) if has_default else _MISSING

    def render(scope: Scope) -> Any:
        found = _follow(scope, steps)
        if found is not _MISSING and not (found is None and has_default):
            return found
        if default is _MISSING:
            raise MappingError(f"there is no {match[1]}", pointer)
        return default

    return render


def _default(text: str, pointer: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise MappingError(f"the default {text.strip() or 'after ??'} is no JSON", pointer) from None


def _follow(scope: Any, steps: tuple[str, ...]) -> Any:
    for step in steps:
        if isinstance(scope, dict):
            scope = scope.get(step, _MISSING)
        elif isinstance(scope, list) and step.isdigit() and int(step) < len(scope):
            scope = scope[int(step)]
        else:
            return _MISSING
    return scope


def _expression(text: str, paths: set[tuple[str, ...]], pointer: str) -> Render:
    if len(text) > MAX_EXPRESSION:
        raise MappingError(f"an expression has up to {MAX_EXPRESSION} characters", pointer)
    try:
        program = cel.compile(text)
    except ValueError as error:
        raise MappingError(str(error).partition("\n")[0], pointer) from None
    names = set(program.variables()) - set(_MACRO.findall(text))
    for name in names:
        _add(paths, (name,), pointer)
    # What an expression says of a step is found in its text: CEL tells only the first name of a path.
    paths.update(("steps", name) for name in re.findall(r"\bsteps\.([A-Za-z0-9_]+)", text))

    def render(scope: Scope) -> Any:
        try:
            return program.execute({name: scope[name] for name in names})
        except Exception as error:  # the library has no one class for what an expression can do wrong
            raise MappingError(f"{text}: {type(error).__name__} {error}"[:300], pointer) from None

    return render


def _add(paths: set[tuple[str, ...]], steps: tuple[str, ...], pointer: str) -> None:
    if steps[0] not in ROOTS:
        raise MappingError(f"{steps[0]} is none of {', '.join(ROOTS)}", pointer)
    paths.add(steps)
