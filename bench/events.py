"""How many events a second? To 1,000 streams in turn; etcd puts to 1,000 keys in turn."""

from bench.load import errors, in_turn, median, raw, wrk
from bench.report import Figure, at_least
from bench.servers import both

needs_wrk = True
CONNECTIONS, BATCH = 64, 100


def measure(seconds: int, rounds: int) -> list[Figure]:
    with both() as (syros, etcd):
        runs = {
            "single": wrk(syros, "syros_append", CONNECTIONS, events=1),
            "batch": wrk(syros, "syros_append", CONNECTIONS, events=BATCH),
        }
        if etcd:
            runs["etcd"] = wrk(etcd, "etcd_put", CONNECTIONS)
        loads = in_turn(runs, seconds, rounds)
    puts = loads.get("etcd", [])
    return [
        Figure(
            f"events one by one, {CONNECTIONS} connections", "a second",
            median(loads["single"], "rate"), median(puts, "rate") if etcd else None,
            at_least(0.8, times_etcd=True), errors(loads["single"] + puts),
            {"syros": raw(loads["single"]), "etcd": raw(puts)},
        ),
        Figure(
            f"events in batches of {BATCH}, {CONNECTIONS} connections", "a second",
            median(loads["batch"], "rate") * BATCH, None,
            at_least(20_000), errors(loads["batch"]), {"syros": raw(loads["batch"])},
        ),
    ]  # fmt: skip
