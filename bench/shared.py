"""What do 500 readers of one lock reach, beside 500 who each have a lock of their own? Taken and given back."""

from bench.load import errors, in_turn, median, raw, wrk
from bench.report import Figure, at_least
from bench.servers import Syros, folder

needs_wrk = True
CONNECTIONS = 500


def measure(seconds: int, rounds: int) -> list[Figure]:
    with folder() as home, Syros(home) as syros:
        runs = {mode: wrk(syros, "syros_pairs", CONNECTIONS, mode=mode) for mode in ("shared", "exclusive")}
        loads = in_turn(runs, seconds, rounds)
    pairs = {mode: median(found, "rate") / 2 for mode, found in loads.items()}
    measured = {mode: raw(found) for mode, found in loads.items()}
    failed = errors([*loads["shared"], *loads["exclusive"]])
    return [
        Figure("taken and given back, 500 on keys of their own", "a second", pairs["exclusive"], raw=measured),
        Figure("taken and given back, 500 readers of one key", "a second", pairs["shared"]),
        Figure("… of the rate on keys of their own", "%", pairs["shared"] / pairs["exclusive"] * 100, None,
               at_least(50), failed),
    ]  # fmt: skip
