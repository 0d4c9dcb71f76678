"""The documents tell the truth: their commands run, their answers are the answers, what they name exists.

In README.md and docs/, a ```bash block is run against a server started for this test, block after block in one
shell; the ```json or ```http block after it is what it must answer. A ```bash no-run block is counted here. ```sql
is run by tests/test_guards.py.
"""

import ast
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from django.conf import settings
from django.core.management import get_commands, load_command_class
from dnslib import RCODE, DNSRecord
from grpc import StatusCode

from api.pages import known
from core import serving
from core.errors import SyrosError
from core.operations import registry
from tests.consul import Consul
from tests.doors import free_port
from tests.servers import WORKER, database

ROOT = Path(__file__).resolve().parent.parent
RUN = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
EXAMPLES = ["examples/fencing/README.md", "examples/order_fulfillment/README.md"]
ALL = [*RUN, "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", *EXAMPLES]
# Blocks that are not run, a document: for what starts a server, tests or a deployment of one's own, only.
NOT_RUN = {
    "README.md": 3, "docs/getting-started.md": 1, "CONTRIBUTING.md": 1, "docs/cache-django.md": 1,
    "examples/order_fulfillment/README.md": 1,
}  # fmt: skip
# Programs that docs/sagas.md shows are run by tests/test_examples_sagas.py; nobody draws the diagrams here.
SHOWN = {"javascript", "go", "java", "sh", "mermaid"}
LANGUAGES = {"bash", "bash no-run", "json", "http", "python", "sql", "text", *SHOWN}
# Numbers and texts that are others at every run: of these only the type is compared.
VARIES = {
    "lock_id", "event_id", "event_ids", "request_id", "id", "fencing_token", "last_token", "position", "first_position",
    "last_position", "next_position", "head", "waited_seconds", "held_seconds", "retry_after_seconds",
    "looked_seconds_ago",    "latency_ms", "queued", "commands", "batches", "waiting", "server", "saga_id",
    "lease_token", "as_of", "lease", "stale_until",
}  # fmt: skip
INSTANTS = re.compile(r".*_at|since|deadline")


# -- reading ----------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A fenced block of a document."""

    line: int
    language: str
    text: str


FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)


def read(document: str) -> str:
    return (ROOT / document).read_text()


def blocks(text: str) -> list[Block]:
    return [Block(text.count("\n", 0, m.start()) + 1, m[1].strip(), m[2]) for m in FENCE.finditer(text)]


def code(text: str) -> list[str]:
    """Every piece of code in a document: the lines of its blocks, and what stands in backticks."""
    lines = [line for block in blocks(text) for line in block.text.replace("\\\n", " ").splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


@dataclass
class Step:
    """A block to run, and the answer that stands after it."""

    block: Block
    answer: Block | None = None


def steps(text: str) -> list[Step]:
    found: list[Step] = []
    fresh = False  # is the last step still without an answer, with nothing in between?
    for block in blocks(text):
        if block.language == "bash":
            found.append(Step(block))
        elif block.language in {"json", "http"}:
            assert fresh, f"line {block.line}: an answer to no command"
            found[-1].answer = block
        fresh = block.language == "bash"
    return found


# -- comparing --------------------------------------------------------------------------------------


def is_instant(text: Any) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except (TypeError, ValueError):
        return False


def fits(shown: str, found: str) -> bool:
    """Is this the text shown, where `…` stands for anything?"""
    return re.fullmatch(".*".join(map(re.escape, shown.split("…"))), found) is not None


def differences(shown: Any, found: Any, name: str = "", path: str = "") -> Iterator[str]:
    """What a document shows and Syros does not answer."""
    if type(shown) is not type(found):
        yield f"{path or '/'}: {shown!r} is shown, {found!r} is the answer"
    elif isinstance(shown, dict):
        yield from (f"{path}/{key}: shown only" for key in shown.keys() - found.keys())
        yield from (f"{path}/{key}: not shown" for key in found.keys() - shown.keys())
        for key in shown.keys() & found.keys():
            yield from differences(shown[key], found[key], key, f"{path}/{key}")
    elif isinstance(shown, list):
        if len(shown) != len(found):
            yield f"{path or '/'}: {len(shown)} items are shown, {len(found)} are the answer"
        for index, (one, other) in enumerate(zip(shown, found, strict=False)):
            yield from differences(one, other, name, f"{path}/{index}")
    elif INSTANTS.fullmatch(name) and isinstance(shown, str):
        if not is_instant(shown) or not is_instant(found):
            yield f"{path}: {shown!r} and {found!r} must be instants"
    elif name in VARIES:
        if isinstance(shown, str) and not found:
            yield f"{path}: is empty"
    elif not (fits(shown, found) if isinstance(shown, str) else shown == found):
        yield f"{path or '/'}: {shown!r} is shown, {found!r} is the answer"


def missing_lines(shown: str, found: str) -> list[str]:
    """The first line that does not come, in order, in a text; what else the text has is its own affair."""
    rest = iter(found.splitlines())
    for line in filter(None, shown.splitlines()):
        if not any(fits(line, each.rstrip()) for each in rest):
            return [f"{line!r} is shown and does not come"]
    return []


@pytest.mark.parametrize(
    ("shown", "found"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1, "b": 2}, {"a": 1}),
        ({"a": [1]}, {"a": [1, 1]}),
        ([{"a": {"b": "c"}}], [{"a": {"b": "d"}}]),
        ({"key": "syr_…"}, {"key": "key_1"}),
        ({"position": 1}, {"position": "1"}),
        ({"lock_id": "5b0b"}, {"lock_id": ""}),
        ({"expires_at": "2026-11-25T04:10:13Z"}, {"expires_at": "soon"}),
        ({"expires_at": "2026-11-25T04:10:13Z"}, {"expires_at": None}),
        ({"released": True}, {"released": 1}),
    ],
)
def test_a_wrong_answer_is_noticed(shown: Any, found: Any) -> None:
    assert list(differences(shown, found))


def test_a_right_answer_is_taken() -> None:
    shown = {"key": "syr_…", "position": 3, "lock_id": "5b0b", "expires_at": "2026-11-25T04:10:13Z", "x": [1]}
    found = {"key": "syr_1", "position": 9, "lock_id": "77aa", "expires_at": "2027-01-01T00:00:00Z", "x": [1]}
    assert list(differences(shown, found)) == []


@pytest.mark.parametrize("shown", ["b: 2\na: 1", "a: 1\na: 1", "a", "c: …"])
def test_a_wrong_line_is_noticed(shown: str) -> None:
    assert missing_lines(shown, "a: 1\nx\nb: 2\n")


def test_right_lines_are_taken() -> None:
    assert missing_lines("a: …\n\nb: 2", "a: 1\r\nx\r\n\r\nb: 2\r\n") == []


# -- running ----------------------------------------------------------------------------------------

# Every command of a block must succeed, not its last one alone; but one that was given a time may use it up.
SHELL = """
set -uE -o pipefail
trap '[[ $? = 28 && $BASH_COMMAND = *--max-time* ]] || echo "$BASH_COMMAND" >> "$step.failed"' ERR
"""


@dataclass
class Place:
    """A server, and a folder that is to the shell what the checkout is to the reader."""

    folder: Path
    port: int
    grpc_port: int = 0
    dns_port: int = 0
    consul_port: int = 0


def run(text: str, place: Place) -> Iterator[str]:
    """Run a document's blocks and compare what they answer; what is wrong, if anything is."""
    todo = steps(text)
    script = [SHELL]
    for number, step in enumerate(todo):
        body = step.block.text.replace("localhost:8080", f"localhost:{place.port}")
        body = body.replace("localhost:9090", f"localhost:{place.grpc_port}")
        body = body.replace("localhost:8600", f"localhost:{place.dns_port}")
        body = body.replace("localhost:8500", f"localhost:{place.consul_port}")
        script.append(f"step={number}\n{{\n{body}}} > {number}.out 2> {number}.err")
    shell = subprocess.run(
        ["bash", "-c", "\n".join([*script, "wait", "touch done"])], cwd=place.folder, timeout=120, check=False,
        env=environment(place), capture_output=True, text=True,
    )  # fmt: skip
    if not (place.folder / "done").exists():
        yield f"the shell did not come to the end: {shell.stderr}"
    for number, step in enumerate(todo):
        yield from (f"line {step.block.line}: {problem}" for problem in problems(step, place.folder, number))


def environment(place: Place) -> dict[str, str]:
    """What the shell has: `syros`, as a command and for Python, and where the server is."""
    return {
        "PATH": f"{place.folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "sdks/python"),
        "SYROS_VAR": str(place.folder / "var"),
        "SYROS_URL": f"http://localhost:{place.port}",
        "SYROS_CONFIG": str(place.folder / "profiles.toml"),
    }


def install(command: Path) -> None:
    """`syros`, as pip would install it, and a `python` that has what the examples import, in their folder."""
    command.parent.mkdir()
    python = command.parent / "python"
    python.write_text(f'#!/bin/sh\ncd {shlex.quote(str(ROOT))} && exec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    path = f"import sys; sys.path.insert(0, {str(ROOT / 'sdks/python')!r})"
    command.write_text(f"#!{sys.executable}\n{path}\nfrom syros.cli.app import app\napp()\n")
    command.chmod(0o755)


def problems(step: Step, folder: Path, number: int) -> Iterator[str]:
    def text(kind: str) -> str:
        path = folder / f"{number}.{kind}"
        return path.read_text() if path.exists() else ""

    if failed := text("failed"):
        yield f"failed: {failed}{text('err')}"
    if step.answer is None:
        return
    answer = text("out")
    if step.answer.language == "http":
        yield from missing_lines(step.answer.text, answer)
        return
    try:
        found = json.loads(answer)
    except ValueError:
        yield f"no JSON: {answer!r} {text('err')}"
    else:
        yield from differences(json.loads(step.answer.text), found)


@pytest.mark.parametrize(
    "wrong",
    [
        "```bash\nfalse\ntrue\n```\n",
        "```bash\nx=$(false)\n```\n",
        "```bash\nfalse | true\n```\n",
        "```bash\necho $never_set\n```\n",
        "```bash\nexit 0\n```\n",
        "```bash\n(exit 28)\n```\n",
        '```bash\necho \'{"a": 1}\'\n```\n```json\n{"a": 2}\n```\n',
        '```bash\necho \'{"a": 1}{}\'\n```\n```json\n{"a": 1}\n```\n',
        "```bash\necho a\n```\n```http\nb\n```\n",
    ],
)
def test_a_block_that_goes_wrong_is_noticed(wrong: str, tmp_path: Path) -> None:
    assert list(run(wrong, Place(tmp_path, 0)))


def test_a_block_s_variables_are_there_in_the_next(tmp_path: Path) -> None:
    text = '```bash\na=1\n```\nand\n```bash\necho "{\\"a\\": $a}"\n```\n```json\n{"a": 1}\n```\n'
    assert list(run(text, Place(tmp_path, 0))) == []


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """What a reader has after `make serve`: a server in development mode, `var`, and the checkout's commands."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / ".venv").symlink_to(sys.prefix)
    for name in ("manage.py", "proto", "examples"):
        (folder / name).symlink_to(ROOT / name)
    install(folder / "bin" / "syros")
    grpc_port, dns_port = free_port(), free_port()
    url = database(f"syros_docs_{WORKER}")
    kept = {name: value for name, value in os.environ.items() if name != "JWT_SECRET"}
    consul = Consul().start()
    kept |= {"DISCOVERY_CONSUL_URL": consul.url, "DISCOVERY_CONSUL_TAG": "sagas"}
    with serving.listen("127.0.0.1", 0) as listener, (folder / "serve.log").open("wb") as log:
        port = listener.getsockname()[1]
        command = ["manage.py", "serve", "--fd", str(listener.fileno()), "--port", str(port)]
        command += ["--grpc-port", str(grpc_port), "--dns-port", str(dns_port)]
        server = subprocess.Popen(
            [sys.executable, *command], cwd=folder, pass_fds=[listener.fileno()], stdout=log, stderr=log,
            env={**kept, "DATABASE_URL": url, "SYROS_DEV": "1", "SYROS_VAR": str(folder / "var")},
        )  # fmt: skip
    try:
        assert is_ready(port), (folder / "serve.log").read_text()
        assert knows_services(dns_port), (folder / "serve.log").read_text()
        yield Place(folder, port, grpc_port, dns_port, consul.port)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(40)
        consul.stop()


def knows_services(dns_port: int) -> bool:
    """Half a second after it is ready, sooner than a reader comes."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        answer = DNSRecord.question("svc.syros").send("127.0.0.1", dns_port, timeout=10)
        if DNSRecord.parse(answer).header.rcode == RCODE.NOERROR:
            return True
        time.sleep(0.1)
    return False


def is_ready(port: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code == 200:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    return False


@pytest.mark.skipif(shutil.which("curl") is None, reason="the documents' commands need curl")
@pytest.mark.parametrize("document", [document for document in RUN if "```bash\n" in read(document)])
def test_the_commands_of_a_document_answer_what_it_shows(place: Place, document: str) -> None:
    assert list(run(read(document), place)) == []


@pytest.mark.parametrize("document", ALL)
def test_what_is_not_run_is_counted(document: str) -> None:
    found = blocks(read(document))
    assert {block.language for block in found} <= LANGUAGES
    # A fence that FENCE does not understand would not be run either.
    assert len(re.findall(r"^\s*(```|~~~)", read(document), re.MULTILINE)) == 2 * len(found)
    not_run = [block for block in found if block.language == "bash no-run"]
    assert len(not_run) == NOT_RUN.get(document, 0)
    for line in (line for block in not_run for line in block.text.splitlines() if line):
        assert re.match(r"make |export |\.venv/bin/python manage\.py |#", line), line


# The four commands that people are promised elsewhere, to the letter.
PROMISED = [
    """curl -X POST http://localhost:8080/api/v1/locks -H "Content-Type: application/json" \\
  -d '{"key": "inventory_process_123", "owner": "worker_service_01", "ttl_seconds": 30}'
""",
    """curl -X POST http://localhost:8080/api/v1/events/order_stream_99 -H "Content-Type: application/json" \\
  -d '{"event_type": "OrderCreated", "data": {"customer_id": "user_456", "total": 129.90}, \
"metadata": {"source": "mobile_app"}}'
""",
    """curl -X POST http://localhost:8080/api/v1/sagas -H "Content-Type: application/json" \
-d '{"name": "order_fulfillment_saga", "steps": [
 {"name": "reserve_inventory", "service": "inventory_service", "action": "reserve", \
"compensation": "release_inventory", "timeout_seconds": 10},
 {"name": "charge_payment", "service": "payment_service", "action": "charge", \
"compensation": "refund_payment", "timeout_seconds": 15}]}'
""",
    "curl http://localhost:8080/health\n",
]


def test_the_readme_has_the_promised_commands_to_the_letter() -> None:
    assert [step.block.text for step in steps(read("README.md"))] == PROMISED


# -- what they name ---------------------------------------------------------------------------------


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.MULTILINE))


@pytest.mark.parametrize("document", ALL)
def test_every_make_target_exists(document: str) -> None:
    named = {name for piece in code(read(document)) for name in re.findall(r"\bmake ([a-z][a-z-]*)", piece)}
    assert named <= targets()


def test_the_two_commands_are_in_the_readme() -> None:
    assert {"serve", "test"} <= {
        name for piece in code(read("README.md")) for name in re.findall(r"^make ([a-z-]+)", piece)
    }


@pytest.mark.parametrize("document", ["README.md", "docs/cli.md"])
def test_the_command_line_is_where_they_say(document: str) -> None:
    """`make serve` installs it, with what it needs at the versions that are pinned."""
    assert ".venv/bin/syros" in read(document)
    made = subprocess.run(
        ["make", "-nB", ".venv/serves"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "./sdks/python" in made
    project = tomllib.loads(read("sdks/python/pyproject.toml"))["project"]
    assert "syros" in project["scripts"]
    needed = {re.split(r"\W", each)[0] for each in project["dependencies"] if "python_version" not in each}
    assert needed <= {line.partition("==")[0].lower() for line in read("constraints.txt").splitlines()}


@pytest.mark.parametrize("document", ALL)
def test_every_manage_command_takes_what_it_is_given(document: str) -> None:
    for piece in code(read(document)):
        if found := re.search(r"manage\.py ([a-z_]+)([^|#>]*)", piece):
            app = get_commands()[found[1]]
            command = load_command_class(app, found[1]) if isinstance(app, str) else app
            command.create_parser("manage.py", found[1]).parse_args(shlex.split(found[2]))


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(document: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(document)))


@pytest.mark.parametrize("document", ALL)
def test_every_link_between_documents_leads_somewhere(document: str) -> None:
    for link in links(document):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = (ROOT / document).parent / path if path else ROOT / document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("document", ALL)
def test_every_link_to_the_server_is_answered(place: Place, document: str) -> None:
    for link in links(document):
        if "://" in link:
            assert link.startswith("http://localhost:8080/"), link
            found = httpx.get(link.replace("8080", str(place.port)), follow_redirects=True, timeout=20)
            assert found.status_code == 200, link


@pytest.mark.parametrize("document", ALL)
def test_every_error_exists_and_has_that_status(document: str) -> None:
    real = {(str(error.status), error.code) for error in known(SyrosError)}
    assert set(re.findall(r"\b([45]\d\d) `([a-z_]+)`", read(document))) <= real


def test_every_operation_is_in_the_list_with_its_route() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| `([A-Z]+) /(\S*)` \|", read("docs/rest-api.md"), re.MULTILINE)
    public = [(each.name, each.route.method, each.route.path) for each in registry if each.route]
    assert sorted(rows) == sorted(public)


@pytest.mark.parametrize("document", ALL)
def test_every_file_exists(document: str) -> None:
    named = {
        name
        for piece in code(read(document))
        for name in re.findall(r"(?<![\w/.])(?:[\w.-]+/)+[\w.-]+\.(?:py|md|toml|html|json)\b", piece)
    }
    made = {"var/serving.json"}  # by `manage.py serve`
    assert [name for name in sorted(named - made) if not (ROOT / name).exists()] == []


def test_the_map_has_every_file_of_core() -> None:
    files = [path.relative_to(ROOT) for path in (ROOT / "core").rglob("*.py")]
    real = {str(path) for path in files if path.name != "__init__.py" and "migrations" not in path.parts}
    rows = set(re.findall(r"^\| `(core/[\w/]+\.py)` \|", read("docs/architecture.md"), re.MULTILINE))
    assert rows == real


@pytest.mark.parametrize("document", ALL)
def test_every_test_that_is_named_exists(document: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", read(document))
    assert [f"{path}::{name}" for path, name in named if f"def {name}(" not in read(path)] == []


@pytest.mark.parametrize("promise", ["P1", "P2", "P3", "P4", "P5", "P7", "P8", "P9"])
def test_a_promise_names_the_tests_that_hold_it(promise: str) -> None:
    section = re.search(rf"^## {promise}\b.*\n((?:(?!## ).*\n)*)", read("docs/promises.md"), re.MULTILINE)
    assert section
    assert re.search(r"`tests/[\w/]+\.py::test_\w+`", section[1])


@pytest.mark.parametrize("document", RUN)
def test_code_that_is_shown_is_the_code(document: str) -> None:
    """A ```python block names its file in its first line; each of its lines is there, in this order."""
    for block in blocks(read(document)):
        if block.language == "python":
            first, *shown = block.text.splitlines()
            path = re.match(r"# ([\w/]+\.py)", first)
            assert path, block
            lines = [line for line in shown if line.strip() not in {"", "..."}]
            assert len(lines) > 2
            assert missing_lines("\n".join(lines), read(path[1])) == []


# -- settings ---------------------------------------------------------------------------------------


class Setting(NamedTuple):
    default: str
    toml: str


def literal(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return {True: "1", False: "0"}.get(node.value, str(node.value)) if node.value is not None else ""
    return ast.unparse(node).partition("BASE_DIR / ")[2].strip("')")


def read_settings() -> dict[str, Setting]:
    """Every setting that settings.py reads, with its default."""
    found: dict[str, Setting] = {}
    for node in ast.walk(ast.parse(read("syros_project/settings.py"))):
        if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
            continue
        called = ast.unparse(node.func)
        if called in {"env", "envint", "envbool", "os.environ.get"}:
            default = literal(node.args[1]) if len(node.args) > 1 else "0" if called == "envbool" else ""
            toml = literal(node.args[2]) if len(node.args) > 2 else ""
            found[node.args[0].value] = Setting(default, toml)
    return found


def test_the_settings_are_found() -> None:
    found = read_settings()
    assert found["REST_PORT"] == Setting("8080", "server.port")
    assert found["SYROS_DEV"] == Setting("0", "")
    assert found["SYROS_VAR"] == Setting("var", "")
    assert found["CONFIG_FILE"] == Setting("config.toml", "")


def test_the_example_environment_has_every_setting_with_its_default() -> None:
    examples = dict(re.findall(r"^#([A-Z_]+)=(.*)$", read(".env.example"), re.MULTILINE))
    assert examples == {name: setting.default for name, setting in read_settings().items()}


def test_the_example_environment_says_what_each_setting_means() -> None:
    lines = read(".env.example").splitlines()
    for before, line in itertools.pairwise(lines):
        assert not re.match(r"#[A-Z_]+=", line) or re.match(r"# \w.*\w", before), line


def test_the_example_config_has_every_setting_with_its_default() -> None:
    def flat(table: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
        for name, value in table.items():
            if isinstance(value, dict):
                yield from flat(value, f"{path}{name}.")
            else:
                yield f"{path}{name}", str(value)

    examples = dict(flat(tomllib.loads(read("config.example.toml"))))
    assert examples == {setting.toml: setting.default for setting in read_settings().values() if setting.toml}


@pytest.mark.parametrize("document", ALL)
def test_every_setting_that_is_named_exists(document: str) -> None:
    settable = {*read_settings(), *re.findall(r"SYROS_[A-Z_]+", read("tests/servers.py"))}
    sdk = "\n".join(path.read_text() for path in (ROOT / "sdks").rglob("*.py"))
    settable |= set(re.findall(r"\b(?:SYROS|XDG)_[A-Z_]+", sdk))
    settable |= {f"{name}_FILE" for name in settable}
    named = {name for piece in code(read(document)) for name in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", piece)}
    # The documents' own shell variables, and settings of Django.
    local = {
        "LOCK_ID",
        "KEY_ID",
        "NEXT_GRANT",
        "KEY_PREFIX",
        "KEY_FUNCTION",
        "SECRET_KEY",
        "SECRET_KEY_FALLBACKS",
    }
    statuses = {code.name for code in StatusCode}
    assert named - local - statuses <= settable


def test_the_changelog_begins_with_this_version() -> None:
    found = re.search(r"^## (\S+) — ", read("CHANGELOG.md"), re.MULTILINE)
    assert found
    assert found[1] == settings.VERSION == tomllib.loads(read("pyproject.toml"))["project"]["version"]
