"""`scripts/gpu_agent.py`: its server, what it tells Prometheus, and the script as a process."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

import gpu_agent
from agent import server
from agent.metrics import metrics_text
from agent.server import MAX_CONNECTIONS, Agent, ListenError, serving
from harness.scripted_driver import GPU_IS_LOST, Card, ScriptedDriver, nvml_over, pynvml_path
from ollama_pack.routing.probe.gpu_nvml import GpuReader
from ollama_pack.routing.probe.gpus import Gpu, GpuReport, agent_load, read_agent
from ollama_pack.services.metrics_text import METRICS_TYPE

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_agent.py"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
GIB = 2**30
A100 = Gpu(0, "NVIDIA A100", 37.0, 5 * GIB, 80 * GIB, 41, 61.5)
LOST = Gpu(1, "", None, None, None, fault="GPU is lost")
NO_GPU = GpuReport(reason="no driver")
PATHS = ("/", "/api/system/load", "/metrics")
LONG = 60.0  # for what is to be found by its effect, never by its time


class Figures:
    """A reader that gives what a test says.

    Attributes:
        reads: how often it was asked.
    """

    def __init__(self, report: GpuReport) -> None:
        self.report = report
        self.reads = 0

    async def read(self) -> GpuReport:
        self.reads += 1
        return self.report


# --- Prometheus ---

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_HELP = re.compile(rf"# HELP ({_NAME}) (.+)")
_TYPE = re.compile(rf"# TYPE ({_NAME}) (counter|gauge|histogram|summary|untyped)")
_SAMPLE = re.compile(rf"({_NAME})(?:\{{(.*)\}})? ([^ ]+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse_metrics(text: str) -> Series:
    """The series in Prometheus' text format 0.0.4, read strictly: anything that it does not allow fails.

    https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    assert text.endswith("\n")
    found: Series = {}
    families: list[str] = []
    lines = iter(text.removesuffix("\n").split("\n"))
    for line in lines:
        if line.startswith("#"):
            (name, _), (typed, _) = matched(_HELP, line), matched(_TYPE, next(lines))
            assert name == typed
            assert name not in families, "a family in two places"
            families.append(name)
            continue
        name, labels, value = matched(_SAMPLE, line)
        assert name == families[-1], "a sample outside of its family"
        key = name, labels_in(labels or "")
        assert key not in found, "a series twice"
        found[key] = float(value)
    assert {name for name, _ in found} == set(families), "a family without a sample"
    return found


def matched(pattern: re.Pattern[str], line: str) -> tuple[Any, ...]:
    match = pattern.fullmatch(line)
    assert match, line
    return match.groups()


def labels_in(text: str) -> tuple[tuple[str, str], ...]:
    pairs, end = [], 0
    while end < len(text):
        match = _LABEL.match(text, end)
        assert match, text
        plain = re.sub(r"\\(.)", lambda escape: {"n": "\n"}.get(escape[1], escape[1]), match[2])
        pairs.append((match[1], plain))
        end = match.end()
    assert len(dict(pairs)) == len(pairs), "a label twice"
    return tuple(pairs)


def test_metrics() -> None:
    """Would catch a metric in another unit, of another name, or one for a figure that is not known."""
    gpu0, gpu1 = (("gpu", "0"),), (("gpu", "1"),)
    assert parse_metrics(metrics_text(GpuReport((A100, LOST)), "1.2.3")) == {
        ("ollama_pack_gpu_agent_info", (("version", "1.2.3"),)): 1,
        ("ollama_pack_gpus", ()): 2,
        ("ollama_pack_gpu_info", (*gpu0, ("name", "NVIDIA A100"))): 1,
        ("ollama_pack_gpu_up", gpu0): 1,
        ("ollama_pack_gpu_up", gpu1): 0,
        ("ollama_pack_gpu_utilization_ratio", gpu0): 0.37,
        ("ollama_pack_gpu_memory_used_bytes", gpu0): 5 * GIB,
        ("ollama_pack_gpu_memory_total_bytes", gpu0): 80 * GIB,
        ("ollama_pack_gpu_temperature_celsius", gpu0): 41,
        ("ollama_pack_gpu_power_watts", gpu0): 61.5,
    }


def test_metrics_without_a_gpu() -> None:
    """Would catch a scrape that fails, or says nothing, where there is no GPU."""
    assert parse_metrics(metrics_text(NO_GPU, "1.2.3")) == {
        ("ollama_pack_gpu_agent_info", (("version", "1.2.3"),)): 1,
        ("ollama_pack_gpus", ()): 0,
    }


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.floats(0, 100),
    st.integers(0, 2**50),
)
def test_metrics_say_exactly_what_was_read(name: str, percent: float, total: int) -> None:
    """Would catch a name that breaks out of its quotes, or memory that is rounded to some digits."""
    gpu = Gpu(0, name, percent, None, total)
    found = parse_metrics(metrics_text(GpuReport((gpu,)), "1"))
    assert ("ollama_pack_gpu_info", (("gpu", "0"), ("name", name))) in found
    gpu0 = (("gpu", "0"),)
    assert found["ollama_pack_gpu_memory_total_bytes", gpu0] == total
    assert found["ollama_pack_gpu_utilization_ratio", gpu0] == percent / 100


# --- the server ---


async def ask(agent: Agent, *asked: tuple[str, str]) -> list[tuple[int, dict[str, str], str]]:
    """Status, headers and body for each method and path."""
    found = []
    async with serving(agent, "127.0.0.1", 0) as [(host, port)], aiohttp.ClientSession() as session:
        for method, path in asked:
            async with session.request(method, f"http://{host}:{port}{path}", data=None) as response:
                found.append((response.status, dict(response.headers), await response.text()))
    return found


def agent_of(reader: server.Reader, clock: Callable[[], float] = lambda: 0.0) -> Agent:
    return Agent(reader, "gpu0", "1.2.3", clock=clock)


def test_what_it_answers() -> None:
    """Would catch an address with another content, or of another type."""
    report = GpuReport((A100, LOST))
    about, load, metrics = asyncio.run(ask(agent_of(Figures(report)), *(("GET", path) for path in PATHS)))
    assert [status for status, _, _ in (about, load, metrics)] == [200, 200, 200]
    assert json.loads(load[2]) == agent_load("gpu0", report)
    assert load[1]["Content-Type"].startswith("application/json")
    assert metrics[2] == metrics_text(report, "1.2.3")
    assert metrics[1]["Content-Type"] == METRICS_TYPE == "text/plain; version=0.0.4; charset=utf-8"
    assert {headers["Connection"] for _, headers, _ in (about, load, metrics)} == {"close"}
    assert "gpu_agent 1.2.3" in about[2]
    assert all(path in about[2] for path in PATHS)


def test_it_only_reads() -> None:
    """Would catch a method or an address that does something, or an answer that does not say what to do."""
    asked = [
        *((method, path) for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS") for path in PATHS),
        ("GET", "/api"),
        ("GET", "/metrics/"),
        ("POST", "/../etc/passwd"),
        ("HEAD", "/metrics"),
    ]
    figures = Figures(NO_GPU)
    found = asyncio.run(ask(agent_of(figures), *asked))
    assert [status for status, _, _ in found] == [405] * 15 + [404] * 3 + [200]
    assert {headers["Allow"] for _, headers, _ in found[:15]} == {"GET, HEAD"}
    assert found[-1][2] == ""
    assert figures.reads == 1


def test_one_reading_serves_all_for_half_a_second() -> None:
    """Would catch a driver that is asked as often as anybody likes, or figures that stay for ever."""
    now, figures = 0.0, Figures(NO_GPU)

    async def reads() -> list[int]:
        nonlocal now
        agent, counts = agent_of(figures, lambda: now), []
        for now in (0.0, 0.4, 0.5, 0.9, 1.1):  # noqa: B007 - the agent's clock reads it
            await agent.report()
            counts.append(figures.reads)
        return counts

    assert asyncio.run(reads()) == [1, 1, 2, 2, 3]


def test_the_router_reads_what_the_driver_told() -> None:
    """Would catch agent and router that do not understand each other: driver, HTTP and back."""
    nvml = nvml_over(ScriptedDriver([Card(b"NVIDIA A100"), Card(fails={"nvmlDeviceGetName": GPU_IS_LOST})]))
    reader = GpuReader(lambda: nvml, seconds=LONG)

    async def read() -> tuple[GpuReport, GpuReport]:
        async with (
            serving(agent_of(reader), "127.0.0.1", 0) as [(host, port)],
            aiohttp.ClientSession() as session,
        ):
            return await reader.read(), await read_agent(f"http://{host}:{port}/", session, LONG)

    direct, through = asyncio.run(read())
    assert direct == through
    assert [gpu.fault for gpu in through.gpus] == ["", "GPU is lost"]


def test_an_agent_without_a_gpu_says_why() -> None:
    """Would catch the agent's reason being lost on the way to the router."""

    async def read() -> GpuReport:
        async with (
            serving(agent_of(Figures(NO_GPU)), "127.0.0.1", 0) as [(host, port)],
            aiohttp.ClientSession() as session,
        ):
            return await read_agent(f"http://{host}:{port}", session, LONG)

    assert re.fullmatch(r"the gpu_agent at http://127\.0\.0\.1:\d+: no driver", asyncio.run(read()).reason)


async def talk(host: str, port: int, said: bytes) -> bytes:
    """All that comes back until the agent ends the connection."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(said)
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def test_connections_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Would catch clients that connect and say nothing using up the machine, or shutting it for good."""

    async def crowd() -> tuple[bytes, bytes]:
        get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        async with serving(agent_of(Figures(NO_GPU)), "127.0.0.1", 0) as [(host, port)]:
            idle = [await asyncio.open_connection(host, port) for _ in range(MAX_CONNECTIONS)]
            refused = await talk(host, port, b"")
            for reader, writer in idle:
                writer.write(get)
                await reader.read()
                writer.close()
                await writer.wait_closed()
            return refused, await talk(host, port, get)

    refused, answered = asyncio.run(crowd())
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert answered.startswith(b"HTTP/1.1 200 ")
    assert caplog.records == []


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: "], ids=["nothing", "half a request"])
def test_a_slow_connection_is_ended(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch connections that are held open for ever by who says nothing, or says it too slowly."""
    monkeypatch.setattr(server, "CONNECTION_SECONDS", 0.05)

    async def wait() -> bytes:
        async with (
            asyncio.timeout(LONG),
            serving(agent_of(Figures(NO_GPU)), "127.0.0.1", 0) as [(host, port)],
        ):
            return await talk(host, port, said)

    assert asyncio.run(wait()) == b""


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 9000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 2000 + b"\r\n",
    ],
    ids=["TLS", "a long line", "a long header", "many headers"],
)
def test_what_is_no_request_is_refused_quietly(said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch a stranger who fills the memory or the log."""

    async def speak() -> bytes:
        async with serving(agent_of(Figures(NO_GPU)), "127.0.0.1", 0) as [(host, port)]:
            return await talk(host, port, said)

    assert b" 400 " in asyncio.run(speak()).split(b"\r\n")[0]
    assert caplog.records == []


def test_a_fault_of_its_own_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Would catch the quiet about strangers' nonsense hiding an error of the agent's."""

    class Broken:
        async def read(self) -> GpuReport:
            raise ZeroDivisionError

    ((status, _, text),) = asyncio.run(ask(agent_of(Broken()), ("GET", "/metrics")))
    assert status == 500
    assert "ZeroDivisionError" not in text
    assert [record.levelname for record in caplog.records] == ["ERROR"]


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", None), ("192.0.2.1", 0), ("a" * 80, 0)])
def test_an_address_that_cannot_be_had(host: str, port: int | None) -> None:
    """Would catch a traceback where one sentence says what to do."""

    async def listen(port: int) -> None:
        async with serving(agent_of(Figures(NO_GPU)), host, port):
            pass

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ListenError) as caught:
        asyncio.run(listen(taken.getsockname()[1] if port is None else port))
    words = "is taken: stop what uses it" if port is None else "this machine has no such address"
    assert words in str(caught.value)
    assert caught.value.is_usage is (port is not None)


# --- the script ---

# Hides the real `pynvml` from the script, which cannot tell it from one that reaches a driver.
SHIM = f"""
import sys
sys.path.append({str(ROOT / "tests")!r})
from harness.scripted_driver import Card, ScriptedDriver, nvml_over
driver = ScriptedDriver([Card(b"NVIDIA A100"), Card(b"NVIDIA L4", percent=4)])
DRIVER
globals().update(vars(nvml_over(driver, {pynvml_path()!r})))
"""
HANGS = "driver.answers.clear()"


def environment(tmp_path: Path, driver: str | None = None) -> dict[str, str]:
    """With a scripted driver, changed by this line; None: with the bindings missing."""
    shim = "raise ModuleNotFoundError('pynvml')" if driver is None else SHIM.replace("DRIVER", driver)
    (tmp_path / "pynvml.py").write_text(shim)
    return os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'src'}"}


def run(tmp_path: Path, *arguments: str, driver: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env=environment(tmp_path, driver),
        capture_output=True,
        text=True,
        check=False,
        timeout=LONG,
    )


@contextmanager
def started(
    tmp_path: Path, *arguments: str, driver: str | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The agent as a process, and its URL."""
    command = [sys.executable, str(SCRIPT), "--port", "0", *arguments]
    with subprocess.Popen(
        command, env=environment(tmp_path, driver), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            first = process.stdout.readline()
            yield process, first.removeprefix("gpu_agent: ").strip()
        finally:
            process.kill()


def end(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str, str]:
    """Send a signal. Gives the exit status, and what was printed and complained about after the URL."""
    process.send_signal(number)
    assert process.stdout is not None
    assert process.stderr is not None
    return process.wait(LONG), process.stdout.read(), process.stderr.read()


def get(url: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False  # a proxy of the environment is not for this machine
        return session.get(url, timeout=LONG)


def test_the_script_tells_of_gpus(tmp_path: Path) -> None:
    """Would catch a script that does not start, listens elsewhere than on loopback, or tells otherwise."""
    with started(tmp_path, driver="") as (process, url):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        load = get(f"{url}/api/system/load").json()
        metrics = parse_metrics(get(f"{url}/metrics").text)
        status, printed, complaints = end(process, signal.SIGTERM)
    assert (status, complaints) == (0, "")
    assert printed == "gpu_agent: GPU 0: NVIDIA A100, 80 GiB\ngpu_agent: GPU 1: NVIDIA L4, 80 GiB\n"
    assert (load["gpu0_usage"], load["gpu1_usage"]) == (37.0, 4.0)
    assert load["nodes"][0]["name"] == socket.gethostname()
    assert metrics["ollama_pack_gpu_agent_info", (("version", VERSION),)] == 1


def test_the_script_without_a_gpu(tmp_path: Path) -> None:
    """Would catch an agent that does not start, or answers without saying why it has nothing to tell."""
    reason = "pynvml is not installed: pip install nvidia-ml-py"
    with started(tmp_path) as (process, url):
        answer = get(f"{url}/api/system/load")
        status, printed, complaints = end(process, signal.SIGINT)
    assert answer.status_code == 200
    assert answer.json()["nodes"][0]["reason"] == reason
    assert (status, printed) == (0, "")
    assert complaints == f"gpu_agent: no GPU: {reason}\n"


def test_the_script_with_a_driver_that_hangs(tmp_path: Path) -> None:
    """Would catch an agent that hangs with its driver, or cannot be ended then."""
    with started(tmp_path, driver=HANGS) as (process, url):
        answer = get(f"{url}/api/system/load").json()
        status, _, _ = end(process, signal.SIGTERM)
    assert "does not answer" in answer["nodes"][0]["reason"]
    assert status == 0


def test_the_script_says_who_can_read_it(tmp_path: Path) -> None:
    """Would catch figures that are open to the network without a word, or a URL that nobody can use."""
    with started(tmp_path, "--host", "0.0.0.0", driver="") as (process, url):  # noqa: S104 - what is tested
        _, _, complaints = end(process, signal.SIGTERM)
    assert url.startswith(f"http://{socket.gethostname()}:")
    note = "everyone who reaches this address can read the GPUs' names and load, and nothing else"
    assert complaints == f"gpu_agent: {note}\n"


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("10.0.0.5", "http://10.0.0.5:9400"),
        ("::1", "http://[::1]:9400"),
        ("::", f"http://{socket.gethostname()}:9400"),
    ],
)
def test_the_url_that_it_prints(address: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch an address that cannot be copied into `agent=`."""
    gpu_agent.announce(GpuReport((A100,)), [(address, 9400)])
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == f"gpu_agent: {url}"
    assert bool(printed.err) == (address != "::1")


def test_once(tmp_path: Path) -> None:
    """Would catch a check on the command line that prints no JSON, or fails where there are GPUs."""
    done = run(tmp_path, "--once", driver="")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["gpu1_usage"] == 4.0


def test_once_without_a_gpu(tmp_path: Path) -> None:
    """Would catch a check on the command line that passes although no GPU can be read."""
    done = run(tmp_path, "--once")
    assert (done.returncode, done.stderr) == (1, "")
    assert "pynvml is not installed" in json.loads(done.stdout)["nodes"][0]["reason"]


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """Would catch a traceback, or success, when another one listens there already."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(tmp_path, "--port", str(port))
    sentence = "is taken: stop what uses it, or choose another with --port"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"gpu_agent: port {port} of 127.0.0.1 {sentence}\n"


def test_a_host_that_is_none(tmp_path: Path) -> None:
    """Would catch a typing error that is reported as anything else."""
    done = run(tmp_path, "--host", "192.0.2.1", "--port", "0")  # kept for documentation: nobody has it
    assert done.returncode == 2
    assert done.stderr == "gpu_agent: --host 192.0.2.1: this machine has no such address\n"


@pytest.mark.parametrize(
    "arguments", [["--host", ""], ["--port", "65536"], ["--port", "-1"], ["--port", "http"], ["--token", "x"]]
)
def test_bad_usage(arguments: list[str]) -> None:
    """Would catch an empty host, which means every address of the machine, or a port that is none."""
    with pytest.raises(SystemExit) as ended:
        gpu_agent.main(arguments)
    assert ended.value.code == 2
