"""How many locks a second? A fresh one per request, on both sides held by a lease that would end by itself."""

from bench.load import errors, in_turn, median, raw, wrk
from bench.report import Figure, at_least
from bench.servers import both

needs_wrk = True
CONNECTIONS = (64, 256)


def measure(seconds: int, rounds: int) -> list[Figure]:
    with both() as (syros, etcd):
        figures = []
        for connections in CONNECTIONS:
            runs = {
                "plain": wrk(syros, "syros_lock", connections),
                "keyed": wrk(syros, "syros_lock", connections, keyed=1),
            }
            if etcd:
                runs["etcd"] = wrk(etcd, "etcd_lock", connections)
            loads = in_turn(runs, seconds, rounds)
            beside = median(loads["etcd"], "rate") if etcd else None
            for kind, limit, title in (
                ("plain", 2.0, f"locks, {connections} connections"),
                ("keyed", 1.0, f"locks, {connections} connections, Idempotency-Key"),
            ):
                target = at_least(limit, times_etcd=True)
                measured = {"syros": raw(loads[kind]), "etcd": raw(loads.get("etcd", []))}
                rate, failed = median(loads[kind], "rate"), errors(loads[kind] + loads.get("etcd", []))
                figures.append(Figure(title, "a second", rate, beside, target, failed, measured))
        return figures
