"""What `gpu_router` on the Pipelines server costs, beside the server's own way to ask the same node.

    uv run bench/pipelines.py            writes bench/results/pipelines.json

Both in turns on one real Pipelines server and one scripted node that answers at once: the router, and the
approach of the server's example `ollama_manifold_pipeline` (one blocking request, its lines handed on). Goal:
at most 1.1 times the example's median, until the first text, until a short answer is whole, and for a long
one as it is streamed. Then 32 streams at once, word by word, and what an unrelated chat waits meanwhile.
"""

import json
import re
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import requests
from rich.console import Console
from rich.table import Table

from harness.openai_engine import EngineAnswer, OpenAIEngine
from harness.openai_wire import MODEL
from local.pipelines import RunningPipelines, pipelines_server

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results/pipelines.json"
WAYS = {"example": f"ollama_manifold.{MODEL}", "router": f"gpu_router.{MODEL}"}
GOAL = 1.1
PAIRS, WARM_UP = 200, 20
LONG_ROUNDS, LONG_WORDS = 15, 1000
STREAMS, STREAM_ROUNDS, STREAM_WORDS, PACE = 32, 5, 100, 0.02

TEXT = re.compile(rb'"content": ?"[^"]')


def main() -> None:
    with OpenAIEngine("vllm") as engine, tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "pipelines").mkdir()
        shutil.copy(ROOT / "pipelines/gpu_router.py", folder / "pipelines")
        shutil.copy(ROOT / "bench/peers/ollama_manifold.py", folder / "pipelines")
        environment = {
            "GPU_ROUTER_NODES": f"engine {engine.url} kind=openai slots={STREAMS * 2}",
            "PEER_URL": engine.url,
            "PEER_MODEL": MODEL,
        }
        with pipelines_server(folder, environment=environment) as server:
            result = measure(server, engine)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def measure(server: RunningPipelines, engine: OpenAIEngine) -> dict[str, Any]:
    """Milliseconds of each way, and the router's in terms of the example's."""
    first: dict[str, list[float]] = {way: [] for way in WAYS}
    streamed: dict[str, list[float]] = {way: [] for way in WAYS}
    whole: dict[str, list[float]] = {way: [] for way in WAYS}
    with requests.Session() as session:
        for number in range(WARM_UP + PAIRS):
            for way, model in WAYS.items():
                began, ended = ask(session, server, model, stream=True)
                unstreamed = ask(session, server, model, stream=False)[1]
                if number >= WARM_UP:
                    first[way].append(began)
                    streamed[way].append(ended)
                    whole[way].append(unstreamed)
        long = long_answers(session, server, engine)
    return {
        "milliseconds_to_the_first_text": compared(first),
        "milliseconds_to_a_streamed_answer": compared(streamed),
        "milliseconds_to_a_whole_answer": compared(whole),
        f"milliseconds_to_{LONG_WORDS}_words_at_once": compared(long),
        f"seconds_of_{STREAMS}_streams_of_{STREAM_WORDS * PACE:g}_s": many_streams(server, engine),
        "goal": GOAL,
    }


def ask(
    session: requests.Session, server: RunningPipelines, model: str, *, stream: bool
) -> tuple[float, float]:
    """Seconds until the first text and until the end."""
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
    began, first = time.perf_counter(), 0.0
    with session.post(f"{server.url}/chat/completions", json=body, stream=True, timeout=120) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines(65536):
            if not first and TEXT.search(line):
                first = time.perf_counter() - began
    if not first:
        raise SystemExit(f"{model} did not answer")
    return first, time.perf_counter() - began


def long_answers(
    session: requests.Session, server: RunningPipelines, engine: OpenAIEngine
) -> dict[str, list[float]]:
    """All words at once: what each line costs the server."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(1 + LONG_ROUNDS):
        for way, model in WAYS.items():
            engine.enqueue(EngineAnswer(["word "] * LONG_WORDS))
            took = ask(session, server, model, stream=True)[1]
            if number:
                times[way].append(took)
    return times


def many_streams(server: RunningPipelines, engine: OpenAIEngine) -> dict[str, Any]:
    """Streams at once as people have them, and how long one more chat waits for its first text."""
    ends: dict[str, list[float]] = {way: [] for way in WAYS}
    others: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(STREAM_ROUNDS):
        for way, model in WAYS.items():
            engine.enqueue(*[EngineAnswer(["word "] * STREAM_WORDS, pause=PACE)] * STREAMS)
            threads = [
                threading.Thread(target=lambda: ends[way].append(_alone(server, model)[1]))  # noqa: B023 - joined below
                for _ in range(STREAMS)
            ]
            for thread in threads:
                thread.start()
            time.sleep(STREAM_WORDS * PACE / 2)  # in the middle of all of them
            others[way].append(_alone(server, model)[0])
            for thread in threads:
                thread.join()
    medians = {way: statistics.median(found) for way, found in ends.items()}
    waits = {way: statistics.median(found) for way, found in others.items()}
    return {
        **{way: round(median, 3) for way, median in medians.items()},
        "ratio": round(medians["router"] / medians["example"], 3),
        "another_chat_ms": {way: round(wait * 1000, 1) for way, wait in waits.items()},
    }


def _alone(server: RunningPipelines, model: str) -> tuple[float, float]:
    with requests.Session() as session:
        return ask(session, server, model, stream=True)


def compared(times: dict[str, list[float]]) -> dict[str, float]:
    medians = {way: statistics.median(found) * 1000 for way, found in times.items()}
    paired = [ours - theirs for theirs, ours in zip(times["example"], times["router"], strict=True)]
    return {
        **{way: round(median, 3) for way, median in medians.items()},
        "added": round(statistics.median(paired) * 1000, 3),
        "ratio": round(medians["router"] / medians["example"], 3),
    }


def show(result: dict[str, Any]) -> None:
    for what, told in result.items():
        if isinstance(told, dict):
            table = Table(*told, title=what.replace("_", " "))
            table.add_row(*(str(value) for value in told.values()))
            Console(width=120).print(table)


if __name__ == "__main__":
    main()
