"""How fast is configuration? Puts and gets of 1,000 keys in turn, beside gets of locks; etcd puts and gets as many."""

from bench.load import errors, in_turn, median, raw, wrk
from bench.report import Figure, at_least
from bench.servers import both

needs_wrk = True
CONNECTIONS = 64


def measure(seconds: int, rounds: int) -> list[Figure]:
    with both() as (syros, etcd):
        runs = {
            "put": wrk(syros, "syros_config", CONNECTIONS, action="put"),
            "get": wrk(syros, "syros_config", CONNECTIONS, action="get"),
            "read": wrk(syros, "syros_config", CONNECTIONS, action="read"),
        }
        if etcd:
            runs["etcd put"] = wrk(etcd, "etcd_put", CONNECTIONS)
            runs["etcd get"] = wrk(etcd, "etcd_get", CONNECTIONS)
        loads = in_turn(runs, seconds, rounds)
    beside = median(loads["read"], "rate")
    return [
        Figure(
            f"config {action}, {CONNECTIONS} connections", "a second", median(loads[action], "rate"),
            median(loads[f"etcd {action}"], "rate") if etcd else None, target, errors(loads[action]),
            {"syros": raw(loads[action]), "etcd": raw(loads.get(f"etcd {action}", []))},
        )
        for action, target in (("put", None), ("get", at_least(beside)))
    ]  # fmt: skip
