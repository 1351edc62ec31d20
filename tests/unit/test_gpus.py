"""GPUs of this machine through NVML, and of another one through its agent."""

import asyncio
import ctypes
import json
import math
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.scripted_driver import (
    GPU_IS_LOST,
    NO_PERMISSION,
    NOT_SUPPORTED,
    UNKNOWN,
    VERSION_MISMATCH,
    Card,
    ScriptedDriver,
    nvml_over,
)
from ollama_pack.routing.probe.gpu_nvml import GpuReader, preload_nvml
from ollama_pack.routing.probe.gpus import (
    AGENT_BYTES,
    LOAD_PATH,
    MAX_GPUS,
    Gpu,
    GpuReport,
    agent_load,
    gpu_usage,
    gpu_values,
    read_agent,
    report_in,
)

GIB = 2**30
A100 = Gpu(0, "NVIDIA A100", 37.0, 5 * GIB, 80 * GIB, 41, 61.5)
LONG = 60.0  # for what is to be found by its effect, never by its time
SHORT = 0.01
COUNT = "nvmlDeviceGetCount_v2"
UNITS = {
    "NO_DRIVER": "no NVIDIA driver (no NVML library): install it",
    "NO_BINDINGS": "pynvml is not installed: pip install nvidia-ml-py",
}


def reader_of(driver: ScriptedDriver, seconds: float = LONG, **options: Any) -> GpuReader:
    nvml = nvml_over(driver)
    return GpuReader(lambda: nvml, seconds=seconds, **options)


def read(driver: ScriptedDriver) -> GpuReport:
    return asyncio.run(reader_of(driver).read())


def readings() -> list[threading.Thread]:
    """The threads in which GPUs are being read."""
    return [thread for thread in threading.enumerate() if thread.name == "gpu-reader"]


def test_two_gpus() -> None:
    """Would catch a figure in another unit, or one of the second GPU's that is the first's."""
    driver = ScriptedDriver(
        [Card(b"NVIDIA A100"), Card(b"NVIDIA L4", percent=4, used=GIB, total=24 * GIB, milliwatts=0)]
    )
    assert read(driver) == GpuReport((A100, Gpu(1, "NVIDIA L4", 4.0, GIB, 24 * GIB, 41, 0.0)))


@pytest.mark.parametrize("function", ["nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUtilizationRates"])
def test_a_lost_gpu_does_not_hide_the_others(function: str) -> None:
    """Would catch a GPU that fell off the bus taking all figures with it, or being told as idle."""
    lost = Card(b"NVIDIA L4", fails={function: GPU_IS_LOST})
    first, gpu, last = read(ScriptedDriver([Card(), lost, Card()])).gpus
    assert (gpu.index, gpu.utilization, gpu.fault) == (1, None, "GPU is lost")
    assert [other.fault for other in (first, last)] == ["", ""]
    assert (first.index, last.index, last.utilization) == (0, 2, 37.0)


def test_mig_tells_no_utilization() -> None:
    """Would catch a GPU under MIG that is told as idle, as broken, or not at all."""
    fails = {"nvmlDeviceGetUtilizationRates": NOT_SUPPORTED, "nvmlDeviceGetMemoryInfo": NO_PERMISSION}
    (gpu,) = read(ScriptedDriver([Card(b"NVIDIA A100", fails=fails)])).gpus
    assert gpu == Gpu(0, "NVIDIA A100", None, None, None, 41, 61.5)


def test_an_old_driver_lacks_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a driver that is taken for broken because it is older than the bindings."""
    monkeypatch.setattr("harness.scripted_driver._FUNCTIONS", {COUNT, *ESSENTIAL})
    (gpu,) = read(ScriptedDriver([Card(b"NVIDIA K80")])).gpus
    assert gpu == Gpu(0, "NVIDIA K80", 37.0, None, None)


ESSENTIAL = (
    "nvmlInitWithFlags",
    "nvmlShutdown",
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetName",
    "nvmlDeviceGetUtilizationRates",
)


def test_a_name_that_is_no_text() -> None:
    """Would catch a driver for WSL, which gives such names, breaking the read."""
    (gpu,) = read(ScriptedDriver([Card(b"\xf8\xff")])).gpus
    assert (gpu.name, gpu.utilization, gpu.fault) == ("", 37.0, "")


def test_figures_out_of_their_range_are_not_told() -> None:
    """Would catch NVML's "not available", which is the highest number there is, shown as a figure."""
    mad = Card(percent=2**32 - 1, used=2**64 - 1, total=2**64 - 1, celsius=2**32 - 1, milliwatts=2**32 - 1)
    assert read(ScriptedDriver([mad])).gpus == (Gpu(0, "NVIDIA Test", None, None, None),)


def test_more_used_than_there_is() -> None:
    """Would catch a GPU that is more than full, which makes its free memory negative."""
    (gpu,) = read(ScriptedDriver([Card(used=81 * GIB)])).gpus
    assert (gpu.memory_used, gpu.memory_total) == (None, 80 * GIB)


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        ("nvmlInitWithFlags", 4, "refuses this user"),
        ("nvmlInitWithFlags", 9, "is not loaded"),
        ("nvmlInitWithFlags", VERSION_MISMATCH, "was updated and the old one still runs"),
        ("nvmlInitWithFlags", UNKNOWN, "the NVIDIA driver fails: Unknown Error"),
        (COUNT, 12345, "the NVIDIA driver fails: NVML Error with code 12345"),
    ],
)
def test_a_driver_that_fails_is_a_reason(function: str, code: int, words: str) -> None:
    """Would catch an exception, or an answer without what to do, where the driver does not work."""
    report = read(ScriptedDriver([Card()], {function: code}))
    assert report.gpus == ()
    assert words in report.reason


def test_no_gpu() -> None:
    """Would catch an empty answer that does not say why it is empty."""
    assert "lists no GPU" in read(ScriptedDriver([])).reason


def test_no_bindings() -> None:
    """Would catch a plugin that breaks inside Open WebUI, which does not install them."""

    def load() -> Any:
        raise ModuleNotFoundError("No module named 'pynvml'")

    reader = GpuReader(load)
    assert asyncio.run(reader.read()) == GpuReport(reason=UNITS["NO_BINDINGS"])
    asyncio.run(reader.close())


def test_this_machine() -> None:
    """Would catch a misuse of the real library: its figures where it is, a clear answer where it is not."""
    report = asyncio.run(GpuReader().read())
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        assert report.gpus == ()
        assert UNITS["NO_DRIVER"] in report.reason
    else:
        assert bool(report.gpus) != bool(report.reason)
        assert all(gpu.fault or gpu.name for gpu in report.gpus)


def test_nvml_is_initialised_once_and_shut_down() -> None:
    """Would catch a reader that initialises for every read, or never lets go."""
    driver = ScriptedDriver([Card()])

    async def reads() -> None:
        reader = reader_of(driver)
        await reader.read()
        await reader.read()
        await reader.close()
        await reader.close()
        assert (await reader.read()).gpus

    asyncio.run(reads())
    counts = {name: driver.calls.count(name) for name in ("nvmlInitWithFlags", COUNT, "nvmlShutdown")}
    assert counts == {"nvmlInitWithFlags": 2, COUNT: 3, "nvmlShutdown": 1}


def test_a_driver_that_comes_late_is_found() -> None:
    """Would catch an agent that has to be restarted because it was started before the driver."""
    driver = ScriptedDriver([Card()], {"nvmlInitWithFlags": 9})

    async def reads() -> GpuReport:
        reader = reader_of(driver)
        assert not (await reader.read()).gpus
        driver.fails.clear()
        return await reader.read()

    assert asyncio.run(reads()).gpus


@pytest.mark.parametrize("function", [COUNT, "nvmlDeviceGetHandleByIndex_v2"])
def test_after_a_failure_of_all_it_begins_anew(function: str) -> None:
    """Would catch a reader that clings to a driver which was reloaded under it."""
    driver = ScriptedDriver([Card()])

    async def reads() -> list[GpuReport]:
        reader = reader_of(driver)
        first = await reader.read()
        driver.fails[function] = UNKNOWN
        second = await reader.read()
        driver.fails.clear()
        return [first, second, await reader.read()]

    first, second, third = asyncio.run(reads())
    assert first == third
    assert second != first
    assert driver.calls.count("nvmlInitWithFlags") == 2


def test_who_asks_at_the_same_time_shares_one_read() -> None:
    """Would catch a read for each asker, which a slow driver turns into a heap of threads."""
    driver = ScriptedDriver([Card()])
    driver.answers.clear()

    async def reads() -> list[GpuReport]:
        reader = reader_of(driver)
        asking = [asyncio.create_task(reader.read()) for _ in range(10)]
        await asyncio.to_thread(driver.entered.wait)
        await asyncio.sleep(0)
        driver.answers.set()
        return await asyncio.gather(*asking)

    reports = asyncio.run(reads())
    assert [report.gpus[0].utilization for report in reports] == [37.0] * 10
    assert driver.calls.count(COUNT) == 1


def test_one_who_stops_asking_does_not_spoil_it_for_the_others() -> None:
    """Would catch a cancelled request that cancels the read which others wait for."""
    driver = ScriptedDriver([Card()])
    driver.answers.clear()

    async def reads() -> GpuReport:
        reader = reader_of(driver)
        leaving, staying = (asyncio.create_task(reader.read()) for _ in range(2))
        await asyncio.to_thread(driver.entered.wait)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert leaving.cancelled()
        driver.answers.set()
        return await staying

    assert asyncio.run(reads()).gpus


def test_bindings_are_loaded_ahead_in_a_thread() -> None:
    """Would catch a plugin that waits for an import when it is loaded, or fails where there is nothing."""
    go, threads, done = threading.Event(), list[threading.Thread](), threading.Event()

    def load() -> None:
        go.wait()
        threads.append(threading.current_thread())
        done.set()
        raise ImportError

    preload_nvml(load)
    assert not threads
    go.set()
    assert done.wait(10)
    assert threads != [threading.main_thread()]
    threads[0].join(10)


def test_a_driver_that_hangs() -> None:
    """Would catch a second read behind a hung one, or an end of the process that waits for it."""
    driver = ScriptedDriver([Card()])
    driver.answers.clear()
    reader = reader_of(driver, SHORT)
    hung = [asyncio.run(reader.read()) for _ in range(3)]  # each ends its loop, as at the end of a process
    asyncio.run(reader.close())
    assert [report.reason for report in hung] == [
        "the NVIDIA driver does not answer within 0.01 s: does it hang?"
    ] * 3
    assert driver.calls == ["nvmlInitWithFlags"]
    (hanging,) = readings()
    driver.answers.set()
    hanging.join()


def test_a_read_that_hung_and_came_back() -> None:
    """Would catch a reader that goes on saying that the driver hangs after it has come back."""
    driver = ScriptedDriver([Card()])
    driver.answers.clear()
    times = iter([0.0, LONG, LONG, LONG])  # the first read begins; a second asks when its time is over

    async def reads() -> tuple[GpuReport, GpuReport]:
        reader = reader_of(driver, clock=lambda: next(times))
        first = asyncio.create_task(reader.read())
        await asyncio.to_thread(driver.entered.wait)
        second = await reader.read()
        driver.answers.set()
        await first
        return second, await reader.read()

    hung, back = asyncio.run(reads())
    assert "does it hang?" in hung.reason
    assert back.gpus


def test_an_error_that_nobody_foresaw_reaches_who_asks() -> None:
    """Would catch a read that never ends because its thread died."""

    def load() -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(GpuReader(load, seconds=LONG).read())


def test_usage_is_numbered_through() -> None:
    """Would catch GPUs of two nodes under one number, or one without a figure that shifts those behind it."""
    unknown = Gpu(1, "", None, None, None, fault="GPU is lost")
    assert gpu_usage([[A100, unknown], [], [A100]]) == {
        "gpu0_usage": 37.0,
        "gpu1_usage": None,
        "gpu2_usage": 37.0,
    }


def test_the_agents_form() -> None:
    """Would catch a field of the public form that is called otherwise, or told without being known."""
    unknown = Gpu(1, "NVIDIA L4", None, None, None, fault="GPU is lost")
    assert agent_load("gpu0", GpuReport((Gpu(0, "NVIDIA A100", 37.0, 5, 80, None, 61.5), unknown))) == {
        "gpu0_usage": 37.0,
        "gpu1_usage": None,
        "nodes": [
            {
                "name": "gpu0",
                "healthy": True,
                "models": [],
                "gpus": [
                    {
                        "index": 0,
                        "name": "NVIDIA A100",
                        "utilization": 37.0,
                        "memory_used": 5,
                        "memory_total": 80,
                        "power": 61.5,
                    },
                    {
                        "index": 1,
                        "name": "NVIDIA L4",
                        "utilization": None,
                        "memory_used": None,
                        "memory_total": None,
                        "fault": "GPU is lost",
                    },
                ],
            }
        ],
    }


def test_the_agents_form_without_a_gpu() -> None:
    """Would catch an empty answer that does not say why it is empty."""
    itself = {"name": "gpu0", "healthy": True, "models": [], "gpus": [], "reason": "no driver"}
    assert agent_load("gpu0", GpuReport(reason="no driver")) == {"nodes": [itself]}


texts = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=200)
optional_memory = st.none() | st.integers(0, 2**50)


@st.composite
def known_gpus(draw: st.DrawFn, index: int) -> Gpu:
    """A GPU as a driver may tell of it."""
    total = draw(optional_memory)
    return Gpu(
        index,
        draw(texts),
        draw(st.none() | st.floats(0, 100)),
        draw(st.none() | st.integers(0, 2**50 if total is None else total)),
        total,
        draw(st.none() | st.integers(0, 200)),
        draw(st.none() | st.floats(0, 10_000)),
        draw(texts),
    )


reports = st.integers(1, 4).flatmap(
    lambda count: st.tuples(*(known_gpus(index) for index in range(count))).map(GpuReport)
)


@settings(deadline=None)
@given(reports | texts.filter(bool).map(lambda reason: GpuReport(reason=reason)))
def test_a_report_comes_through_the_agents_form_unchanged(report: GpuReport) -> None:
    """Would catch a figure that is written in one way and read in another."""
    assert report_in(json.loads(json.dumps(agent_load("gpu0", report)))) == report


json_values: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, -1, 0, 37.5, 2**60, math.nan, "", "GPU\x1b[2J\n\ud800" * 40, [], {}]
)
fields = st.sampled_from([*gpu_values(A100), "fault", "reason", "gpus"])
bent_gpus = st.dictionaries(fields, json_values) | json_values
bent_nodes = st.fixed_dictionaries(
    {}, optional={"gpus": st.lists(bent_gpus, max_size=4), "reason": json_values}
)
bent_answers = (
    st.fixed_dictionaries({}, optional={"nodes": st.lists(bent_nodes | json_values, max_size=2)})
    | json_values
)


@settings(deadline=None)
@given(bent_answers)
def test_whatever_an_agent_answers_is_bounded(answer: Any) -> None:
    """Would catch an agent that breaks the router, or a figure or text of its that upsets what shows it."""
    report = report_in(answer)
    assert bool(report.gpus) != bool(report.reason)
    assert [gpu.index for gpu in report.gpus] == sorted({gpu.index for gpu in report.gpus})
    for gpu in report.gpus:
        assert 0 <= gpu.index < MAX_GPUS
        assert gpu.utilization is None or 0 <= gpu.utilization <= 100
        assert gpu.memory_total is None or 0 <= gpu.memory_total <= 2**50
        assert gpu.memory_used is None or 0 <= gpu.memory_used <= (gpu.memory_total or 2**50)
    for text in (report.reason, *(text for gpu in report.gpus for text in (gpu.name, gpu.fault))):
        assert text.isprintable()
        assert len(text) <= 200


@pytest.mark.parametrize("value", [-1, -0.5, 2**60, 10**400, math.nan, math.inf, True, "37", [37], None])
def test_a_figure_that_is_none_is_not_told(value: Any) -> None:
    """Would catch a figure that cannot be, or is none, being shown and reckoned with."""
    bent = dict.fromkeys(
        ("index", "utilization", "memory_used", "memory_total", "temperature", "power"), value
    )
    assert report_in({"nodes": [{"gpus": [bent]}]}).gpus == (Gpu(0, "", None, None, None),)


def test_two_gpus_of_one_number() -> None:
    """Would catch a GPU that is counted twice, or numbers that come in any order."""
    gpus = [{"index": 1, "name": "b"}, {"index": 0, "name": "a"}, {"index": 1, "name": "c"}, "no GPU"]
    assert [(gpu.index, gpu.name) for gpu in report_in({"nodes": [{"gpus": gpus}]}).gpus] == [
        (0, "a"),
        (1, "b"),
    ]


def test_an_agent_with_too_many_gpus() -> None:
    """Would catch an answer that fills the memory or the page with GPUs."""
    gpus = [{"index": index} for index in range(MAX_GPUS + 9)]
    assert len(report_in({"nodes": [{"gpus": gpus}]}).gpus) == MAX_GPUS


async def ask_agent(answer: bytes, seconds: float, *, ends: bool = True) -> tuple[GpuReport, str, bytes]:
    """What is read of an agent that sends this, and then ends or not. Its address, and what it was asked."""
    asked, ended = b"", asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked = await reader.readuntil(b"\r\n\r\n")
        with suppress(ConnectionError):
            writer.write(answer)
            if not ends:
                await reader.read()  # until the other side gives up
            writer.close()
            await writer.wait_closed()
        ended.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with aiohttp.ClientSession() as session:
            report = await read_agent(url, session, seconds)
        await ended.wait()
    return report, url, asked


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


# What comes, words of the reason.
MALFORMED = {
    "a page": (http(b"<html>"), "sends what is no JSON"),
    "no UTF-8": (http(b'"\xff"'), "sends what is no JSON"),
    "not a number": (http(b'{"nodes": NaN}'), "sends what is no JSON"),
    "too deep": (http(b"[" * 100_000), "sends what is no JSON"),
    "a number too long": (http(b"9" * 10_000), "sends what is no JSON"),
    "too much": (http(b" " * (AGENT_BYTES + 1)), "answers with more than 262144 bytes"),
    "another service": (http(b'{"models": []}'), "answers in a form that is not gpu_agent's"),
    "no node": (http(b'{"nodes": []}'), "answers in a form that is not gpu_agent's"),
    "no GPU": (http(b'{"nodes": [{"gpus": []}]}'), "reports no GPU"),
    "its reason": (http(b'{"nodes": [{"gpus": [], "reason": "no driver"}]}'), "no driver"),
    "an error": (http(b"", "500 Internal Server Error"), "answers with status 500"),
    "a way elsewhere": (http(b"", "302 Found\r\nLocation: http://127.0.0.1:9"), "answers with status 302"),
    "no HTTP": (b"hello\r\n\r\n", "cannot be reached"),
    "an early end": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "cannot be reached"),
    "nothing": (b"", "cannot be reached"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_answer_is_a_reason(case: str) -> None:
    """Would catch an agent that breaks the probing of its node, or a reason that does not name it."""
    answer, words = MALFORMED[case]
    report, url, _ = asyncio.run(ask_agent(answer, LONG))
    assert report.gpus == ()
    assert report.reason.startswith(f"the gpu_agent at {url}: {words}")


def test_an_agent_that_says_nothing() -> None:
    """Would catch a probe that hangs with the agent."""
    report, url, _ = asyncio.run(ask_agent(b"", 0.05, ends=False))
    assert report == GpuReport(reason=f"the gpu_agent at {url}: does not answer within 0.05 s")


def test_an_agent_that_never_ends() -> None:
    """Would catch an agent that fills the memory for as long as the probe has time."""
    endless = b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n" + b" " * (AGENT_BYTES + 1)
    report, _, _ = asyncio.run(ask_agent(endless, LONG, ends=False))
    assert report.reason.endswith("answers with more than 262144 bytes")


def test_an_agent_that_answers() -> None:
    """Would catch a wrong address, or figures that are lost between the socket and the report."""
    body = json.dumps(agent_load("gpu0", GpuReport((A100,)))).encode()
    report, _, asked = asyncio.run(ask_agent(http(body), LONG))
    assert report == GpuReport((A100,))
    assert asked.startswith(f"GET {LOAD_PATH} HTTP/1.1\r\n".encode())


@pytest.mark.parametrize(
    "url", ["http://me:pw@127.0.0.1:9", "ftp://me:pw@a", "http://", "http://[", "gpu0:9400"]
)
def test_an_address_that_cannot_be_used(url: str) -> None:
    """Would catch an exception, or a password in the reason."""

    async def ask() -> GpuReport:
        async with aiohttp.ClientSession() as session:
            return await read_agent(url, session, LONG)

    report = asyncio.run(ask())
    assert report.reason.startswith("the gpu_agent at ")
    assert "pw" not in report.reason


def test_a_cancelled_read_is_cancelled() -> None:
    """Would catch a probe that turns the end of the server into a reason and goes on."""

    async def cancelled(read: Callable[[], Awaitable[GpuReport]]) -> bool:
        task = asyncio.ensure_future(read())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    async def ask() -> bool:
        async with aiohttp.ClientSession() as session:
            return await cancelled(lambda: read_agent("http://127.0.0.1:9", session, LONG))

    assert asyncio.run(ask())
