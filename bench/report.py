"""The figures: beside etcd's, beside what is to be reached, as a table and as a file."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.servers import ROOT

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be reached: so many, or so many times what etcd does."""

    limit: float
    at_least: bool
    times_etcd: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:,g}{' × etcd' if self.times_etcd else ''}"

    def judge(self, value: float) -> str:
        if (value >= self.limit) if self.at_least else (value <= self.limit):
            return "reached"
        return f"missed by {abs(value / self.limit - 1):.0%}"


def at_least(limit: float, *, times_etcd: bool = False) -> Target:
    return Target(limit, True, times_etcd)


def at_most(limit: float, *, times_etcd: bool = False) -> Target:
    return Target(limit, False, times_etcd)


@dataclass(slots=True)
class Figure:
    """One line of the table."""

    name: str
    unit: str
    syros: float
    etcd: float | None = None
    target: Target | None = None
    errors: int = 0  # requests without a good answer: then the figure means nothing
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        return self.syros / self.etcd if self.etcd else None

    @property
    def verdict(self) -> str:
        if self.errors:
            return f"void: {self.errors} errors"
        if self.target is None:
            return ""
        value = self.ratio if self.target.times_etcd else self.syros
        return "no etcd" if value is None else self.target.judge(value)

    def row(self) -> list[str]:
        return [
            f"{self.name} ({self.unit})",
            number(self.syros),
            number(self.etcd),
            f"{self.ratio:.2f}" if self.ratio else "",
            str(self.target or ""),
            self.verdict,
        ]


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def table(figures: Sequence[Figure]) -> str:
    """The figures as a table of text that is Markdown too."""
    rows = [["", "Syros", "etcd", "ratio", "target", ""], *(figure.row() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = [
        "| " + " | ".join(cell.ljust(w) if i in (0, 5) else cell.rjust(w) for i, (cell, w) in line) + " |"
        for line in (list(enumerate(zip(row, widths, strict=True))) for row in rows)
    ]
    lines.insert(
        1, "|" + "|".join("-" * (w + 1) + ("-" if i in (0, 5) else ":") for i, w in enumerate(widths)) + "|"
    )
    return "\n".join(lines)


def write(figures: Sequence[Figure], *, started: datetime, whole: bool, about: dict[str, Any]) -> Path:
    """The figures with everything raw, named after day and commit; a part of them stays out of git."""
    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    path = RESULTS / f"{started:%Y-%m-%d}-{commit}{'' if whole else '.local'}.json"
    found = {
        "date": started.isoformat(timespec="seconds"),
        "commit": commit,
        "modified": bool(git("status", "--porcelain", "--untracked-files=no")),
        **about,
        "seconds_taken": round((datetime.now(UTC) - started).total_seconds()),
        "figures": [
            {
                **asdict(figure),
                "ratio": figure.ratio,
                "target": str(figure.target or ""),
                "verdict": figure.verdict,
            }
            for figure in figures
        ],
    }
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return path


def machine() -> dict[str, Any]:
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "etcd": first_line("etcd", "--version"),
        "load_average": round(os.getloadavg()[0], 2),
    }


def cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def first_line(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.partition("\n")[0]


def git(*arguments: str) -> str:
    if shutil.which("git") is None:
        return ""
    answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""
