"""How long does one client wait for a free lock, when nobody else asks?"""

from bench.load import errors, in_turn, median, raw, wrk
from bench.report import Figure, at_most
from bench.servers import both

needs_wrk = True


def measure(seconds: int, rounds: int) -> list[Figure]:
    with both() as (syros, etcd):
        runs = {"syros": wrk(syros, "syros_lock", 1)}
        if etcd:
            runs["etcd"] = wrk(etcd, "etcd_lock", 1)
        loads = in_turn(runs, seconds, rounds)
    beside = loads.get("etcd", [])
    measured = {"syros": raw(loads["syros"]), "etcd": raw(beside)}
    failed = errors(loads["syros"] + beside)
    return [
        Figure(
            f"lock, one idle client, p{percent}", "ms", median(loads["syros"], f"p{percent}_ms"),
            median(beside, f"p{percent}_ms") if etcd else None, target, failed, measured if percent == 50 else {},
        )
        for percent, target in ((50, at_most(1.5, times_etcd=True)), (99, None))
    ]  # fmt: skip
