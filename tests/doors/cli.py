"""The command line: in this process, and in one of its own where it waits."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

import syros
from core.operations import Operation
from syros.cli.app import app
from syros.cli.generated import inline, names
from syros.operations import Parameter, operations
from tests.doors.base import Answer, Door

SDK = Path(syros.__file__).parent.parent
_stdout = threading.Lock()  # the runner takes the process's own


class Cli(Door):
    """It tells no status and no replay: those are taken from the operation."""

    name = "cli"

    def carry(self, operation: Operation, params: dict[str, Any], about: dict[str, str]) -> Answer:
        line = [
            *arguments(operation.name, params),
            *(["--idempotency-key", about["key"]] if "key" in about else []),
        ]
        environment = {
            "SYROS_URL": f"http://127.0.0.1:{self.served.port}",
            "SYROS_NAMESPACE": about["namespace"],
            "SYROS_CONFIG": os.devnull,
        }
        run = beside if params.get("wait_seconds") else here
        code, out, err = run(line, environment)
        if code == 0:
            return Answer(operation.status, json.loads(out))
        # The server is in this process as well: what it logs meanwhile goes to the same stderr.
        problems = [line for line in err.splitlines() if line.startswith("{")]
        assert problems, f"no problem, and no answer either: {code} {err} {out}"
        problem = json.loads(problems[-1])
        return Answer(problem["status"], problem)


def arguments(name: str, params: dict[str, Any]) -> list[str]:
    """The command line of an operation."""
    operation = operations()[name]
    group, _, verb = name.replace("_", "-").partition(".")
    options, positional = [group, verb, "--json"], []
    for parameter in operation.parameters:
        if parameter.name not in params:
            continue
        value = params[parameter.name]
        if parameter in inline(operation):
            positional.append(word(parameter, value))
        elif parameter.type == "boolean":
            options.append(names(parameter)[0].split("/")[not value])
        else:
            for each in value if parameter.list else [value]:
                options += [names(parameter)[0], word(parameter, each)]
    return [*options, "--", *positional]


def word(parameter: Parameter, value: Any) -> str:
    return json.dumps(value) if parameter.type == "json" else str(value)


def here(line: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
    with _stdout:
        found = CliRunner().invoke(app, line, env=environment, catch_exceptions=False)
    return found.exit_code, found.stdout, found.stderr


def beside(line: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
    program = "from syros.cli.app import app; app()"
    found = subprocess.run(
        [sys.executable, "-c", program, *line],
        env={**os.environ, "PYTHONPATH": str(SDK), **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return found.returncode, found.stdout, found.stderr
