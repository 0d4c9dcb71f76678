"""manage.py import_config and export_config, each in a process of its own."""

import subprocess
import sys
from pathlib import Path

from tests.doors import Lane
from tests.test_config import HIDDEN, refusal

ROOT = Path(__file__).resolve().parent.parent


def manage(lane: Lane, *line: str, given: str = "") -> tuple[int, str, str]:
    command = [sys.executable, "manage.py", *line, "--namespace", lane.namespace]
    done = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_a_file_becomes_configuration_and_a_file_again(lane: Lane, tmp_path: Path) -> None:
    lane("config.put", key="app/gone", value=1)
    lane("config.put", key="app/same", value=[1])
    lane("config.put", key="other", value=1)
    file = tmp_path / "app.yaml"
    file.write_text("db: {url: x, ports: [1]}\nsame: [1]\n")
    line = ["import_config", str(file), "--prefix", "app/", "--prune"]
    code, out, _ = manage(lane, *line, "--dry-run")
    told = ['+ app/db: {"url":"x","ports":[1]}', "- app/gone", "2 changes, none made; 1 the same."]
    assert (code, out.splitlines()) == (0, told)
    assert lane("config.get", key="app/gone")["value"] == 1
    assert manage(lane, *line, "--reason", "release 7")[1].splitlines()[-1] == "2 changes; 1 the same."
    assert lane("config.get", key="app/db")["changed_by"] == "system"
    assert lane("config.history", key="app/db")["items"][0]["reason"] == "release 7"
    assert refusal(lane, "config.get", key="app/gone").code == "config_not_found"
    assert lane("config.get", key="app/same")["revision"] == lane("config.get", key="other")["revision"] == 1
    assert manage(lane, *line)[1] == "0 changes; 2 the same.\n"
    code, out, _ = manage(lane, "export_config", "--prefix", "app/", "--format", "toml")
    assert (code, out) == (0, 'same = [\n    1,\n]\n\n[db]\nurl = "x"\nports = [\n    1,\n]\n')


def test_secrets_come_and_go_sealed(lane: Lane) -> None:
    line = ["import_config", "-", "--format", "env", "--secret"]
    code, out, err = manage(lane, *line, given=f"PASSWORD={HIDDEN}\n")
    assert (code, HIDDEN in out + err) == (0, False)
    assert lane("config.get", key="PASSWORD")["secret"] is True
    assert manage(lane, *line, given=f"PASSWORD={HIDDEN}\n")[1] == "0 changes; 1 the same.\n"
    code, out, err = manage(lane, "export_config")
    assert (code, out, err) == (0, "{}\n", "1 secrets are left out.\n")
    assert manage(lane, "export_config", "--reveal")[1] == f"PASSWORD: {HIDDEN}\n"


def test_an_import_holds_to_schemas(lane: Lane) -> None:
    lane("config.put_schema", prefix="n", json_schema={"type": "integer"})
    code, out, err = manage(lane, "import_config", "-", "--format", "yaml", given="a: 1\nn: text\n")
    assert (code, out) == (1, "+ a: 1\n")
    assert "value_does_not_fit" in err
    assert "/value" in err
    code, _, err = manage(lane, "import_config", "-", "--format", "yaml", given="a: [")
    assert (code, "Traceback" in err) == (1, False)


def test_a_file_is_checked_before_anything_is_changed(lane: Lane, tmp_path: Path) -> None:
    line, given = ["import_config", "-", "--format", "yaml"], "a: 1\nb/history: 2\n"
    for more in ([], ["--dry-run"]):
        code, out, err = manage(lane, *line, *more, given=given)
        assert (code, out, "b/history: /key:" in err) == (1, "", True), err
    assert lane("config.find")["items"] == []
    code, _, err = manage(lane, "import_config", str(tmp_path / "none.yaml"))
    assert (code, "cannot be read" in err) == (1, True)


def test_an_export_comes_back_and_takes_no_secret_along(lane: Lane, tmp_path: Path) -> None:
    lane("config.put", key="a.b-c", value={"d": [1.5, None, "é"]})
    lane("config.put", key="pin", value=HIDDEN, secret=True)
    file = tmp_path / "all.yaml"
    file.touch(mode=0o644)
    assert manage(lane, "export_config", "--output", str(file))[0] == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert manage(lane, "import_config", str(file), "--prune")[1] == "0 changes; 1 the same.\n"
    assert lane("config.get", key="pin")["secret"] is True
    line = ["import_config", "-", "--format", "env", "--prune"]
    assert "Names of lines are not keys" in manage(lane, *line, given="A=1\n")[2]
