"""How many times a second can eight locks be taken at once? Fresh ones per request, which end by themselves."""

from bench.load import errors, in_turn, median, raw, wrk
from bench.report import Figure, at_least
from bench.servers import Syros, folder

needs_wrk = True
CONNECTIONS = 64


def measure(seconds: int, rounds: int) -> list[Figure]:
    with folder() as home, Syros(home) as syros:
        loads = in_turn({"many": wrk(syros, "syros_many", CONNECTIONS)}, seconds, rounds)["many"]
    rate = median(loads, "rate")
    return [
        Figure("acquire-many of 8 keys, 64 connections", "a second", rate, None, at_least(800), errors(loads),
               {"loads": raw(loads)}),
        Figure("… p99", "ms", median(loads, "p99_ms")),
    ]  # fmt: skip
