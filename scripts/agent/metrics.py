"""The GPUs in Prometheus' text format."""

from collections.abc import Callable

from ollama_pack.routing.probe.gpus import Gpu, GpuReport
from ollama_pack.services.metrics_text import Metric, family

AGENT = Metric("gpu_agent_info", "gauge", ("version",), "The agent that tells this.")
GPUS = Metric("gpus", "gauge", (), "GPUs that the driver lists; 0 also when it does not answer.")
GPU = Metric("gpu_info", "gauge", ("gpu", "name"), "What each GPU is.")

# Name without the common beginning, help, value.
_GAUGES: tuple[tuple[str, str, Callable[[Gpu], float | None]], ...] = (
    ("up", "Whether the driver reaches the GPU (1) or has lost it (0).", lambda gpu: not gpu.fault),
    (
        "utilization_ratio",
        "Share of the last sample period in which something ran on the GPU, 0 to 1.",
        lambda gpu: None if gpu.utilization is None else gpu.utilization / 100,
    ),
    ("memory_used_bytes", "GPU memory in use, the driver's own included.", lambda gpu: gpu.memory_used),
    ("memory_total_bytes", "GPU memory.", lambda gpu: gpu.memory_total),
    ("temperature_celsius", "Temperature of the GPU.", lambda gpu: gpu.temperature),
    ("power_watts", "Power that the GPU draws.", lambda gpu: gpu.power),
)


def metrics_text(report: GpuReport, version: str) -> str:
    """The answer to a scrape.

    Args:
        report: the GPUs.
        version: of the pack.
    """
    named = [((str(gpu.index), gpu.name), 1.0) for gpu in report.gpus if gpu.name]
    families = [
        family(AGENT, [((version,), 1.0)]),
        family(GPUS, [((), len(report.gpus))]),
        family(GPU, named),
        *(_gauge(report, *gauge) for gauge in _GAUGES),
    ]
    return "".join(families)


def _gauge(report: GpuReport, name: str, text: str, value: Callable[[Gpu], float | None]) -> str:
    """The gauge of each GPU that has it. Its labels stay the same when the name can no longer be read."""
    values = (((str(gpu.index),), value(gpu)) for gpu in report.gpus)
    samples = [(labels, float(found)) for labels, found in values if found is not None]
    return family(Metric(f"gpu_{name}", "gauge", ("gpu",), text), samples)
