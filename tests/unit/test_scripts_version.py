"""Each script says the pack's version, and what it does in the language of who runs it."""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest

from harness.languages import CHINESE, english_in
from package import pack_version

ROOT = Path(__file__).resolve().parents[2]
FOR_DEVELOPERS = {"docs.py", "docs_site.py", "messages.py", "release.py", "run_tests.py"}
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_version(script: str) -> None:
    """Would catch a script that cannot say which version it is, or that starts its work instead."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, "--version"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{script} {pack_version(ROOT)}\n", "")


@pytest.mark.parametrize(
    "called",
    [
        *([script, "--help"] for script in SCRIPTS if script not in FOR_DEVELOPERS),
        *(["federate.py", role, "--help"] for role in ("server", "round", "site")),
        ["federate.py"],
        ["federate.py", "round", "--folder", "nowhere"],
        ["plan.py", "--context", "many"],
        ["gpu_agent.py", "--port", "http"],
        ["doctor.py", "--verbose"],
        ["upload.py", "--only"],
    ],
    ids=" ".join,
)
def test_command_lines_in_chinese(
    called: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Would catch an English sentence in a script's help, or where it was called wrongly."""
    for name, value in CHINESE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", called)
    script = import_module(called[0].removesuffix(".py"))
    with suppress(SystemExit):
        script.main()
    printed = "".join(capsys.readouterr())
    assert re.search("[一-鿿]", printed)
    assert english_in(printed.replace("No such file or directory", "…")) == []
    for said in ("usage:", "options:", "arguments:", "error:", "show ", "default"):
        assert said not in printed


@pytest.mark.parametrize(("encoding", "marked"), [("cp1252", "x node gpu0"), ("utf-8", "✗ node gpu0")])
def test_output_of_any_encoding(encoding: str, marked: str, tmp_path: Path) -> None:
    """Would catch a script that ends half-way with a traceback, as in a pipe on Windows."""
    pack = tmp_path / "pack.yaml"
    pack.write_text(
        "model_provider: {endpoints: [{name: gpu0, url: 'http://127.0.0.1:9'}]}", encoding="utf-8"
    )
    server = {"OPEN_WEBUI_URL": "http://127.0.0.1:9", "OPEN_WEBUI_TOKEN": "sk-nobody"}

    def printed(*options: str, **language: str) -> str:
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / "doctor.py", pack, *options],
            env={"PATH": os.environ["PATH"], "PYTHONIOENCODING": encoding, **server, **language},
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (1, b"")
        return done.stdout.decode(encoding)

    assert marked in printed()
    assert json.loads(printed("--json", LC_ALL="zh_CN.UTF-8"))[0]["subject"] == "部署"
