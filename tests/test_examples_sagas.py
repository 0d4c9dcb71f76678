"""The examples of sagas do what they say, and the documents show them as they are."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from syros import barrier
from tests.doors import Served, free_port
from tests.servers import WORKER, database
from tests.test_docs import ROOT, blocks, missing_lines, read

PARTICIPANTS = ROOT / "examples" / "participants"
RUN: dict[str, list[str]] = {
    "participant.py": [sys.executable],
    "participant_grpc.py": [sys.executable],
    "participant.mjs": ["node"],
    "participant.go": ["go", "run"],
    "Participant.java": ["java"],
    "worker.sh": ["sh"],
}
SHOWN = {"python", "javascript", "go", "java", "sh"}


def test_the_order_comes_out_as_the_readmes_show() -> None:
    """What `make demo` does, on a database of the tests."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT / "sdks/python"), "DATABASE_URL": database(f"syros_demo_{WORKER}"),
    }  # fmt: skip
    found = subprocess.run(
        [sys.executable, "examples/order_fulfillment/run.py", "--serve"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    told = "\n".join(line.rstrip() for line in found.stdout.splitlines())
    for document in ("README.md", "examples/order_fulfillment/README.md"):
        (shown,) = [block.text for block in blocks(read(document)) if block.language == "text"]
        assert missing_lines(shown, told) == []


# -- participants in five languages, and over gRPC ------------------------------------------------------------------


@pytest.fixture
def participant(request: pytest.FixtureRequest, served: Served, tmp_path: Path) -> Iterator[int | None]:
    """One of them, running: its port; None for the one that fetches."""
    command = RUN[request.param]
    needed = [command[0], *(["curl", "jq"] if request.param == "worker.sh" else [])]
    if missing := [program for program in needed if shutil.which(program) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    port = None if request.param == "worker.sh" else free_port()
    environment = {
        **os.environ, "PORT": str(port), "DATABASE": str(tmp_path / "payments.db"),
        "PYTHONPATH": f"{ROOT / 'sdks/python'}:{ROOT / 'proto'}", "SYROS_URL": f"http://127.0.0.1:{served.port}",
    }  # fmt: skip
    process = subprocess.Popen(
        [*command, str(PARTICIPANTS / request.param)], env=environment, cwd=tmp_path, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        if port is not None:
            wait_for_port(port)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 120  # Go compiles its standard library first
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def payment(name: str, amount: float) -> dict[str, Any]:
    return {"name": name, "service": "payment", "action": "charge", "compensation": "refund",
            "input": {"amount": amount}}  # fmt: skip


@pytest.mark.parametrize("participant", RUN, indirect=True)
def test_a_participant_in_each_language_takes_part(
    participant: int | None, served: Served, request: pytest.FixtureRequest
) -> None:
    saga = {"name": "payments", "steps": [payment("small", 50), payment("large", 500)], "wait_seconds": 30}
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}/api/v1/", timeout=60) as syros:
        instance = "services/payment/instances/example"
        if participant is not None:
            scheme = "grpc" if "grpc" in request.node.callspec.id else "http"
            body = {"address": "127.0.0.1", "port": participant, "scheme": scheme, "ttl_seconds": 60}
            assert syros.put(instance, json=body).status_code == 200
        try:
            found = syros.post("sagas", json=saga).json()
        finally:
            syros.delete(instance)
    small, large = found["steps"]
    assert (found["status"], found["error"]["code"]) == ("compensated", "card_declined")
    assert (small["output"], small["compensation"]["status"]) == ({"charged": 50}, "compensated")
    assert (large["status"], large["compensation"]["status"]) == ("failed", "pending")


def test_the_participants_that_are_shown_are_those() -> None:
    shown = {}
    for block in blocks(read("docs/sagas.md")):
        if block.language in SHOWN:
            first = re.match(r"(?:#|//) examples/participants/([\w.]+)\n", block.text)
            assert first, block
            shown[first[1]] = block.text
    assert shown.keys() == RUN.keys()
    for name, text in shown.items():
        assert (PARTICIPANTS / name).read_text().removeprefix("#!/bin/sh\n") == text


def test_the_barrier_that_is_shown_is_the_barrier() -> None:
    table, inserts = [block.text for block in blocks(read("docs/sagas.md")) if block.language == "sql"]
    assert table.strip() == barrier.TABLE
    assert inserts.splitlines() == [barrier.INSERT["postgres"], barrier.INSERT["mysql"]]
