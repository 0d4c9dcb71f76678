"""What a step is given: JSON in which `${path}` stands for something that is known by then.

`"${steps.charge.output.id}"` as a whole string gives the value as it is; inside a longer string, its text. `${path ??
default}` has a default, which is JSON; without one a path that leads nowhere is an error. `${= expression}` is CEL
(https://cel.dev), as conditions are. `$${` is a plain `${`. Templates are compiled once and know no code but CEL's.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from core.encoding import encode
from sagas.expressions import ROOTS, Expression, MappingError, Scope

Render = Callable[[Scope], Any]
Part = Callable[[Scope, "Meter"], Any]
LARGEST = 1 << 20  # bytes of JSON that a template may give
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')
_PATH = re.compile(r"\s*([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+|\[[0-9]{1,9}\])*)\s*")
_MISSING = object()


class TooLarge(MappingError):
    """What a template gives is larger than what may be kept."""

    def __init__(self) -> None:
        super().__init__(f"what the template gives is larger than {LARGEST} bytes of JSON")


@dataclass(frozen=True, slots=True)
class Template:
    """Something that is rendered when its scope is known, and the paths that it looks at."""

    render: Render
    paths: frozenset[tuple[str, ...]]
    doubts: tuple[str, ...] = ()  # what is compiled, and will never do


def compile_template(value: Any) -> Template:
    """Parameter: any JSON.

    Raises: MappingError.
    """
    paths: set[tuple[str, ...]] = set()
    compiled, written = _compile(value, paths, ""), len(encode(value))

    def render(scope: Scope) -> Any:
        meter = Meter()
        found = compiled(scope, meter)
        if meter.size + written > LARGEST and len(encode(found)) > LARGEST:
            raise TooLarge
        return found

    return Template(render, frozenset(paths))


def compile_condition(text: str) -> Template:
    """A CEL expression that says yes or no.

    Raises: MappingError; rendering does too where the answer is neither.
    """
    expression = Expression(text)

    def render(scope: Scope) -> bool:
        found = expression.render(scope)
        if not isinstance(found, bool):
            raise MappingError(f"{text} is neither true nor false but {found!r:.80}")
        return found

    return Template(render, frozenset(expression.paths), tuple(expression.doubts()))


class Meter:
    """How large what was put into a template is so far: known before it is all put together."""

    def __init__(self) -> None:
        self.size = 0

    def measured(self, value: Any) -> Any:
        """Raises: TooLarge."""
        self.size += len(encode(value))
        if self.size > LARGEST:
            raise TooLarge
        return value


def _compile(value: Any, paths: set[tuple[str, ...]], pointer: str) -> Part:
    if isinstance(value, str):
        return _text(value, paths, pointer)
    if isinstance(value, dict):
        members = {name: _compile(each, paths, f"{pointer}/{name}") for name, each in value.items()}
        return lambda scope, meter: {name: render(scope, meter) for name, render in members.items()}
    if isinstance(value, list):
        items = [_compile(each, paths, f"{pointer}/{place}") for place, each in enumerate(value)]
        return lambda scope, meter: [render(scope, meter) for render in items]
    return lambda scope, meter: value


def _text(text: str, paths: set[tuple[str, ...]], pointer: str) -> Part:
    parts = list(_parts(text, paths, pointer))
    if len(parts) == 1:
        return _whole(parts[0]) if callable(parts[0]) else _constant(parts[0])

    def render(scope: Scope, meter: Meter) -> str:
        return "".join(meter.measured(_plain(part(scope))) if callable(part) else part for part in parts)

    return render


def _constant(text: str) -> Part:
    return lambda scope, meter: text


def _whole(render: Render) -> Part:
    return lambda scope, meter: meter.measured(render(scope))


def _parts(text: str, paths: set[tuple[str, ...]], pointer: str) -> Iterator[Any]:
    """Plain text and what is to be rendered, in turn."""
    place, plain = 0, ""
    while (start := text.find("${", place)) >= 0:
        plain += text[place:start]
        if plain.endswith("$"):  # `$${`
            plain, place = plain[:-1] + "${", start + 2
            continue
        end = _end_of(text, start + 2, pointer)
        if plain:
            yield plain
        inside, plain, place = text[start + 2 : end], "", end + 1
        is_expression = inside.startswith("=")
        yield (_expression if is_expression else _reference)(inside[is_expression:], paths, pointer)
    plain += text[place:]
    if plain or not text:
        yield plain


def _end_of(text: str, start: int, pointer: str) -> int:
    """Where the brace is that closes what begins here: others may be inside, in pairs or in strings."""
    depth, place = 0, start
    while place < len(text):
        letter = text[place]
        if letter in "\"'":
            if (found := _STRING.match(text, place)) is None:
                break  # a string without an end: it is not looked for again from the next one on
            place = found.end()
            continue
        if letter == "}" and not depth:
            return place
        depth += (letter == "{") - (letter == "}")
        place += 1
    raise MappingError("a ${ without its }", pointer)


def _expression(text: str, paths: set[tuple[str, ...]], pointer: str) -> Render:
    expression = Expression(text, pointer)
    paths.update(expression.paths)
    return expression.render


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
        elif isinstance(scope, list) and step.isdecimal() and len(step) < 10 and int(step) < len(scope):
            scope = scope[int(step)]
        else:
            return _MISSING
    return scope


def _add(paths: set[tuple[str, ...]], steps: tuple[str, ...], pointer: str) -> None:
    if steps[0] not in ROOTS:
        raise MappingError(f"{steps[0]} is none of {', '.join(ROOTS)}", pointer)
    paths.add(steps)
