"""How many locks a second through GraphQL? A fresh one per request, beside the same over REST."""

from bench.load import errors, in_turn, median, raw, wrk
from bench.report import Figure, at_least
from bench.servers import Syros, folder

needs_wrk = True
CONNECTIONS = 64


def measure(seconds: int, rounds: int) -> list[Figure]:
    with folder() as home, Syros(home) as syros:
        runs = {
            "graphql": wrk(syros, "graphql_lock", CONNECTIONS),
            "rest": wrk(syros, "syros_lock", CONNECTIONS),
        }
        loads = in_turn(runs, seconds, rounds)
    figures = []
    for name, target in (("graphql", at_least(500)), ("rest", None)):
        title = f"locks over {name}, {CONNECTIONS} connections"
        rate, failed = median(loads[name], "rate"), errors(loads[name])
        figures.append(Figure(title, "a second", rate, None, target, failed, {"syros": raw(loads[name])}))
    return figures
