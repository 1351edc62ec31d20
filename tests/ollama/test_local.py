"""Finding, building and running programs on this machine: scripts/local."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.node_contract import wait_until
from local import ollama
from local.processes import ServerStartError, free_port, log_tail, running, wait_until_http

# A server with a child that does not end by itself, as Ollama has runners. It writes the child's id.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""


def python(code: str) -> list[str | Path]:
    return [sys.executable, "-c", code]


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended but was not collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_running_stops_children_too(tmp_path: Path) -> None:
    """Would catch a runner that stays behind and keeps its memory when a test fails."""
    log = tmp_path / "log"
    child = 0

    def fail() -> None:
        nonlocal child
        with running(python(PARENT), env=os.environ, cwd=tmp_path, log=log):
            wait_until(lambda: log.read_text().endswith("\n"))
            child = int(log.read_text())
            assert alive(child)
            raise KeyError(child)

    with pytest.raises(KeyError):
        fail()
    wait_until(lambda: not alive(child))


def test_a_process_that_ignores_the_signal_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a session that hangs on a server that does not stop."""
    monkeypatch.setattr("local.processes.STOP_SECONDS", 0.2)
    log = tmp_path / "log"
    with running(python(STUBBORN), env=os.environ, cwd=tmp_path, log=log) as process:
        wait_until(lambda: "deaf" in log.read_text())
    assert process.returncode == -9


def test_waiting_ends_when_the_server_does(tmp_path: Path) -> None:
    """Would catch a minute of waiting for a server that is dead, or an error without its last words."""
    log = tmp_path / "log"
    url = f"http://127.0.0.1:{free_port()}/"
    code = "raise SystemExit('the port is cursed')"
    with running(python(code), env=os.environ, cwd=tmp_path, log=log) as process:
        with pytest.raises(ServerStartError, match="the port is cursed") as caught:
            wait_until_http(url, process, 30, log)
        assert "ended with status 1" in str(caught.value)


def test_waiting_has_an_end(tmp_path: Path) -> None:
    """Would catch an endless wait for a server that runs and does not answer."""
    log = tmp_path / "log"
    url = f"http://127.0.0.1:{free_port()}/"
    with (
        running(python("import time; time.sleep(600)"), env=os.environ, cwd=tmp_path, log=log) as process,
        pytest.raises(ServerStartError, match=r"did not answer within 0.3 s"),
    ):
        wait_until_http(url, process, 0.3, log)


def test_log_tail(tmp_path: Path) -> None:
    """Would catch an error message with a whole log, or one that fails for want of a log."""
    log = tmp_path / "log"
    assert log_tail(log) == "(empty)"
    log.write_text("\n".join(map(str, range(100))))
    assert log_tail(log, 2) == "98\n99"


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("gpu0", "http://gpu0:11434"),
        ("gpu0:1234", "http://gpu0:1234"),
        (":1234", "http://127.0.0.1:1234"),
        ("0.0.0.0", "http://127.0.0.1:11434"),  # noqa: S104 - read, not bound
        ("0.0.0.0:80", "http://127.0.0.1:80"),
        ("[::]:1234", "http://[::1]:1234"),
        ("http://gpu0", "http://gpu0:80"),
        ("https://gpu0/", "https://gpu0:443"),
        ("https://gpu0:8443/ollama/", "https://gpu0:8443/ollama"),
        (" gpu0 ", "http://gpu0:11434"),
    ],
)
def test_host_url(value: str, url: str) -> None:
    """Would catch a value of OLLAMA_HOST that Ollama's own client understands and we do not."""
    assert ollama.host_url(value) == url


def test_a_bad_host_is_refused() -> None:
    """Would catch a mistyped OLLAMA_HOST that is silently passed over."""
    with pytest.raises(ValueError, match="Port"):
        ollama.host_url("gpu0:many")


def test_found_url_needs_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an address of a server that is not there."""
    dead = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("OLLAMA_HOST", dead)
    assert ollama.found_url() != f"http://{dead}"


def test_found_url_follows_the_environment(real_ollama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a running Ollama that is not found where OLLAMA_HOST says it is."""
    monkeypatch.setenv("OLLAMA_HOST", real_ollama.removeprefix("http://"))
    assert ollama.found_url() == real_ollama


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a build that lands outside the user's cache folder."""
    monkeypatch.delenv("OLLAMA_PACK_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert ollama.cache_dir() == Path("/somewhere/open-webui-ollama-pack/ollama")
    monkeypatch.setenv("OLLAMA_PACK_CACHE", "/elsewhere")
    assert ollama.cache_dir() == Path("/elsewhere/ollama")
    assert ollama.built() is None


def test_the_recipe_builds_the_version_that_is_looked_for() -> None:
    """Would catch a new version in the recipe that `built()` never finds."""
    assert f"\nversion={ollama.VERSION} " in ollama.RECIPE.read_text()


def test_the_recipe_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a build that fails with a riddle on a machine without its tools."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "env", "mkdir"):
        (tools / name).symlink_to(subprocess.check_output(["/usr/bin/which", name], text=True).strip())
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("OLLAMA_PACK_CACHE", str(tmp_path))
    with pytest.raises(ollama.OllamaBuildError, match="needs a Python 3 with pip on the PATH") as caught:
        ollama.build()
    assert caught.value.status == 3


def test_serving_leaves_nothing_behind(real_server: object) -> None:
    """Would catch a server or a runner that outlives its test."""
    assert real_server
    folder = ollama.built()
    if folder is None:
        pytest.skip("only for the built Ollama")
    with ollama.serving(folder, settings={"OLLAMA_NUM_PARALLEL": "2"}) as url:
        assert ollama.answers(url)
    assert not ollama.answers(url)
