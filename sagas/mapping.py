"""What a step is given: JSON in which `${path}` stands for something that is known by then.

`"${steps.charge.output.id}"` as a whole string gives the value as it is; inside a longer string, its text. `${path ??
default}` has a default, which is JSON; without one a path that leads nowhere is an error. `${= expression}` is CEL
(https://cel.dev), as conditions are. `$${` is a plain `${`. Templates are compiled once and know no code but CEL's.
"""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from types import ModuleType
from typing import Any

import orjson

from core.encoding import encode

# CEL's package loads a command line along that nobody calls here: 16 MB and a fifth of a second in every process.
sys.modules.setdefault("cel.cli", ModuleType("cel.cli"))
import cel  # noqa: E402

Scope = dict[str, Any]
Render = Callable[[Scope], Any]
Part = Callable[[Scope, "Meter"], Any]
ROOTS = ("input", "steps", "saga", "metadata")
MAX_EXPRESSION = 2048  # characters
LARGEST = 1 << 20  # bytes of JSON that a template may give
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')
_PATH = re.compile(r"\s*([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+|\[[0-9]{1,9}\])*)\s*")
# Strings and comments of CEL: nothing in them is code. A raw string knows no escapes.
_QUOTED = re.compile(
    r"""//[^\n]*|(?<!\w)(?:[rR][bB]?|[bB][rR])(?:\"{3}.*?\"{3}|'{3}.*?'{3}|"[^"\n]*"|'[^'\n]*')"""
    r"""|\"{3}(?:\\.|[^\\])*?\"{3}|'{3}(?:\\.|[^\\])*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""",
    re.DOTALL,
)
# What CEL has for lists, and the names that it gives their items.
_MACRO = re.compile(r"\.\s*(all|exists|exists_one|existsOne|map|filter)\s*\(\s*([A-Za-z_]\w*)?")
_ROOT = re.compile(rf"(?<![\w.])(?:{'|'.join(ROOTS)})\b")
_WORD = re.compile(r'(?<![\w.])\w+|""')
FUNCTIONS = frozenset(
    ("size", "contains", "startsWith", "endsWith", "matches", "int", "uint", "double", "string", "bytes", "type", "dyn",
     "duration", "timestamp", "getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear",
     "getHours", "getMinutes", "getSeconds", "getMilliseconds")
)  # fmt: skip
LOOPS = 2  # in an expression: one may be in the other
# CEL copies what it reads, and to a list that it makes it adds one item by copying all of it. An expression cannot be
# stopped either: so how long it may take is told beforehand, from what it sees and how it is written.
SEEN = 25_000  # values that an expression may see: they are handed over one by one
WORK = 1_500_000  # copies of a value that it may make, about 30 ns each
BYTES = 16  # of JSON that take as long as a value
PATTERNS = 4  # uses of `matches`, none of them in a loop: each compiles its pattern, for up to 100 ms
_LOOK = re.compile(rf"(?<![\w.])({'|'.join(ROOTS)})\b((?:\s*\.\s*[A-Za-z_]\w*(?!\w|\s*\())*)")
_INDEX = re.compile(r"""(?<![\w.])steps\s*\[\s*(["'])([A-Za-z0-9_-]+)\1\s*\]""")
_MISSING = object()


class MappingError(Exception):
    """A template that is none, or that found nothing; where (a JSON pointer) and why."""

    def __init__(self, detail: str, pointer: str = "") -> None:
        super().__init__(detail)
        self.detail, self.pointer = detail, pointer


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
    paths: set[tuple[str, ...]] = set()
    expression = _expression(text, paths, "")
    doubts = _doubts(cel.compile(text))

    def render(scope: Scope) -> bool:
        found = expression(scope)
        if not isinstance(found, bool):
            raise MappingError(f"{text} is neither true nor false but {found!r:.80}")
        return found

    return Template(render, frozenset(paths), doubts)


def _doubts(program: cel.Program) -> tuple[str, ...]:
    """Functions that there are not, and a condition that is a value which is neither true nor false."""
    unknown = [
        name
        for name in program.functions()
        if name.isidentifier() and name[0] != "_" and name not in FUNCTIONS
    ]
    if unknown or program.functions() or program.variables():
        return tuple(f"there is no function {name}" for name in unknown)
    is_told = isinstance(program.execute({}), bool)
    return () if is_told else ("it is neither true nor false",)


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


def _expression(text: str, paths: set[tuple[str, ...]], pointer: str) -> Render:
    if len(text) > MAX_EXPRESSION:
        raise MappingError(f"an expression has up to {MAX_EXPRESSION} characters", pointer)
    try:
        program = cel.compile(text)
    except ValueError as error:
        raise MappingError(str(error).partition("\n")[0], pointer) from None
    plain = _QUOTED.sub(_blank, text)
    loops = [name for _, name in _MACRO.findall(plain)]
    if len(loops) > LOOPS:
        raise MappingError(f"an expression has up to {LOOPS} of all, exists, map and filter", pointer)
    names = set(program.variables()) - set(loops)
    for name in names:
        _add(paths, (name,), pointer)
    looks = _looks(plain)
    paths.update(("steps", name) for name in _steps_of(text, plain, looks))
    paths.update(("saga", name) for name in looks.get("saga") or ())
    effort = _effort(plain)

    def render(scope: Scope) -> Any:
        bound = {name: _picked(scope[name], looks.get(name)) for name in names}
        if not effort.allows(bound):
            raise MappingError(f"{text[:200]}: too much for an expression to look at", pointer)
        try:
            return _json(program.execute(bound))
        except Exception as error:  # the library has no one class for what an expression can do wrong
            raise MappingError(f"{text}: {type(error).__name__} {error}"[:300], pointer) from None

    return render


def _blank(found: re.Match[str]) -> str:
    """As long as what it stands for, so that places stay."""
    return ("" if found[0].startswith("//") else '""').ljust(len(found[0]))


Looks = dict[str, Any]  # names and what is looked at below each; None, all of it


def _looks(plain: str) -> Looks:
    """What of the scope an expression names, found in its text: CEL tells only the first name of a path."""
    found: Looks = {}
    for root, rest in _LOOK.findall(plain):
        *way, last = [root, *re.findall(r"\w+", rest)]
        branch: Looks | None = found
        for name in way:
            branch = None if branch is None else branch.setdefault(name, {})
        if branch is not None:
            branch[last] = None
    return found


def _picked(value: Any, looks: Looks | None) -> Any:
    """Nothing but what is looked at: the rest need not be handed over."""
    if looks is None or not isinstance(value, dict):
        return value
    return {name: _picked(value[name], below) for name, below in looks.items() if name in value}


def _steps_of(text: str, plain: str, looks: Looks) -> set[str]:
    """The steps that an expression names, also as `steps["name"]`."""
    named = {found[2] for found in _INDEX.finditer(text) if plain.startswith("steps", found.start())}
    return named.union(looks.get("steps") or ())


@dataclass(frozen=True, slots=True)
class Effort:
    """How long an expression takes at most: so many words are read, for each of the things that it sees or, where loops
    copy lists, for the square of their number or more. `sums`: additions, each of which may copy what is left of it."""

    power: int
    words: int
    sums: int

    def allows(self, bound: Scope) -> bool:
        body = encode(bound)
        size = body.count(b",") + body.count(b"[") + body.count(b"{") + len(body) // BYTES
        return size <= SEEN and ((size + self.words) * (1 + self.sums)) ** self.power * self.words <= WORK


def _effort(plain: str) -> Effort:
    """Parameter: an expression without its strings."""
    words = len(_WORD.findall(plain))
    if len(re.findall(r"\bmatches\b", plain)) > (0 if _MACRO.search(plain) else PATTERNS):
        words = WORK + 1
    return Effort(max(1, _powers(plain)[0]), max(1, words), plain.count("+"))


def _powers(plain: str) -> tuple[int, int]:
    """As which powers of what is seen the time and the length of what comes out grow."""
    time = length = int(bool(_ROOT.search(plain)))
    place = 0
    while found := _MACRO.search(plain, place):
        place = _closing(plain, found.end())
        inner_time, inner_length = _powers(plain[found.end() : place])
        makes_a_list = found[1] in ("map", "filter")
        length = max(length, (inner_length + 1) * makes_a_list)
        time = max(time, 1 + max(inner_time, (inner_length + 1) * makes_a_list))
    return time, length


def _closing(plain: str, start: int) -> int:
    """Where the parenthesis is closed that was open at that place."""
    depth = 1
    for place in range(start, len(plain)):
        depth += (plain[place] == "(") - (plain[place] == ")")
        if not depth:
            return place
    return len(plain)


def _json(value: Any) -> Any:
    """A value that JSON can say.

    Raises: TypeError.
    """
    if isinstance(value, dict):
        return {_name(name): _json(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_json(part) for part in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and isfinite(value)):
        return value
    raise TypeError(f"{value!r:.80} is nothing that JSON can say")


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{name!r:.80} is no name of a member")
    return name


def _add(paths: set[tuple[str, ...]], steps: tuple[str, ...], pointer: str) -> None:
    if steps[0] not in ROOTS:
        raise MappingError(f"{steps[0]} is none of {', '.join(ROOTS)}", pointer)
    paths.add(steps)
