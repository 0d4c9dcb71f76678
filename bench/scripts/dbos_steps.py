"""The peer of `bench/sagas.py`: workflows of three HTTP steps in DBOS, so many at a time. Prints steps a second.

Usage: dbos_steps.py DATABASE_URL PARTICIPANT_URL SECONDS CONCURRENCY. Needs `dbos` and `httpx`, which Syros does not.
"""

import asyncio
import sys
import time

import httpx
from dbos import DBOS, DBOSConfig

URL, PARTICIPANT, SECONDS, CONCURRENCY = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
client = httpx.AsyncClient(base_url=PARTICIPANT, limits=httpx.Limits(max_connections=CONCURRENCY))


@DBOS.step()
async def step(name: str) -> object:
    return (await client.post("/do", json={"step": name})).json()


@DBOS.workflow()
async def order() -> object:
    await step("s0")
    await step("s1")
    return await step("s2")


async def main() -> None:
    until, done = time.perf_counter() + SECONDS, 0

    async def one() -> None:
        nonlocal done
        while time.perf_counter() < until:
            await order()
            done += 3

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(CONCURRENCY)))
    print(done / (time.perf_counter() - begun))


config: DBOSConfig = {"name": "bench", "system_database_url": URL, "log_level": "ERROR"}
DBOS(config=config)
DBOS.launch()
asyncio.run(main())
DBOS.destroy()
