"""What `gpu_router` adds to a chat through Open WebUI, beside Open WebUI's own way to the same node.

    uv run bench/pipe.py            writes bench/results/pipe.json

Both ways in turns, on one real Open WebUI and one scripted node that answers at once; both models have a
row that everybody may read, as plain users need it. Goals: at most 2 ms more until the answer (median), and
at most 10 % more CPU of the server for each streamed token, as they come one by one (the worst case, all at
once, is told too).

Then chats of a second (a node at 50 tokens a second) while 50 requests a second ask for `/api/system/load`,
in turns with chats while nobody asks, and while as many ask for Open WebUI's own `/health`, which is the
least that a request costs there: at most 5 % slower. The same with a node that takes no time: what is slower
then is Open WebUI's one event loop, as nothing of such a chat waits.
"""

import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from rich.console import Console
from rich.table import Table

from harness.fixtures_webui import upload
from harness.ollama_node import Answer, Model, OllamaNode
from harness.server_process import server_at
from local.webui import RunningWebUI, connections, open_webui

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results/pipe.json"
WAYS = {"native": "llama3:8b", "routed": "gpu_router.llama3:8b"}
PAIRS, WARM_UP = 300, 20
ROUNDS, TOKENS, PACE = 5, 5_000, 0.001
ASKED_RATE, ASKED_SECONDS, ASKED_TURNS = 50.0, 10.0, 3
ASKED = {"alone": "", "load": "/api/system/load", "health": "/health"}
SECOND = Answer(["word "] * 40, delay=0.2, pause=0.02)  # 1,000 tokens at 5,000 a second, then 40 at 50
PACK = """\
plugins: [gpu_router, ollama_pack_events]
model_provider: {{endpoints: [{{name: gpu0, url: "{url}", slots: 8}}]}}
"""

Ask = Callable[[str], None]


def main() -> None:
    with OllamaNode([Model("llama3:8b")]) as node, tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with open_webui(folder / "webui", environment=connections(ollama=(node.url,))) as webui:
            config = folder / "pack.yaml"
            config.write_text(PACK.format(url=node.url))
            done = upload(webui, str(config))
            if done.returncode:
                raise SystemExit(done.stdout + done.stderr)
            share(webui, WAYS["native"])
            webui.as_admin().models(refresh=True)
            result = measure(webui, node)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def share(webui: RunningWebUI, model: str) -> None:
    """Give a model a row that everybody may read, as the router's own models have one."""
    everybody = {"principal_type": "user", "principal_id": "*", "permission": "read"}
    row = {"id": model, "name": model, "meta": {}, "params": {}, "access_grants": [everybody]}
    webui.as_admin().post("/api/v1/models/create", row)


def measure(webui: RunningWebUI, node: OllamaNode) -> dict[str, Any]:
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {webui.admin.token}"
    url = f"{webui.url}/api/chat/completions"

    def ask(model: str, *, stream: bool, to_first: bool = True) -> float:
        body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
        began = time.perf_counter()
        with session.post(url, json=body, stream=True, timeout=120) as answer:
            answer.raise_for_status()
            lines = answer.iter_lines(65536)
            first = next(lines)
            took = time.perf_counter() - began
            if b"choices" not in first:
                raise SystemExit(f"{model} did not answer: {first[:300]!r}")
            for _ in lines:
                pass
        return took if to_first else time.perf_counter() - began

    def chat_of_a_second() -> float:
        node.enqueue(SECOND)
        return ask(WAYS["routed"], stream=True, to_first=False)

    whole = in_turns(lambda model: ask(model, stream=False))
    first_chunk = in_turns(lambda model: ask(model, stream=True))
    return {
        "milliseconds_to_the_answer": compared(whole, 1000),
        "milliseconds_to_the_first_chunk": compared(first_chunk, 1000),
        "server_microseconds_per_token": compared(cpu_per_token(webui, node, ask, PACE), 1e6),
        "server_microseconds_per_token_of_a_burst": compared(cpu_per_token(webui, node, ask, 0.0), 1e6),
        "milliseconds_of_a_chat_of_a_second_while_asked": while_asked(webui, chat_of_a_second),
        "milliseconds_of_a_chat_of_no_time_while_asked": while_asked(
            webui, lambda: ask(WAYS["routed"], stream=False)
        ),
    }


def while_asked(webui: RunningWebUI, ask: Callable[[], float]) -> dict[str, float]:
    """Chats one after the other, in turns while nobody and while somebody asks for a page all the time."""
    times: dict[str, list[float]] = {kind: [] for kind in ASKED}
    answered = 0
    for _ in range(ASKED_TURNS):
        for kind, page in ASKED.items():
            asker = Asker(webui, page) if page else None
            until = time.perf_counter() + ASKED_SECONDS
            while time.perf_counter() < until:
                times[kind].append(ask())
            answered += asker.stop() if asker else 0
    medians = {kind: statistics.median(found) * 1000 for kind, found in times.items()}
    return {
        **{kind: round(median, 3) for kind, median in medians.items()},
        "load_ratio": round(medians["load"] / medians["alone"], 3),
        "health_ratio": round(medians["health"] / medians["alone"], 3),
        "answered_a_second": round(answered / ASKED_TURNS / ASKED_SECONDS / (len(ASKED) - 1), 1),
    }


class Asker:
    """A process that asks for a page at a steady rate."""

    def __init__(self, webui: RunningWebUI, page: str) -> None:
        self._ended = multiprocessing.Event()
        self._answered = multiprocessing.Value("i", 0)
        arguments = (webui.url + page, webui.admin.token, self._ended, self._answered)
        self._process = multiprocessing.Process(target=ask_for_page, args=arguments)
        self._process.start()

    def stop(self) -> int:
        """End it, and tell how often it was answered."""
        self._ended.set()
        self._process.join()
        return int(self._answered.value)


def ask_for_page(url: str, token: str, ended: Any, answered: Any) -> None:
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {token}"
    due = time.perf_counter()
    while not ended.is_set():
        session.get(url, timeout=30).raise_for_status()
        answered.value += 1
        due += 1 / ASKED_RATE
        time.sleep(max(0.0, due - time.perf_counter()))


def in_turns(ask: Callable[[str], float]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(WARM_UP + PAIRS):
        # Open WebUI tidies up after an answer while the next request comes: each way is next as often.
        ways = list(WAYS.items())[:: 1 if number % 2 else -1]
        for way, model in ways:
            took = ask(model)
            if number >= WARM_UP:
                times[way].append(took)
    return times


def cpu_per_token(
    webui: RunningWebUI, node: OllamaNode, ask: Callable[..., float], pause: float
) -> dict[str, list[float]]:
    """Seconds of the server's CPU, a token; what a request costs besides is a few tokens' worth."""
    server = server_at(int(webui.url.rpartition(":")[2]))
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(1 + ROUNDS):
        for way, model in WAYS.items():
            node.enqueue(Answer(["word "] * TOKENS, pause=pause))
            before = server.cpu_times()
            ask(model, stream=True)
            after = server.cpu_times()
            if number:
                spent[way].append((after.user + after.system - before.user - before.system) / TOKENS)
    return spent


def compared(times: dict[str, list[float]], scale: float) -> dict[str, float]:
    medians = {way: statistics.median(found) * scale for way, found in times.items()}
    pairs = list(zip(times["native"], times["routed"], strict=True))
    return {
        **{way: round(median, 3) for way, median in medians.items()},
        "added": round(statistics.median(routed - native for native, routed in pairs) * scale, 3),
        "ratio": round(statistics.median(routed / native for native, routed in pairs), 3),
    }


def show(result: dict[str, Any]) -> None:
    for what, told in result.items():
        table = Table(*told, title=what.replace("_", " "))
        table.add_row(*(f"{value:g}" for value in told.values()))
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
