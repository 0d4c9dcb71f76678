"""Would the histories tell? Bugs are planted in a serving process, and each has to be found."""

import asyncio
import os
import re
import sys
from pathlib import Path

from tests.races.bugs import BUGS
from tests.races.client import Client
from tests.races.histories import Violation
from tests.races.lockers import Locker, Recorder, check, keys
from tests.races.processes import Syros, environment, migrate, new_namespace, run
from tests.servers import WORKER, database

ACQUISITIONS = 300
SECONDS = 6.0  # after which it is enough: some bugs leave a lock to nobody
PATIENCE = 15.0  # seconds in which everything has to be over, and written down
ROUNDS = 5  # a slow machine gets through few acquisitions in one
# What is said of each: another finding would be another bug's, or a false alarm.
WORDS = {
    "token_repeats": "token .* (after|was given twice)",
    "lifo": "overtakes",
    "expiry_ignored": "never ended|longer than its time|is gone, and somebody waits",
    "no_owner_check": "held at once|not by its holder|was refused while it was held|the log says",
    "renew_revives": "a renewal revived it|held at once",
    "capacity_off_by_one": "has it while|held at once",
    "shared_beside_exclusive": "has it while|held at once",
}


async def race(port: int, namespace: str, seed: int) -> str:
    """What is wrong; empty if nothing is found."""
    recorder = Recorder(ACQUISITIONS, keys(2), SECONDS)
    lockers = [
        Locker(f"c{n}", [Client(port, namespace)], recorder, seed, wait_seconds=1, ttl_seconds=2, idleness=8)
        for n in range(12)
    ]
    await asyncio.gather(*(locker.work() for locker in lockers))
    try:
        async with Client(port, namespace) as client:
            await check(client, recorder, patience=PATIENCE)
    except Violation as violation:
        return str(violation)
    return ""


def test_each_bug_is_found_and_where_there_is_none_nothing(tmp_path: Path) -> None:
    url = database(f"syros_bugs_{WORKER}")
    environ = environment(url, os.environ["SYROS_TEST_REDIS_URL"], tmp_path)
    migrate(environ)
    syros = Syros(environ, "buggy", manage=[sys.executable, "-m", "tests.races.bugs"])

    async def search(name: str) -> str:
        for seed in range(ROUNDS if name in BUGS else 1):
            found = await race(syros.port, new_namespace(url, name), seed)
            if found and re.search(WORDS.get(name, ""), found):
                return found
        return ""

    async def story() -> list[str]:
        return await asyncio.gather(*(search(name) for name in [*BUGS, "none"]))

    try:
        syros.start()
        *found, nothing = run(story())
    finally:
        syros.end()
    assert set(WORDS) == set(BUGS)
    assert [bug for bug, what in zip(BUGS, found, strict=True) if not what] == []
    assert nothing == ""
