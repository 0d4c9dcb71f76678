"""The peer of `bench/cache.py`: cashews, in process, on the same Redis. Prints puts a second with a tag, then the
milliseconds in which that tag of so many values was deleted.

Usage: cashews_tags.py REDIS_URL SECONDS CONCURRENCY VALUES. Needs `cashews[redis]`, which Syros does not.
"""

import asyncio
import sys
import time

from cashews import cache
from cashews.backends.redis import Redis
from cashews.picklers import PicklerType
from cashews.wrapper.backend_settings import register_backend

URL, SECONDS, CONCURRENCY, VALUES = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
VALUE = {"text": "x" * 200}


async def puts() -> float:
    until, done = time.perf_counter() + SECONDS, 0

    async def one(number: int) -> None:
        nonlocal done
        while time.perf_counter() < until:
            done += 1
            await cache.set(f"bench:{(number + done) % 1000}", VALUE, expire=3600, tags=["all"])

    begun = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(CONCURRENCY)))
    return done / (time.perf_counter() - begun)


async def invalidation() -> float:
    for start in range(0, VALUES, 500):
        await asyncio.gather(
            *(cache.set(f"m:{start + n}", n, expire=3600, tags=["many"]) for n in range(500))
        )
    begun = time.perf_counter()
    await cache.delete_tags("many")
    return (time.perf_counter() - begun) * 1000


async def main() -> None:
    register_backend("unix", Redis, pass_uri=True, pickler=PicklerType.DEFAULT)  # a socket, as Syros uses it
    cache.setup(URL, max_connections=CONCURRENCY)
    cache.register_tag("all", "bench:{n}")
    cache.register_tag("many", "m:{n}")
    print(await puts(), await invalidation())
    await cache.close()


asyncio.run(main())
