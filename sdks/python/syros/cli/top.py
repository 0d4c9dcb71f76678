"""`syros top`: what goes on, from /health, the contended locks and the head of the log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from syros.cli import output
from syros.client import Client, Refused, SyrosError

if TYPE_CHECKING:
    from rich.console import RenderableType

LOCKS = 20  # contended ones that are shown


@dataclass
class Sample:
    """What was found at an instant; `trouble` is why not all of it."""

    at: float
    health: dict[str, Any]
    head: int | None = None
    locks: list[dict[str, Any]] | None = None
    trouble: SyrosError | None = None

    @property
    def commands(self) -> int | None:
        found = self.health.get("parts", {}).get("engine", {}).get("commands")
        return int(found) if found is not None else None


class Watch:
    """Looks again and again, and draws what it found."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._last: Sample | None = None
        self._head = 0

    @property
    def trouble(self) -> SyrosError | None:
        """Why the last frame is not complete."""
        return self._last.trouble if self._last else None

    def frames(self, every: float) -> Iterator[RenderableType]:
        """A frame after every so many seconds, without end."""
        while True:
            yield self.frame()
            time.sleep(every)

    def frame(self) -> RenderableType:
        """The next frame."""
        sample = self._look()
        drawn = self._draw(sample, self._last)
        self._last = sample
        return drawn

    def _look(self) -> Sample:
        sample = Sample(time.monotonic(), {})
        try:
            sample.health = self._client.health()
            found = self._client.call("locks.find", {"contended": True, "limit": LOCKS}, pauses=())
            sample.locks = found["items"]
            sample.head = self._find_head()
        except SyrosError as error:
            sample.trouble = error
        return sample

    def _find_head(self) -> int:
        """The last position of the log: what was the last one when it was looked at before is where to look from."""
        try:
            params = {"from_position": self._head + 1, "limit": 1}
            found = self._client.call("events.read_all", params, pauses=())
        except Refused as refusal:
            if refusal.code not in {"position_ahead", "position_pruned"}:
                raise
            found = {"head": refusal.problem.get("head", refusal.problem.get("floor"))}
        self._head = int(found["head"])
        return self._head

    def _draw(self, sample: Sample, before: Sample | None) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        status = sample.health.get("status", "away")
        namespace = f"  namespace {self._client.namespace}" if self._client.namespace else ""
        title = f"{self._client.url}  Syros {sample.health.get('version', '?')}  {status}{namespace}"
        parts: list[RenderableType] = [Text(title, style="bold")]
        if sample.trouble:
            parts.append(Text(str(sample.trouble), style="red"))
        if found := sample.health.get("parts"):
            parts += [Text(), output.table([part(name, each) for name, each in found.items()])]
        if sample.head is not None:
            parts += [Text(), Text(speeds(sample, before))]
        if sample.locks is not None:
            parts += [Text(), Text("contended locks", style="bold")]
            parts.append(
                output.table([short(each) for each in sample.locks]) if sample.locks else Text("none")
            )
        return Group(*parts)


def part(name: str, report: dict[str, Any]) -> dict[str, Any]:
    """A part of the server as a row: what only this one reports comes last, in one cell."""
    report = dict(report)
    row = {"part": name, "status": report.pop("status", "?"), "ms": report.pop("latency_ms", None)}
    return {**row, "about": "  ".join(f"{key} {output.text(value)}" for key, value in report.items())}


def short(lock: dict[str, Any]) -> dict[str, Any]:
    return {name: lock[name] for name in ("key", "holders", "queue_length", "last_token")}


def speeds(sample: Sample, before: Sample | None) -> str:
    """Events of the namespace, and commands of the process that answers, a second."""
    head = f"log head {sample.head}"
    if before is None or before.head is None or sample.head is None or sample.at <= before.at:
        return head
    seconds = sample.at - before.at
    found = f"{head}  {(sample.head - before.head) / seconds:.1f} events/s"
    if sample.commands is not None and before.commands is not None and sample.commands >= before.commands:
        found += f"  {(sample.commands - before.commands) / seconds:.1f} commands/s in this process"
    return found
