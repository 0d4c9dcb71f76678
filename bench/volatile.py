"""What do locks cost that live in Valkey, beside durable ones? Both in the same Syros, in turn."""

from bench.load import errors, in_turn, median, raw, wrk
from bench.report import Figure, at_least, at_most
from bench.servers import Syros, folder

needs_wrk = True
CONNECTIONS = 256
SPACE = "bench-volatile"


def measure(seconds: int, rounds: int) -> list[Figure]:
    with folder() as home, Syros(home) as syros:
        keys = {"durable": syros.api_key, "volatile": key_of(syros)}
        many, one = (
            in_turn({kind: wrk(syros, "syros_lock", connections, api_key=key) for kind, key in keys.items()},
                    seconds, rounds)
            for connections in (CONNECTIONS, 1)
        )  # fmt: skip
    failed = errors([load for loads in (*many.values(), *one.values()) for load in loads])
    rates = {kind: median(loads, "rate") for kind, loads in many.items()}
    p50s = {kind: median(loads, "p50_ms") for kind, loads in one.items()}
    about = {
        name: {kind: raw(loads) for kind, loads in found.items()}
        for name, found in (("many", many), ("one", one))
    }
    return [
        Figure(f"volatile locks, {CONNECTIONS} connections", "a second", rates["volatile"], None, None, failed, about),
        Figure("… times durable ones", "ratio", rates["volatile"] / rates["durable"], None, at_least(1.3), failed),
        Figure("volatile lock, one client, p50", "ms", p50s["volatile"], None, None, failed),
        Figure("… times a durable one's", "ratio", p50s["volatile"] / p50s["durable"], None, at_most(0.5), failed),
    ]  # fmt: skip


def key_of(syros: Syros) -> str:
    """An API key of a namespace whose locks are volatile."""
    syros.post(f"/api/v1/namespaces/{SPACE}", {"locks": "volatile"}, method="PUT")
    key: str = syros.post("/api/v1/auth/api-keys", {"name": "bench"}, namespace=SPACE)["key"]
    return key
