"""A headless Chromium, driven by its own protocol: what a page asks for, what it shows, how it looks."""

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
START_SECONDS, PAGE_SECONDS = 30.0, 30.0
OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--window-size=1400,900",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
    # Whatever a page names but this machine is not found.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
]  # fmt: skip


class Browser:
    """One process with one page. Parameters: `cookies`, by name, for this machine."""

    def __init__(self, cookies: dict[str, str] | None = None) -> None:
        assert CHROMIUM
        self._folder = tempfile.mkdtemp(prefix="syros-chromium-")
        self._process = subprocess.Popen(
            [CHROMIUM, *OPTIONS, f"--user-data-dir={self._folder}"], stderr=subprocess.PIPE, text=True,
            env={**os.environ, "HOME": self._folder},
        )  # fmt: skip
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.requests: list[str] = []  # of the page, as they were made
        self.said: list[str] = []  # on its console, and what it did not catch
        self._open = ExitStack()
        self._socket = self._open.enter_context(
            connect(self._address(), max_size=None, open_timeout=START_SECONDS)
        )
        self._attach(cookies or {})

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()
        self._process.terminate()
        self._process.wait(20)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _address(self) -> str:
        assert self._process.stderr
        for line in self._process.stderr:
            if found := re.search(r"DevTools listening on (ws://\S+)", line):
                return found[1]
        raise AssertionError("Chromium did not start")

    def _attach(self, cookies: dict[str, str]) -> None:
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Page", "Runtime", "Log"):
            self.do(f"{domain}.enable")
        for name, value in cookies.items():
            self.do("Network.setCookie", name=name, value=value, domain="127.0.0.1", path="/")

    def do(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol; what happens meanwhile is noted."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(PAGE_SECONDS))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer.get("method"), answer.get("params", {}))

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.requests.append(params["url"])
        elif method == "Runtime.exceptionThrown":
            self.said.append(
                params["exceptionDetails"].get("exception", {}).get("description", "an exception")
            )
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.said.append(params["entry"]["text"])

    def open(self, url: str) -> None:
        self.do("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        found = self.do("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait for something in the page to be true, and give it back."""
        deadline = time.monotonic() + PAGE_SECONDS
        while True:
            found = self.do("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")
            if found:
                return found
            assert time.monotonic() < deadline, f"never true: {script}\n{self.said}"
            time.sleep(0.1)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot", format="png")["data"]))
