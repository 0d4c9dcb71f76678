"""The command line: what it prints, how it ends, where it finds Syros; in this process, against a real server."""

import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from typer.testing import CliRunner

from api.operations import documents
from core.operations import registry
from syros.cli import lock
from syros.cli.app import app
from syros.client import Client, Refused, Unavailable
from syros.operations import operations
from tests.doors import Door, Lane, Served

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = [sys.executable, "-c", "from syros.cli.app import app; app()"]


class Shell:
    """`syros` in this process: `shell("locks", "get", "a")` is its exit code, stdout and stderr."""

    def __init__(self, folder: Path, port: int, namespace: str) -> None:
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        self.config = folder / "syros" / "config.toml"
        self.environment: dict[str, str | None] = {
            "SYROS_URL": self.url, "SYROS_NAMESPACE": namespace, "SYROS_CONFIG": str(self.config),
            "SYROS_API_KEY": None, "COLUMNS": "200",
        }  # fmt: skip

    def __call__(self, *line: str, stdin: str = "", **environment: str | None) -> tuple[int, str, str]:
        found = CliRunner().invoke(app, line, input=stdin, env={**self.environment, **environment})
        assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
        return found.exit_code, found.stdout, found.stderr

    def json(self, *line: str, **more: Any) -> Any:
        code, out, err = self(*line, **more)
        assert code == 0, err
        return json.loads(out)

    def start(self, *line: str, **options: Any) -> "subprocess.Popen[str]":
        """In a process of its own."""
        environment = {**os.environ, **self.environment, "PYTHONPATH": str(ROOT / "sdks/python")}
        kept = {name: value for name, value in environment.items() if value is not None}
        return subprocess.Popen([*PROGRAM, *line], env=kept, text=True, **options)


@pytest.fixture
def shell(served: Served, namespace: str, tmp_path: Path) -> Shell:
    return Shell(tmp_path, served.port, namespace)


# -- what there is -----------------------------------------------------------------------------------


def test_the_description_of_the_operations_is_the_registry_s() -> None:
    for path, text in documents().items():
        assert (ROOT / path).read_text() == text, f"{path} is not up to date: run manage.py make_contracts"


def test_there_is_a_command_for_every_operation(shell: Shell) -> None:
    assert set(operations()) == {operation.name for operation in registry if operation.route}
    for operation in operations().values():
        group, _, verb = operation.name.replace("_", "-").partition(".")
        code, out, _ = shell(group, verb, "--help")
        assert code == 0
        assert operation.doc.split("\n")[0].split("`")[0].strip()[:60] in " ".join(out.split())


def test_the_help_shows_defaults_choices_limits_and_aliases(shell: Shell) -> None:
    _, out, _ = shell("locks", "acquire", "--help")
    assert re.search(r"--ttl-seconds,--ttl\b.*0\.1 to 86400", out)
    assert re.search(r"--owner\b.*default user@host:pid", out)
    _, out, _ = shell("events", "read", "--help")
    assert re.search(r"--direction\b.*forward \| backward; default forward", out)


def test_an_unknown_command_names_the_near_ones(shell: Shell) -> None:
    code, _, err = shell("locks", "aquire")
    assert code == 2
    assert "acquire" in err


def test_the_version(shell: Shell) -> None:
    assert shell("--version")[1] == "syros 0.1.0\n"


def test_completion_answers() -> None:
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT / "sdks/python"), "_SYROS_COMPLETE": "complete_bash",
        "COMP_WORDS": "syros locks a", "COMP_CWORD": "2",
    }  # fmt: skip
    program = "import sys; sys.argv[0] = 'syros'; from syros.cli.app import app; app()"
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["acquire", "acquire-many"]


def test_the_client_is_loaded_by_those_only_who_call() -> None:
    program = "import sys; import syros.cli.app; print([n for n in ('httpx', 'rich', 'django') if n in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT / "sdks/python")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout == "[]\n"


# -- calling -----------------------------------------------------------------------------------------


def test_an_answer_is_exact(shell: Shell, lane: Door) -> None:
    grant = shell.json(
        "locks", "acquire", "jobs/nightly", "--ttl", "60", "--owner", "ü", "--metadata", '{"a": [1]}'
    )
    assert (grant["key"], grant["owner"], grant["ttl_seconds"]) == ("jobs/nightly", "ü", 60)
    assert shell.json("locks", "get", "jobs/nightly") == lane("locks.get", key="jobs/nightly").value


def test_who_does_not_say_who_it_is_is_user_at_host(shell: Shell) -> None:
    owner = shell.json("locks", "acquire", "a")["owner"]
    assert re.fullmatch(rf"\S+@\S+:{os.getpid()}", owner)


def test_json_comes_from_text_a_file_or_stdin(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "event.json").write_text('{"n": 2}')
    shell.json("events", "append", "s", "--type", "T", "--data", '{"n": 1}')
    shell.json(
        "events", "append", "s", "--type", "T", "--data", f"@{tmp_path}/event.json", "--expected-version", "1"
    )
    shell.json(
        "events",
        "append",
        "s",
        "--type",
        "T",
        "--data",
        "-",
        "--expected-version",
        "exists",
        stdin='{"n": 3}',
    )
    found = shell.json("events", "read", "s", "--from-version", "1")
    assert [event["data"] for event in found["events"]] == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_what_is_no_json_is_said(shell: Shell) -> None:
    for text in ("{a", "@/nowhere", "-"):
        code, _, err = shell("events", "append", "s", "--type", "T", "--data", text, stdin="")
        assert code == 2
        assert "--data takes JSON" in err
    assert shell.json("events", "read", "s")["events"] == []


def test_a_list_is_an_option_that_repeats(shell: Shell) -> None:
    for name in ("a", "b", "c"):
        shell.json("events", "append", name, "--type", "T", "--data", "1")
    with following(shell, "--from-start", "--stream", "a", "--stream", "c") as items:
        assert [next(items)["stream_id"], next(items)["stream_id"]] == ["a", "c"]


def test_an_idempotency_key_is_passed_on(shell: Shell) -> None:
    first, again = (
        shell.json("locks", "acquire", "a", "--owner", "me", "--idempotency-key", "once") for _ in range(2)
    )
    assert first == again


# -- what goes wrong ---------------------------------------------------------------------------------


def test_a_refusal_is_one_sentence_and_its_code(shell: Shell) -> None:
    shell.json("locks", "acquire", "a", "--owner", "alice")
    code, out, err = shell("locks", "acquire", "a", "--owner", "bob")
    assert (code, out, err) == (1, "", "syros: lock_held: a is held by alice.\n")


def test_a_program_is_told_the_whole_problem(shell: Shell) -> None:
    shell.json("locks", "acquire", "a", "--owner", "alice")
    code, out, err = shell("locks", "acquire", "a", "--owner", "bob", "--json")
    problem = json.loads(err)
    assert (code, out, problem["code"], problem["holders"][0]["owner"]) == (1, "", "lock_held", "alice")


def test_every_bad_field_is_named(shell: Shell) -> None:
    code, _, err = shell("locks", "acquire", "a/../b", "--ttl", "0")
    assert code == 2
    assert "  /key: no empty, . or .. segments (bad_segment)\n" in err
    assert "  /ttl_seconds: " in err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["locks", "renew", "a", "--lock-id", "x"], 1),
        (["locks", "renew", "a"], 2),
        (["locks", "acquire"], 2),
        (["locks", "find", "--limit", "many"], 2),
        (["locks", "find", "--limit", "201"], 2),
        (["locks", "get", "batch/../x"], 2),
        (["locks", "get", "\udcff"], 2),
        (["locks", "find", "--prefix", "\udcff"], 2),
        (["locks", "acquire", "a", "--ttl", "nan"], 2),
        (["locks", "acquire", "a", "--owner", "\udcff"], 2),
        (["events", "append", "s", "--type", "T", "--data", "NaN"], 2),
        (["events", "append", "s", "--type", "T", "--data", '"\\ud800"'], 2),
        (["events", "append", "s", "--type", "T", "--data", "[" * 65 + "]" * 65], 2),
        (["events", "append", "s", "--type", "T", "--data", "[" * 100_000], 2),
        (["locks", "get", ""], 2),
        (["locks", "get", "a/"], 2),
        (["--url", "localhost:8080", "locks", "get", "a"], 2),
        (["--url", "http://[", "locks", "get", "a"], 3),
        (["--url", "http://127.0.0.1:1", "locks", "get", "a"], 3),
        (["--api-key", "syr_wrong", "locks", "get", "a"], 4),
        (["--namespace", "nowhere", "locks", "get", "a"], 5),
        (["--profile", "nobody", "locks", "get", "a"], 2),
        (["lock", "a", "--wait", "soon", "--", "true"], 2),
        (["lock", "a", "--wait", "nan", "--", "true"], 2),
        (["lock", "a", "--ttl", "0.5", "--", "true"], 2),
        (["lock", "a"], 2),
        (["login", "--username", "nobody"], 2),
    ],
)
def test_the_exit_code_says_what_kind_of_trouble_it_is(shell: Shell, line: list[str], expected: int) -> None:
    code, out, err = shell(*line)
    assert (code, out) == (expected, "")
    assert err


def test_a_name_with_dots_leads_to_no_other_address(shell: Shell) -> None:
    code, _, err = shell("locks", "get", "a/../../events")
    assert code == 2
    assert "bad_segment" in err


# -- what people see ---------------------------------------------------------------------------------


def on_a_terminal(shell: Shell, *line: str) -> str:
    """What the program prints where somebody looks."""
    ours, its = pty.openpty()
    process = shell.start(*line, stdin=its, stdout=its, stderr=its)
    os.close(its)
    found = b""
    while True:
        try:
            read = os.read(ours, 4096)
        except OSError:  # the terminal is closed at its end
            break
        if not read:
            break
        found += read
    process.wait()
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", found.decode())


def test_people_get_tables(shell: Shell) -> None:
    shell.json("locks", "acquire", "jobs/nightly", "--owner", "[bold]alice")
    shell.json("locks", "acquire", "jobs/hourly", "--owner", "bob")
    lines = on_a_terminal(shell, "locks", "find").splitlines()
    assert lines[0].split()[:2] == ["key", "is_locked"]
    assert [line.split()[0] for line in lines[1:3]] == ["jobs/hourly", "jobs/nightly"]
    assert "[bold]alice" in lines[2]
    assert re.search(
        r"^key +jobs/nightly", on_a_terminal(shell, "locks", "get", "jobs/nightly"), re.MULTILINE
    )
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads("\n".join(lines))
    assert json.loads(on_a_terminal(shell, "locks", "get", "jobs/nightly", "--json"))["is_locked"]


def test_top_draws_a_frame(shell: Shell, lane: Door, later: Callable[..., Any]) -> None:
    held = lane("locks.acquire", key="jobs/nightly", owner="alice")
    waiter = later(lane, "locks.acquire", key="jobs/nightly", owner="bob", wait_seconds=30)
    until(lambda: lane("locks.get", key="jobs/nightly")["queue_length"])
    code, out, err = shell("top", "--once")
    assert (code, err) == (0, "")
    assert re.search(r"^http://127.0.0.1:\d+/  Syros 0\.1\.0  healthy  namespace", out)
    assert re.search(r"^engine +up .*queued \d+  commands \d+  batches \d+", out, re.MULTILINE)
    assert re.search(r"^log head 2$", out, re.MULTILINE)
    assert re.search(r"^jobs/nightly +alice +1 ", out, re.MULTILINE)
    lane("locks.release", key="jobs/nightly", lock_id=held["lock_id"])
    waiter.result()


def test_top_goes_on_and_says_how_fast_the_log_grows(shell: Shell, lane: Door) -> None:
    process = shell.start("top", "--every", "0.3", stdout=subprocess.PIPE)
    assert process.stdout
    try:
        for line in process.stdout:
            lane("events.append", stream_id="s", event_type="T", data=1)
            if found := re.search(r"^log head \d+  (\d+\.\d) events/s  (\d+\.\d) commands/s", line):
                assert float(found[1]) > 0
                assert float(found[2]) > 0
                break
    finally:
        process.kill()
        process.communicate()


def test_top_says_when_nobody_answers(shell: Shell) -> None:
    code, out, _ = shell("--url", "http://127.0.0.1:1", "top", "--once")
    assert code == 3
    assert "away" in out
    assert "Connection refused" in out


# -- profiles and logins -----------------------------------------------------------------------------


def test_a_profile_says_where_syros_is(shell: Shell, namespace: str) -> None:
    nowhere: dict[str, Any] = {"SYROS_URL": None, "SYROS_NAMESPACE": None}
    shell("profiles", "add", "here", "--url", shell.url, "--namespace", namespace)
    shell("profiles", "add", "there", "--url", "http://127.0.0.1:1", "--api-key", "syr_x")
    assert shell.json("auth", "whoami", **nowhere)["namespace"] == namespace
    assert shell("--profile", "there", "auth", "whoami", **nowhere)[0] == 3
    assert shell("profiles", "use", "there")[0] == 0
    assert shell("auth", "whoami", **nowhere)[0] == 3
    found = shell.json("profiles", "list")["items"]
    assert found == [
        {"name": "here", "url": shell.url, "namespace": namespace, "in_use": False},
        {"name": "there", "url": "http://127.0.0.1:1", "namespace": None, "in_use": True},
    ]
    assert shell("profiles", "remove", "there")[0] == 0
    assert shell("--profile", "there", "auth", "whoami")[0] == 2
    assert shell.config.stat().st_mode & 0o777 == 0o600


def test_options_beat_the_environment_and_that_the_profile_in_use(shell: Shell, namespace: str) -> None:
    shell("profiles", "add", "here", "--url", "http://127.0.0.1:1", "--namespace", "nowhere")
    assert shell.json("auth", "whoami")["namespace"] == namespace  # the environment's
    assert shell.json("--namespace", "default", "auth", "whoami")["namespace"] == "default"
    assert (
        shell("--profile", "here", "auth", "whoami")[0] == 3
    )  # a profile that is named beats the environment
    assert shell("--url", "http://127.0.0.1:1", "auth", "whoami")[0] == 3


def test_a_profile_s_key_is_sent_to_its_own_address_only(shell: Shell) -> None:
    key = shell.json("api-keys", "create", "k")
    shell("profiles", "add", "one", "--url", "http://127.0.0.1:1", "--api-key", key["key"])
    assert shell.json("auth", "whoami")["principal"] == "developer"
    shell("profiles", "add", "one", "--url", shell.url, "--api-key", key["key"])
    assert shell.json("auth", "whoami")["principal"] == f"key:{key['id']}"
    assert shell("auth", "whoami", SYROS_API_KEY="syr_wrong")[0] == 4


@pytest.mark.parametrize("text", ["current = [", "profiles = 3", "[profiles.a]\nsecret = 1"])
def test_a_broken_file_of_profiles_is_said(shell: Shell, text: str) -> None:
    shell.config.parent.mkdir()
    shell.config.write_text(text)
    code, _, err = shell("locks", "get", "a")
    assert code == 2
    assert str(shell.config) in err


@pytest.fixture
def alice(database: None) -> Iterator[str]:
    user = User.objects.create_user("alice-of-the-cli", password="correct horse")
    yield user.username
    user.delete()


def test_a_login_is_kept_and_renewed_and_ended(shell: Shell, alice: str) -> None:
    assert shell("login", "--username", alice, stdin="wrong\n")[0] == 4
    assert not shell.config.exists()
    assert shell("login", "--username", alice, stdin="correct horse\n")[:2] == (0, "")
    assert shell.json("auth", "whoami")["principal"] == f"user:{alice}"
    tokens = shell.config.parent / "tokens-default.json"
    assert tokens.stat().st_mode & 0o777 == 0o600
    kept = json.loads(tokens.read_text())
    tokens.write_text(json.dumps({**kept, "access": "stale", "expires_at": time.time() + 30}))
    assert shell.json("auth", "whoami")["principal"] == f"user:{alice}"
    assert json.loads(tokens.read_text())["access"] not in {"stale", kept["access"]}
    assert shell("logout")[:2] == (0, "")
    assert shell.json("auth", "whoami")["principal"] == "developer"
    assert shell("logout")[0] == 2


def test_a_login_that_is_over_is_said(shell: Shell, alice: str) -> None:
    shell("login", "--username", alice, stdin="correct horse\n")
    tokens = shell.config.parent / "tokens-default.json"
    tokens.write_text(json.dumps({**json.loads(tokens.read_text()), "refresh": "over", "expires_at": 0}))
    code, _, err = shell("auth", "whoami")
    assert code == 4
    assert "token_invalid" in err


# -- following ---------------------------------------------------------------------------------------


class following:
    """`syros events follow` in a process of its own: the events it prints."""

    def __init__(self, shell: Shell, *line: str) -> None:
        self._process = shell.start("events", "follow", "--json", *line, stdout=subprocess.PIPE)

    def __enter__(self) -> Iterator[Any]:
        assert self._process.stdout
        items = (json.loads(line) for line in self._process.stdout)
        return (item["event"] for item in items if "event" in item)

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()


def test_follow_prints_what_comes(shell: Shell, lane: Door) -> None:
    process = shell.start("events", "follow", stdout=subprocess.PIPE)
    assert process.stdout
    try:
        assert json.loads(process.stdout.readline()) == {"heartbeat": {"position": 0}}
        lane("events.append", stream_id="s", event_type="T", data="\u2028 a line\u0085 of its own")
        event = json.loads(process.stdout.readline())["event"]
        assert (event["position"], event["data"]) == (1, "\u2028 a line\u0085 of its own")
        process.send_signal(2)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.communicate()


def test_follow_is_refused_what_is_beyond_the_log(shell: Shell) -> None:
    code, _, err = shell("events", "follow", "--from-position", "99")
    assert code == 1
    assert "position_ahead" in err


class Cutting(ThreadingHTTPServer):
    """A proxy that ends every stream after some bytes, and then is away for some seconds."""

    def __init__(self, target: int, size: int, away: float = 0.0) -> None:
        self.target, self.size, self.away, self.asked, self.back_at = target, size, away, 0, 0.0
        super().__init__(("127.0.0.1", 0), Cut)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Cut(BaseHTTPRequestHandler):
    server: Cutting

    def do_GET(self) -> None:
        import httpx

        if time.monotonic() < self.server.back_at:
            return
        self.server.asked += 1
        headers = {"Syros-Namespace": self.headers["Syros-Namespace"]}
        url, left = f"http://127.0.0.1:{self.server.target}{self.path}", self.server.size
        with httpx.stream("GET", url, headers=headers, timeout=10) as response:
            self.send_response(response.status_code)
            self.send_header("Content-Type", response.headers["Content-Type"])
            self.end_headers()
            if not response.headers["Content-Type"].startswith("text/event-stream"):
                self.wfile.write(response.read())
                return
            for chunk in response.iter_raw():
                self.wfile.write(chunk[:left])
                left -= len(chunk)
                if left <= 0:
                    self.server.back_at = time.monotonic() + self.server.away
                    return

    def log_message(self, *args: Any) -> None:
        pass


def test_a_stream_that_is_cut_again_and_again_loses_and_repeats_nothing(
    served: Served, namespace: str, lane: Door
) -> None:
    for number in range(40):
        lane("events.append", stream_id="s", event_type="T", data=number)
    proxy = Cutting(served.port, 2500)  # some seven events, and a part of one
    found: list[int] = []
    try:
        with Client(f"http://127.0.0.1:{proxy.server_port}", namespace=namespace) as client:
            for kind, value in client.stream("events.follow", {"from_position": 1}):
                if kind == "event":
                    found.append(value["data"])
                if len(found) == 40:
                    break
        assert found == list(range(40))
        assert proxy.asked > 3
    finally:
        proxy.shutdown()
        proxy.server_close()


def started(door: Door, *steps: Any, **more: Any) -> str:
    return str(door("sagas.start", name="watched", steps=list(steps), **more)["saga_id"])


NAP = {"name": "nap", "kind": "sleep", "seconds": 0}
CALL = {"service": "shop", "action": "do"}


def test_watch_tells_a_saga_from_its_start_to_its_end(shell: Shell, lane: Door) -> None:
    saga_id = started(lane, {"name": "go", "kind": "signal"}, {**NAP, "name": "afterwards"})
    process = shell.start("sagas", "watch", saga_id, stdout=subprocess.PIPE)
    assert process.stdout
    try:
        assert process.stdout.readline().split()[2:] == ["saga", "started"]
        assert re.search(r" go          waiting  until \d", process.stdout.readline())
        lane("sagas.signal", saga_id=saga_id, signal="go")
        rest = [line.split()[2:4] for line in process.stdout]
        assert rest == [
            ["saga", "signalled"],
            ["go", "succeeded"],
            ["afterwards", "waiting"],
            ["afterwards", "succeeded"],
            ["saga", "succeeded"],
        ]
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def test_watch_gives_programs_the_events(shell: Shell, lane: Door) -> None:
    saga_id = started(lane, NAP)
    code, out, _ = shell("sagas", "watch", saga_id, "--json")
    found = [json.loads(line)["event"] for line in out.splitlines()]
    assert code == 0
    assert [each["position"] for each in found] == [
        each["position"] for each in lane("sagas.history", saga_id=saga_id)["events"]
    ]
    assert found[-1]["event_type"] == "saga.succeeded"


def failed(door: Door, code: str) -> None:
    """A worker has a task, and says that it failed."""
    deadline = time.monotonic() + 10
    while not (tasks := door("workers.poll", service="shop", worker_id="w")["tasks"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lease = {name: tasks[0][name] for name in ("task_id", "lease_token")}
    door("tasks.fail", **lease, code=code, message="Not today.")


@pytest.mark.parametrize(("is_pivot_passed", "code"), [(False, 11), (True, 13)])
def test_the_exit_code_says_how_a_saga_ended_and_the_line_why(
    shell: Shell, lane: Door, is_pivot_passed: bool, code: int
) -> None:
    first = {**CALL, "name": "pay", "pivot": True} if is_pivot_passed else NAP
    saga_id = started(lane, first, {**CALL, "name": "send"})
    if is_pivot_passed:
        (task,) = lane("workers.poll", service="shop", worker_id="w", wait_seconds=10)["tasks"]
        lane("tasks.complete", task_id=task["task_id"], lease_token=task["lease_token"])
    failed(lane, "closed")
    found, out, _ = shell("sagas", "watch", saga_id)
    assert found == code
    assert re.search(r" send  failed  attempt 1  closed: Not today\.$", out, re.MULTILINE)


def test_watch_goes_on_after_what_a_human_has_helped(shell: Shell, lane: Door) -> None:
    saga_id = started(lane, {**CALL, "name": "send", "pivot": True}, {**CALL, "name": "tell"})
    (task,) = lane("workers.poll", service="shop", worker_id="w", wait_seconds=10)["tasks"]
    lane("tasks.complete", task_id=task["task_id"], lease_token=task["lease_token"])
    failed(lane, "closed")
    lane("sagas.pause", saga_id=saga_id)
    lane("sagas.resume", saga_id=saga_id)
    assert shell("sagas", "watch", saga_id)[0] == 13
    lane("steps.skip", saga_id=saga_id, step="tell", reason="they know")
    code, out, _ = shell("sagas", "watch", saga_id)
    assert (code, "saga  attention" in out, "they know" in out) == (0, True, True)


def test_watch_of_a_terminated_and_of_a_compensated_saga(shell: Shell, lane: Door) -> None:
    saga_id = started(lane, {**NAP, "seconds": 60})
    lane("sagas.terminate", saga_id=saga_id, reason="enough")
    assert shell("sagas", "watch", saga_id)[0] == 12
    saga_id = started(lane, {**CALL, "name": "a", "compensation": "undo"}, {**NAP, "seconds": 60})
    for _ in range(2):
        (task,) = lane("workers.poll", service="shop", worker_id="w", wait_seconds=10)["tasks"]
        lane("tasks.complete", task_id=task["task_id"], lease_token=task["lease_token"])
        if task["op"] == "action":
            lane("sagas.cancel", saga_id=saga_id, reason="enough")
    code, out, _ = shell("sagas", "watch", saga_id)
    assert code == 10
    assert re.search(r" a     compensation succeeded  attempt 1$", out, re.MULTILINE)


def test_watch_of_what_is_not_there(shell: Shell) -> None:
    code, out, err = shell("sagas", "watch", "nothing")
    assert (code, out) == (5, "")
    assert "saga_not_found" in err


def test_watch_survives_a_syros_that_goes_away(shell: Shell, served: Served, lane: Door) -> None:
    saga_id = started(lane, *({**NAP, "name": f"s{number}"} for number in range(10)))
    proxy = Cutting(served.port, 4000, away=0.6)
    try:
        code, out, _ = shell(
            "--url", f"http://127.0.0.1:{proxy.server_port}", "sagas", "watch", saga_id, "--json"
        )
        found = [json.loads(line)["event"]["version"] for line in out.splitlines()]
        assert (code, found) == (0, list(range(1, 23)))
        assert proxy.back_at > 0
    finally:
        proxy.shutdown()
        proxy.server_close()


# -- trying again ------------------------------------------------------------------------------------


class Scripted(ThreadingHTTPServer):
    """Gives these answers one after another, and notes the Idempotency-Keys."""

    def __init__(self, *answers: tuple[int, str, dict[str, str]]) -> None:
        self.answers, self.keys = list(answers), []
        super().__init__(("127.0.0.1", 0), Script)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.server_port}")


class Script(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.keys.append(self.headers["Idempotency-Key"])
        status, body, headers = self.server.answers.pop(0)
        if not status:  # the connection breaks
            return
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: Any) -> None:
        pass


def problem(
    status: int, code: str, *, retryable: bool = False, **headers: str
) -> tuple[int, str, dict[str, str]]:
    text = json.dumps({"status": status, "code": code, "detail": "…", "retryable": retryable})
    return status, text, {name.replace("_", "-"): value for name, value in headers.items()}


DONE = (200, '{"released": true}', {})
RELEASE = ("locks.release", {"key": "a", "lock_id": "x"})


@pytest.mark.parametrize(
    "first",
    [
        problem(503, "unavailable", retryable=True, Retry_After="1"),
        problem(503, "outcome_unknown"),
        (0, "", {}),
        (502, "<html>", {}),
    ],
)
def test_what_may_succeed_later_is_sent_again_with_the_same_key(
    first: tuple[int, str, dict[str, str]],
) -> None:
    server = Scripted(first, DONE)
    started = time.monotonic()
    with server, server.client as client:
        assert client.call(*RELEASE) == {"released": True}
        server.shutdown()
    assert len(set(server.keys)) == 1
    assert server.keys[0]
    assert len(server.keys) == 2
    if "Retry-After" in first[2]:
        assert time.monotonic() - started >= 1


def test_what_is_refused_for_good_is_not_sent_again() -> None:
    server = Scripted(problem(409, "lock_not_held"), DONE)
    with server, server.client as client:
        with pytest.raises(Refused, match="lock_not_held"):
            client.call(*RELEASE)
        server.shutdown()
    assert len(server.keys) == 1


def test_who_is_told_to_come_back_much_later_is_told_so() -> None:
    server = Scripted(problem(503, "unavailable", retryable=True, Retry_After="3600"), DONE)
    with server, server.client as client:
        with pytest.raises(Refused, match="unavailable"):
            client.call(*RELEASE)
        server.shutdown()
    assert len(server.keys) == 1


def test_what_is_never_sent_again_leaves_no_answer_to_keep() -> None:
    server = Scripted(DONE, DONE)
    with server, server.client as client:
        client.call(*RELEASE, pauses=())
        client.call(*RELEASE, pauses=(), idempotency_key="mine")
        server.shutdown()
    assert server.keys == [None, "mine"]


def test_it_is_tried_a_few_times_only() -> None:
    server = Scripted(*[(0, "", {})] * 9)
    with server, server.client as client:
        with pytest.raises(Unavailable):
            client.call(*RELEASE, pauses=(0.01, 0.01))
        server.shutdown()
    assert len(server.keys) == 3


# -- waiting for a lock, longer than a request may ---------------------------------------------------


def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def test_a_program_runs_beside_others_under_a_shared_lock_or_a_permit(shell: Shell, lane: Door) -> None:
    lane("locks.acquire", key="r", owner="other", mode="shared")
    assert shell("lock", "r", "--shared", "--", "true")[0] == 0
    code, _, err = shell("lock", "r", "--", "true")
    assert (code, "lock_held" in err) == (1, True)
    lane("locks.acquire", key="s", owner="other", capacity=3)
    assert shell("lock", "s", "--capacity", "3", "--permits", "2", "--", "true")[0] == 0
    assert "capacity_mismatch" in shell("lock", "s", "--capacity", "4", "--", "true")[2]


def test_who_waits_longer_than_a_request_may_asks_again(
    served: Served, namespace: str, lane: Lane, later: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LONGEST_WAIT", 0.3)
    held = lane("locks.acquire", key="a", owner="alice")
    with Client(f"http://127.0.0.1:{served.port}", namespace=namespace) as client:
        waiting = later(lock.acquire, client, "a", "bob", 2.0, 30.0)

        def withdrawn() -> int:
            events = lane("events.read", stream_id="$lock:a").value["events"]
            return sum(event["event_type"] == "lock.withdrawn" for event in events)

        until(lambda: withdrawn() >= 2)
        lane("locks.release", key="a", lock_id=held["lock_id"])
        lease = waiting.result()
        assert lease.grant["owner"] == "bob"
        assert lease.end_at < lock.now() + 2.0
        lease.release()
    assert not lane("locks.get", key="a")["is_locked"]


class Unconfirmed(Client):
    """Its first renewal ends so."""

    failure: BaseException | None

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        if name == "locks.renew" and self.failure:
            failure, self.failure = self.failure, None
            raise failure
        return super().call(name, *args, **options)


@pytest.mark.parametrize("failure", [SystemExit(143), Unavailable("no answer")])
def test_a_grant_that_is_not_confirmed_is_given_back(
    served: Served, namespace: str, lane: Lane, later: Callable[..., Any], failure: BaseException
) -> None:
    """Also when it was waited for longer than its TTL: the server's lease began when it was granted."""
    held = lane("locks.acquire", key="a", owner="alice")
    with Unconfirmed(f"http://127.0.0.1:{served.port}", namespace=namespace) as client:
        client.failure = failure
        waiting = later(lock.acquire, client, "a", "bob", 1.0, 30.0)
        until(lambda: lane("locks.get", key="a")["queue_length"])
        time.sleep(1.1)
        lane("locks.release", key="a", lock_id=held["lock_id"])
        if isinstance(failure, SystemExit):
            with pytest.raises(SystemExit):
                waiting.result()
        else:  # and asked for again, with nobody in the way
            waiting.result().release()
    events = lane("events.read", stream_id="$lock:a").value["events"]
    happened = [event["event_type"].removeprefix("lock.") for event in events]
    first, again = ["acquired", "queued", "released", "acquired", "released"], ["acquired", "released"]
    assert happened == first + again * isinstance(failure, Unavailable)


def test_a_lease_is_reckoned_from_the_request_that_was_confirmed(served: Served, namespace: str) -> None:
    with Client(f"http://127.0.0.1:{served.port}", namespace=namespace) as client:
        before = lock.now()
        lease = lock.acquire(client, "a", "alice", 10.0, 0.0)
        answered = lock.now()
        assert before + 9 <= lease.end_at <= answered + 9
        assert lease.ask_at == pytest.approx(lease.end_at - 2)
        lease.renew()
        assert answered + 9 <= lease.end_at <= lock.now() + 9
        lease.release()
        lease.renew()
        assert "released" in lease.lost


def test_a_slow_answer_makes_no_lease_longer() -> None:
    class Slow:
        def call(self, *args: Any, **options: Any) -> Any:
            time.sleep(0.5)
            return {}

    lease = lock.Lease(Slow(), {"key": "a", "lock_id": "x"}, 10.0, lock.now() - 3)  # type: ignore[arg-type]
    before = lock.now()
    lease.renew()
    assert before <= lease.sent_at < before + 0.25
