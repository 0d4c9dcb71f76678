"""What a saga did and when, drawn as bars in lanes: one of the saga, one of each side of a step."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import Any

from core.console import Panel
from sagas import timeline
from sagas.admin.facts import fetched_of
from sagas.admin.words import length
from sagas.facts import Fact
from sagas.timeline import Told
from sagas.types import TimelineAttempt, TimelineLane, TimelineState, TimelineWait

LANES = 100
# How an attempt looks by what came of it; one under way, calling.
ATTEMPTS = {
    "succeeded": "succeeded", "applied": "succeeded", "failed": "failed", "not_applied": "failed",
    "refused": "failed", "misconfigured": "failed", "ongoing": "calling", "lost": "lost",
}  # fmt: skip
WAITS = {
    "retry": "backoff",
    "ongoing": "backoff",
    "deferred": "backoff",
    "worker": "queued",
    "answer": "accepted",
}
SIDES = {"action": "step", "compensation": "compensation", "verify": "verify"}
MARKS = {"succeeded": "✓", "failed": "✗", "unknown": "?", "lost": "?", "skipped": "–"}
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
    """One line of bars. `kind`: saga, step, verify or compensation."""

    name: str
    kind: str
    bars: list[Bar]


@dataclass
class Timeline(Panel):
    """A panel with lanes in place of rows."""

    template: str = "admin/timeline.html"
    lanes: list[Lane] = field(default_factory=list)
    ticks: list[dict[str, str]] = field(default_factory=list)
    breaks: list[dict[str, str]] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=lambda: LEGEND)


def timeline_panel(saga: Any, steps: Iterable[str], facts: list[Fact]) -> Timeline:
    """Parameters: `steps`, all that the saga has, in order."""
    if not facts:
        return Timeline("Timeline", [], empty="None that the log still tells of.")
    until = max(saga.finished_at or saga.now, facts[-1].at)
    told = timeline.told(steps, saga.status, facts, fetched_of(saga))
    lanes = list(lanes_of(told, until.timestamp()))
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


def lanes_of(told: Told, until: float) -> Iterator[Lane]:
    yield Lane("saga", "saga", [state_bar(state, until) for state in told.states])
    for lane in told.lanes:
        waits = (wait_bar(wait, until) for wait in lane.waits)
        attempts = (attempt_bar(attempt, until) for attempt in lane.attempts)
        bars = sorted([*attempts, *waits, *ends_of(lane)], key=attrgetter("start"))
        yield Lane(lane.step, SIDES[lane.side], bars)


def state_bar(state: TimelineState, until: float) -> Bar:
    start, end = state.started_at.timestamp(), ended(state.finished_at, until)
    return Bar(state.status, start, end, "", f"{state.status}, {length(end - start)}")


def attempt_bar(attempt: TimelineAttempt, until: float) -> Bar:
    start, end = attempt.started_at.timestamp(), ended(attempt.finished_at, until)
    kind = ATTEMPTS.get(attempt.outcome, "unknown") if attempt.outcome else "calling"
    why = ": ".join(part for part in (attempt.code, attempt.message) if part)
    came = (
        f" → {(attempt.outcome or '').replace('_', ' ')}{f': {why}' if why else ''}"
        if attempt.outcome
        else ""
    )
    about = f"{'called' if attempt.by == 'push' else 'with a worker'} (attempt {attempt.attempt}){came}"
    return Bar(kind, start, end, MARKS.get(kind, ""), f"{about}, {length(end - start)}")


def wait_bar(wait: TimelineWait, until: float) -> Bar:
    start, end = wait.started_at.timestamp(), ended(wait.finished_at, until)
    about = f"waits for {wait.reason}{f' {wait.about}' if wait.about else ''}"
    until_when = f" until {wait.until:%Y-%m-%d %H:%M:%S}" if wait.until else ""
    return Bar(
        WAITS.get(wait.reason, "waiting"), start, end, "", f"{about}{until_when}, {length(end - start)}"
    )


def ends_of(lane: TimelineLane) -> Iterator[Bar]:
    """A mark where a side ended that was not called: after a sleep, by an operator."""
    if lane.finished_at is None or any(each.finished_at == lane.finished_at for each in lane.attempts):
        return
    at, kind = lane.finished_at.timestamp(), lane.outcome or ""
    kind = "failed" if kind == "stuck" else kind
    why = ": ".join(part for part in (lane.code, lane.message) if part)
    yield Bar(kind, at, at, "", f"{lane.outcome}{f': {why}' if why else ''}")


def ended(at: datetime | None, until: float) -> float:
    return until if at is None else at.timestamp()


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
