"""What a saga did and when, as bars in lanes: one of the saga, one of each step, one of each compensation."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate, pairwise
from typing import Any

from core.console import Panel
from sagas.admin.facts import Fact
from sagas.admin.words import length
from sagas.rules import FINAL

LANES = 100
# What begins, by what was said. Of what was begun, what is said next tells how it ended.
BEGUN = {"dispatched": "calling", "verifying": "calling", "queued": "queued", "accepted": "accepted",
         "waiting": "waiting", "ongoing": "backoff", "deferred": "backoff"}  # fmt: skip
ENDED = {"succeeded": "succeeded", "failed": "failed", "stuck": "failed", "unknown": "unknown",
         "skipped": "skipped"}  # fmt: skip
AWAITED = ("calling", "queued")  # looks in the end like what it came to
AGAIN = (
    "dispatched",
    "verifying",
    "queued",
)  # said while a call is under way: nobody heard what came of that
STOPPED = ("queued", "waiting", "backoff")  # what a saga that turns back drops without a word
MARKS = {"succeeded": "✓", "failed": "✗", "unknown": "?", "lost": "?", "skipped": "–"}
ASIDE = ("late_result", "events_failed", "retried")  # nothing begins or ends with it
LEGEND = [
    ("succeeded", "done"), ("failed", "failed"), ("unknown", "nobody knows"), ("calling", "under way"),
    ("waiting", "waits"), ("compensation succeeded", "taken back"),
]  # fmt: skip


@dataclass
class Bar:
    """From when to when, in Unix seconds. `kind` is how it looks."""

    kind: str
    start: float
    end: float
    text: str
    title: str
    style: str = ""


@dataclass
class Lane:
    """One line of bars. `kind`: saga, step or compensation."""

    name: str
    kind: str
    bars: list[Bar] = field(default_factory=list)
    _open: tuple[str, float, str] | None = None  # kind, since when, what is said of it

    def hear(self, fact: Fact) -> None:
        if fact.what in ASIDE:
            return
        at, ending = fact.at.timestamp(), ENDED.get(fact.what, "")
        if self._open and self._open[0] in AWAITED:
            is_lost = self._open[0] == "calling" and fact.what in AGAIN
            self.close(at, "lost" if is_lost else ending, f" → {about(fact)}")
        else:
            self.close(at)
            self.bars += [Bar(ending, at, at, "", about(fact))] if ending else []
        begun = "backoff" if fact.retry_at else BEGUN.get(fact.what)
        if begun:
            self.begin(begun, at, about(fact))

    def begin(self, kind: str, at: float, title: str) -> None:
        self._open = kind, at, title

    def close(self, at: float, kind: str = "", more: str = "") -> None:
        """End what is open: as it is, or as what became of it."""
        if self._open:
            begun, since, title = self._open
            told = f"{title}{more}, {length(at - since)}"
            self.bars.append(Bar(kind or begun, since, at, MARKS.get(kind, ""), told))
            self._open = None

    def stop(self, at: float) -> None:
        if self._open and self._open[0] in STOPPED:
            self.close(at)


def about(fact: Fact) -> str:
    attempt = f" (attempt {fact.attempt})" if fact.attempt else ""
    return f"{fact.what.replace('_', ' ')}{attempt}{f': {fact.said}' if fact.said else ''}"


class SagaLane(Lane):
    """The states of the saga itself."""

    _before = "running"

    def hear(self, fact: Fact) -> None:
        begun = self._begun(fact.what)
        if begun or fact.what in FINAL:
            if self._open and self._open[0] not in ("paused", "attention"):
                self._before = self._open[0]
            self.close(fact.at.timestamp())
        if begun:
            self.begin(begun, fact.at.timestamp(), begun)

    def _begun(self, what: str) -> str:
        if what in ("resumed", "retried") or what.startswith("step_"):
            return self._before
        return {"started": "running"}.get(
            what, what if what in ("scheduled", "paused", "compensating", "attention") else ""
        )

    def is_now(self, status: str) -> None:
        """What is open is what the saga is, whatever could be told from the log."""
        if self._open:
            self._open = status, self._open[1], status


@dataclass
class Timeline(Panel):
    """A panel with lanes in place of rows."""

    template: str = "admin/timeline.html"
    lanes: list[Lane] = field(default_factory=list)
    ticks: list[dict[str, str]] = field(default_factory=list)
    breaks: list[dict[str, str]] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=lambda: LEGEND)


def timeline(saga: Any, steps: Iterable[str], facts: list[Fact]) -> Timeline:
    """Parameters: `steps`, all that the saga has, in order."""
    if not facts:
        return Timeline("Timeline", [], empty="None that the log still tells of.")
    until = max(saga.finished_at or saga.now, facts[-1].at)
    lanes = list(lanes_of(saga, steps, facts, until.timestamp()))
    scale = Scale([*(fact.at.timestamp() for fact in facts), until.timestamp()])
    for lane in lanes:
        for bar in lane.bars:
            bar.style = scale.style(bar.start, bar.end)
    return Timeline(
        "Timeline", [], note=note(saga, facts, until, len(lanes)), lanes=lanes[:LANES], ticks=scale.ticks(),
        breaks=scale.breaks(),
    )  # fmt: skip


def note(saga: Any, facts: list[Fact], until: datetime, count: int) -> str:
    """What the picture shows, and what it leaves out."""
    parts = [f"From {facts[0].at:%Y-%m-%d %H:%M:%S} UTC, {length((until - facts[0].at).total_seconds())}."]
    if facts[0].version > 1:
        parts.append(f"Only what the last {len(facts)} events tell.")
    if count > LANES:
        parts.append(f"The first {LANES} of {count} lanes.")
    if saga.finished_at is None:
        parts.append(f"As of {until:%H:%M:%S}.")
    return " ".join(parts)


def lanes_of(saga: Any, steps: Iterable[str], facts: list[Fact], until: float) -> Iterator[Lane]:
    """The saga's, those of its steps, and those of the compensations that there were, in their order."""
    whole, actions = SagaLane("saga", "saga"), {name: Lane(name, "step") for name in steps}
    undoings: dict[str, Lane] = {}
    for fact in facts:
        if fact.kind == "saga":
            whole.hear(fact)
            if fact.what == "compensating" or fact.what in FINAL:
                for lane in actions.values():
                    lane.stop(fact.at.timestamp())
        elif fact.kind == "compensation":
            undoings.setdefault(fact.step, Lane(fact.step, "compensation")).hear(fact)
        elif fact.step in actions:
            actions[fact.step].hear(fact)
    if saga.finished_at is None:
        whole.is_now(saga.status)
    for lane in (whole, *actions.values(), *undoings.values()):
        lane.close(until)
        yield lane


class Scale:
    """Where an instant stands, from 0 to 100. A pause that is longer than twice all else, as of a saga that sleeps for
    a month or waits for a human, is drawn as long as half of all else: of what happened one would see nothing."""

    def __init__(self, instants: Sequence[float]) -> None:
        self._at = sorted(set(instants))
        gaps = [after - before for before, after in pairwise(self._at)]
        longest = sorted(range(len(gaps)), key=gaps.__getitem__, reverse=True)
        rest = sum(gaps)
        self._cut: list[int] = []
        for place in longest:
            if gaps[place] <= 2 * (rest - gaps[place]) or place == longest[-1]:
                break
            rest -= gaps[place]
            self._cut.append(place)
        drawn = [rest / 2 if place in self._cut else gap for place, gap in enumerate(gaps)]
        whole = sum(drawn) or 1.0
        self._places = [100 * place / whole for place in accumulate(drawn, initial=0.0)]

    def place(self, instant: float) -> float:
        return between(instant, self._at, self._places)

    def style(self, start: float, end: float) -> str:
        """Of a bar. The shortest is still seen, also at the very end."""
        left, width = self.place(start), self.place(end) - self.place(start)
        return f"left: min({left:.3f}%, calc(100% - 4px)); width: max({width:.3f}%, 4px)"

    def ticks(self) -> list[dict[str, str]]:
        places = [25.0 * part for part in range(5)]
        instants = [between(place, self._places, self._at) for place in places]
        return [
            {"left": f"{place:.0f}%", "text": length(instant - self._at[0])}
            for place, instant in zip(places, instants, strict=True)
        ]

    def breaks(self) -> list[dict[str, str]]:
        """What is drawn shorter than it was."""
        return [
            {"style": self.style(*self._at[place : place + 2]),
             "title": f"{length(self._at[place + 1] - self._at[place])}, drawn shorter"}
            for place in sorted(self._cut)
        ]  # fmt: skip


def between(value: float, known: Sequence[float], meant: Sequence[float]) -> float:
    """What a value means, between those of which that is known."""
    place = min(max(bisect_right(known, value), 1), len(known) - 1)
    if place < 1 or known[place] == known[place - 1]:
        return meant[0]
    part = (value - known[place - 1]) / (known[place] - known[place - 1])
    return meant[place - 1] + min(max(part, 0.0), 1.0) * (meant[place] - meant[place - 1])
