"""`make demo`, as a person runs it: it walks, leaves the page open, and takes everything away on Ctrl-C."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import requests

from harness.languages import CHINESE, english_in
from local.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, "-u", str(ROOT / "scripts" / "demo.py")]


@contextmanager
def start(port: int, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The demo as it runs. It is ended where a test fails, or that would wait for its end."""
    env = {key: value for key, value in os.environ.items() if key != "ONCE"}
    env |= {"PORT": str(port)} | environment
    with subprocess.Popen(DEMO, env=env, stdout=subprocess.PIPE, text=True) as demo:
        try:
            yield demo
        except BaseException:
            demo.send_signal(signal.SIGINT)
            raise


def folders() -> set[Path]:
    return set((ROOT / ".cache").glob("demo-*"))


def test_walk_and_end() -> None:
    """Would catch a failing step, a missing page, a sentence in English, or servers and files left behind."""
    if find_spec("xllamacpp") is None:
        pytest.skip("the embedded engine is not installed in this environment")
    port, before = free_port(), folders()
    nobody = f"127.0.0.1:{free_port()}"  # so that an Ollama on this machine is left in peace
    with start(port, OLLAMA_HOST=nobody, **CHINESE) as demo:
        assert demo.stdout is not None
        lines = []
        for line in demo.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        page = requests.get(f"http://127.0.0.1:{port}", timeout=30)
        email, password = re.findall(r"(?m)^  管理员： +(\S+) +(\S+)", "".join(lines))[0]
        form = {"email": email, "password": password}
        admin = requests.post(f"http://127.0.0.1:{port}/api/v1/auths/signin", json=form, timeout=30).json()
        headers = {"Authorization": f"Bearer {admin['token']}"}
        config = requests.get(f"http://127.0.0.1:{port}/api/config", headers=headers, timeout=30).json()
        demo.send_signal(signal.SIGINT)
        lines += demo.stdout.readlines()
    printed = "".join(lines)
    assert demo.returncode == 0, printed
    assert printed.count("✓") == 18, printed
    assert "✗" not in printed
    assert english_in(printed) == []
    assert page.ok
    assert f"http://127.0.0.1:{port}/ollama-pack" in printed
    assert config["default_models"] == "gpt-4"
    assert folders() == before
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_port_in_use() -> None:
    """Would catch a traceback, or a minute of waiting, where one sentence says what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with start(port) as demo:
            printed = demo.communicate()[0]
    assert demo.returncode == 1
    sentence = (
        f"Port {port} cannot be used (Address already in use): take another one with `make demo PORT=8090`.\n"
    )
    assert printed == sentence


def test_port_that_is_none() -> None:
    """Would catch a traceback for a mistyped PORT."""
    with start(0) as demo:
        printed = demo.communicate()[0]
    assert (demo.returncode, printed) == (1, "PORT=0 is no port: it is a number from 1 to 65535\n")
