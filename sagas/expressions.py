"""Expressions of templates and conditions: CEL (https://cel.dev), and how long one may take.

CEL copies what it reads, and to a list that it makes it adds one item by copying all of it. An expression cannot be
stopped either: so how long it may take is told beforehand, from what it sees and how it is written.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from types import ModuleType
from typing import Any

from core.encoding import encode

# CEL's package loads a command line along that nobody calls here: 16 MB and a fifth of a second in every process.
sys.modules.setdefault("cel.cli", ModuleType("cel.cli"))
import cel  # noqa: E402

Scope = dict[str, Any]
ROOTS = ("input", "steps", "saga", "metadata")
MAX_EXPRESSION = 2048  # characters
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
SEEN = 25_000  # values that an expression may see: they are handed over one by one
WORK = 1_500_000  # copies of a value that it may make, about 30 ns each
BYTES = 16  # of JSON that take as long as a value
PATTERNS = 4  # uses of `matches`, none of them in a loop: each compiles its pattern, for up to 100 ms
_LOOK = re.compile(rf"(?<![\w.])({'|'.join(ROOTS)})\b((?:\s*\.\s*[A-Za-z_]\w*(?!\w|\s*\())*)")
_INDEX = re.compile(r"""(?<![\w.])steps\s*\[\s*(["'])([A-Za-z0-9_-]+)\1\s*\]""")


class MappingError(Exception):
    """A template that is none, or that found nothing; where (a JSON pointer) and why."""

    def __init__(self, detail: str, pointer: str = "") -> None:
        super().__init__(detail)
        self.detail, self.pointer = detail, pointer


class Expression:
    """Something in CEL that is evaluated when its scope is known, and the paths that it looks at.

    Parameters: `pointer`, where it stands, as refusals say.
    Raises: MappingError.
    """

    def __init__(self, text: str, pointer: str = "") -> None:
        self._text, self._pointer = text, pointer
        self._program = self._compiled()
        plain = _QUOTED.sub(_blank, text)
        loops = [name for _, name in _MACRO.findall(plain)]
        if len(loops) > LOOPS:
            raise self._fault(f"an expression has up to {LOOPS} of all, exists, map and filter")
        self._names = set(self._program.variables()) - set(loops)
        if strangers := sorted(self._names.difference(ROOTS)):
            raise self._fault(f"{strangers[0]} is none of {', '.join(ROOTS)}")
        self._looks, self._effort = _looks(plain), _effort(plain)
        self.paths: set[tuple[str, ...]] = {(name,) for name in self._names}
        self.paths |= {("steps", name) for name in _steps_of(text, plain, self._looks)}
        self.paths |= {("saga", name) for name in self._looks.get("saga") or ()}

    def render(self, scope: Scope) -> Any:
        """Raises: MappingError."""
        bound = {name: _picked(scope[name], self._looks.get(name)) for name in self._names}
        if not self._effort.allows(bound):
            raise self._fault(f"{self._text[:200]}: too much for an expression to look at")
        try:
            return _json(self._program.execute(bound))
        except Exception as error:  # the library has no one class for what an expression can do wrong
            raise self._fault(f"{self._text}: {type(error).__name__} {error}"[:300]) from None

    def doubts(self) -> Iterator[str]:
        """Functions that there are not; and that it is a value, which is neither true nor false."""
        functions = self._program.functions()
        for name in functions:
            if name.isidentifier() and name[0] != "_" and name not in FUNCTIONS:
                yield f"there is no function {name}"
        is_value = not functions and not self._program.variables()
        if is_value and not isinstance(self._program.execute({}), bool):
            yield "it is neither true nor false"

    def _compiled(self) -> cel.Program:
        if len(self._text) > MAX_EXPRESSION:
            raise self._fault(f"an expression has up to {MAX_EXPRESSION} characters")
        try:
            return cel.compile(self._text)
        except ValueError as error:
            raise self._fault(str(error).partition("\n")[0]) from None

    def _fault(self, detail: str) -> MappingError:
        return MappingError(detail, self._pointer)


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
