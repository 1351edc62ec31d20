"""GPUs as values, the JSON form in which `GET /api/system/load` tells of them, and reading it from an agent.

What comes from a driver or over the network is bounded here: a figure out of its range counts as not told.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import aiohttp

from ollama_pack.base.messages import message
from ollama_pack.engines.body import json_in
from ollama_pack.engines.failures import node_name

LOAD_PATH = "/api/system/load"
MAX_GPUS = 64  # of one node; those after them are left out
AGENT_BYTES = 256 * 2**10  # of an agent's whole answer; one with 64 GPUs is a tenth of it

_AGENT_OK = 200
_MAX_PERCENT = 100
_MAX_MEMORY = 2**50
_MAX_CELSIUS = 200
_MAX_WATTS = 10_000
_GPU_TEXT_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU at one moment. None: the driver does not tell, or not under MIG, on a vGPU, on unified memory.

    Attributes:
        index: its number on its node, from 0, in the driver's order (`nvidia-smi` shows the same).
        name: such as "NVIDIA H100 80GB HBM3"; empty: not told.
        utilization: percent of the last sample period (a sixth of a second to a second) in which something
            ran on it. It says nothing of how much of the GPU that took.
        memory_used: bytes, including what the driver keeps for itself.
        memory_total: bytes.
        temperature: degrees Celsius.
        power: watts.
        fault: why the driver cannot reach it, such as "GPU is lost"; empty: it can.
    """

    index: int
    name: str
    utilization: float | None
    memory_used: int | None
    memory_total: int | None
    temperature: float | None = None
    power: float | None = None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class GpuReport:
    """The GPUs of one node.

    Attributes:
        gpus: in the order of their index.
        reason: why there are none, and what to do; empty when there are some.
    """

    gpus: tuple[Gpu, ...] = ()
    reason: str = ""


def gpu_usage(gpus_of_nodes: Iterable[Sequence[Gpu]]) -> dict[str, float | None]:
    """Percent of each GPU as `gpu0_usage`, `gpu1_usage` and so on, numbered through over all nodes.

    Args:
        gpus_of_nodes: the GPUs of each node, in the order of the nodes.
    """
    gpus = chain.from_iterable(gpus_of_nodes)
    return {f"gpu{number}_usage": gpu.utilization for number, gpu in enumerate(gpus)}


def gpu_values(gpu: Gpu) -> dict[str, Any]:
    """A GPU in its JSON form: five fields always, the others where there is something to tell."""
    told = {"temperature": gpu.temperature, "power": gpu.power, "fault": gpu.fault or None}
    return {
        "index": gpu.index,
        "name": gpu.name,
        "utilization": gpu.utilization,
        "memory_used": gpu.memory_used,
        "memory_total": gpu.memory_total,
        **{field: value for field, value in told.items() if value is not None},
    }


def gpu_in(value: Mapping[str, Any], index: int) -> Gpu:
    """A GPU from its JSON form, whatever is in it.

    Args:
        value: its fields.
        index: its number where the form has none.
    """
    total = _gpu_figure(value.get("memory_total"), _MAX_MEMORY)
    used = _gpu_figure(value.get("memory_used"), _MAX_MEMORY if total is None else total)
    percent = _gpu_figure(value.get("utilization"), _MAX_PERCENT)
    told = _gpu_figure(value.get("index"), MAX_GPUS - 1)
    return Gpu(
        index if told is None else int(told),
        _gpu_text(value.get("name")),
        None if percent is None else float(percent),
        None if used is None else int(used),
        None if total is None else int(total),
        _gpu_figure(value.get("temperature"), _MAX_CELSIUS),
        _gpu_figure(value.get("power"), _MAX_WATTS),
        _gpu_text(value.get("fault")),
    )


def agent_load(node: str, report: GpuReport) -> dict[str, Any]:
    """What an agent answers: itself as the only node. What it does not know, such as queues, is left out."""
    reason = {"reason": report.reason} if report.reason else {}
    gpus = [gpu_values(gpu) for gpu in report.gpus]
    itself = {"name": node, "healthy": True, "models": [], "gpus": gpus, **reason}
    return {**gpu_usage([report.gpus]), "nodes": [itself]}


def report_in(answer: Any) -> GpuReport:
    """The report in what an agent answered, whatever that is."""
    nodes = answer.get("nodes") if isinstance(answer, dict) else None
    node = nodes[0] if isinstance(nodes, list) and nodes else None
    listed = node.get("gpus") if isinstance(node, dict) else None
    if not isinstance(node, dict) or not isinstance(listed, list):
        return GpuReport(reason=message("answers in a form that is not gpu_agent's: is it one?"))
    gpus: dict[int, Gpu] = {}
    for number, value in enumerate(listed[:MAX_GPUS]):
        if isinstance(value, dict):
            gpu = gpu_in(value, number)
            gpus.setdefault(gpu.index, gpu)
    if gpus:
        return GpuReport(tuple(gpus[index] for index in sorted(gpus)))
    return GpuReport(reason=_gpu_text(node.get("reason")) or message("reports no GPU"))


async def read_agent(
    url: str, session: aiohttp.ClientSession, seconds: float, headers: Mapping[str, str] | None = None
) -> GpuReport:
    """Ask the `gpu_agent` of another machine. Whatever goes wrong is the report's reason.

    Args:
        url: as `agent=` of the node's row has it.
        session: holds the connections. Its timeouts do not apply.
        seconds: for all of it.
        headers: that its gateway wants.
    """
    try:
        async with asyncio.timeout(seconds):
            report = await _ask_agent(url.rstrip("/") + LOAD_PATH, session, headers or {})
    except TimeoutError:
        report = GpuReport(reason=message("does not answer within {seconds:g} s", seconds=seconds))
    except (aiohttp.ClientError, OSError) as error:
        report = GpuReport(
            reason=message("cannot be reached ({kind}): is it started?", kind=type(error).__name__)
        )
    except ValueError:  # an address that cannot be used, an answer that is no JSON
        report = GpuReport(reason=message("sends what is no JSON, or its address cannot be used"))
    if report.gpus:
        return report
    return GpuReport(
        reason=message("the gpu_agent at {url}: {reason}", url=node_name(url), reason=report.reason)
    )


async def _ask_agent(url: str, session: aiohttp.ClientSession, headers: Mapping[str, str]) -> GpuReport:
    whole_time = aiohttp.ClientTimeout(total=None)
    async with session.get(url, headers=headers, timeout=whole_time, allow_redirects=False) as response:
        if response.status != _AGENT_OK:
            return GpuReport(reason=message("answers with status {status}", status=response.status))
        body = b""
        while len(body) <= AGENT_BYTES and (data := await response.content.readany()):
            body += data
    if len(body) > AGENT_BYTES:
        return GpuReport(reason=message("answers with more than {limit} bytes", limit=AGENT_BYTES))
    return report_in(json_in(body.decode()))


def _gpu_figure(value: object, most: float) -> int | float | None:
    """The value where it is a number from 0 to the most; NaN is in no range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value <= most else None


def _gpu_text(value: object) -> str:
    """The value where it is text, without what could upset a terminal, a log or a page."""
    text = value if isinstance(value, str) else ""
    return "".join(character for character in text if character.isprintable())[:_GPU_TEXT_CHARACTERS]
