"""python -m bench: ask all the questions, or those that are named."""

import argparse
import shutil
import signal
import sys
from datetime import UTC, datetime
from types import ModuleType

from bench import (
    cache,
    config,
    crowds,
    discovery,
    engine,
    events,
    graphql,
    grpc,
    handoff,
    latency,
    locks,
    many,
    memory,
    queues,
    report,
    sagas,
    sessions,
    shared,
    volatile,
    websocket,
)
from bench.load import has_wrk
from bench.servers import ROOT

# What is asked of an idle machine comes first.
QUESTIONS: dict[str, ModuleType] = {
    "latency": latency,
    "handoff": handoff,
    "engine": engine,
    "locks": locks,
    "queues": queues,
    "sessions": sessions,
    "many": many,
    "shared": shared,
    "volatile": volatile,
    "cache": cache,
    "sagas": sagas,
    "crowds": crowds,
    "discovery": discovery,
    "events": events,
    "config": config,
    "graphql": graphql,
    "grpc": grpc,
    "websocket": websocket,
    "memory": memory,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Syros, beside etcd.")
    parser.add_argument("names", nargs="*", metavar="question", help=", ".join(QUESTIONS))
    parser.add_argument("--seconds", type=int, default=3, help="length of one run of a load (3)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each load, in turn (3)")
    found = parser.parse_args()
    if unknown := set(found.names) - set(QUESTIONS):
        parser.error(f"no such question: {', '.join(sorted(unknown))}")
    return found


def ask(names: list[str], seconds: int, rounds: int) -> list[report.Figure]:
    figures: list[report.Figure] = []
    for name in names:
        question = QUESTIONS[name]
        if question.needs_wrk and not has_wrk:
            print(f"{name}: skipped, wrk is not installed")
            continue
        print(f"{name}: {(question.__doc__ or '').splitlines()[0]}", flush=True)
        figures += question.measure(seconds, rounds)
    return figures


def main() -> None:
    options = arguments()
    # Ended from outside, this process still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started, names = datetime.now(UTC), options.names or list(QUESTIONS)
    about = {"machine": report.machine(), "options": vars(options)}
    if shutil.which("etcd") is None:
        print("etcd is not installed (Debian: etcd-server): its side is skipped")
    try:
        figures = ask(names, options.seconds, options.rounds)
    except KeyboardInterrupt:
        sys.exit("\nstopped; everything is cleaned up")
    whole = not options.names and (options.seconds, options.rounds) >= (3, 3)
    path = report.write(figures, started=started, whole=whole, about=about)
    print(f"\n{report.table(figures)}\n\n{path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
