"""Other servers than our own: the ASGI application starts what it needs by itself."""

import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from tests.doors import free_port
from tests.faults.house import House
from tests.races.processes import MANAGE, ROOT, until

SERVERS = {
    "daphne": [*MANAGE, "runserver", "--noreload", "127.0.0.1:{port}"],
    "uvicorn": [sys.executable, "-m", "uvicorn", "syros_project.asgi:application", "--port", "{port}"],
}


@pytest.fixture(params=list(SERVERS))
def url(request: pytest.FixtureRequest, house: House) -> Iterator[str]:
    port = free_port()
    command = [part.format(port=port) for part in SERVERS[request.param]]
    process = subprocess.Popen(command, cwd=ROOT, env=house.environ, stdout=subprocess.DEVNULL)
    found = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(found), 30, f"{request.param} answers")
        yield found
    finally:
        process.terminate()
        assert process.wait(20) is not None


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_operations_of_the_lane_and_of_django(url: str) -> None:
    grant = httpx.post(f"{url}/api/v1/locks", json={"key": "a", "owner": "me"})
    assert grant.status_code == 201
    found = httpx.get(f"{url}/api/v1/locks").json()["items"]
    assert [lock["key"] for lock in found] == ["a"]
    released = httpx.post(f"{url}/api/v1/locks/a/release", json={"lock_id": grant.json()["lock_id"]})
    assert released.status_code == 200
