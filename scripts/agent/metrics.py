"""The GPUs in Prometheus' text format 0.0.4: base units, nothing for what is not known."""

from collections.abc import Callable, Iterable, Mapping

from ollama_pack.routing.probe.gpus import Gpu, GpuReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[Mapping[str, str], float]

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
    named = [({"gpu": str(gpu.index), "name": gpu.name}, 1.0) for gpu in report.gpus if gpu.name]
    families = [
        _family("gpu_agent_info", "The agent that tells this.", [({"version": version}, 1.0)]),
        _family(
            "gpus", "GPUs that the driver lists; 0 also when it does not answer.", [({}, len(report.gpus))]
        ),
        _family("gpu_info", "What each GPU is.", named),
        *(_family(f"gpu_{name}", text, _samples(report.gpus, value)) for name, text, value in _GAUGES),
    ]
    return "".join(families)


def _samples(gpus: Iterable[Gpu], value: Callable[[Gpu], float | None]) -> list[Sample]:
    """The gauge of each GPU that has it. Its labels stay the same when the name can no longer be read."""
    values = ((str(gpu.index), value(gpu)) for gpu in gpus)
    return [({"gpu": index}, float(found)) for index, found in values if found is not None]


def _family(name: str, text: str, samples: Iterable[Sample]) -> str:
    full = f"ollama_pack_{name}"
    lines = [f"{full}{_labels(labels)} {value}" for labels, value in samples]
    return "\n".join([f"# HELP {full} {text}", f"# TYPE {full} gauge", *lines, ""]) if lines else ""


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
