"""What the gateway adds to a node's own time, next to Open WebUI's native API and LiteLLM's proxy.

    uv run bench/gateway.py                            writes bench/results/gateway.json
    uv run bench/gateway.py --litellm litellm/bin      with LiteLLM, installed as `routing/peers.py` says
    uv run bench/gateway.py --quick                    a tenth of the requests

All ways lead to the same simulated node, which answers at once, and all check a key: Open WebUI's ways an
API key of a plain user, LiteLLM its master key, for which it needs no database. Each server has one worker,
on a core of its own where the machine has two; node and clients share the other. Latencies are taken in
turns, one request after the other, with a pause before each turn: Open WebUI works on after it has answered,
and servers that share a core would pay for each other. The first request of a turn is counted by itself: it
comes seconds after the one before, when access has to be looked up again. Then 16 clients ask at once.

`nothing` is Open WebUI's own `GET /api/version`, which asks no database and no node: what any request through
its server costs on this machine. No plugin can add less.

Goals: `direct` adds at most 3 ms (median) and 8 ms (p99), at most half of what LiteLLM adds, and serves at
least twice its requests a second.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import requests
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

from bench.routing.peers import litellm  # noqa: E402 - the path is set above
from harness.fixtures_routing import API_KEYS, NO_BACKGROUND  # noqa: E402
from harness.fixtures_webui import upload  # noqa: E402
from harness.server_process import server_at  # noqa: E402
from harness.sim_process import simulated_nodes  # noqa: E402
from local.webui import RunningWebUI, connections, open_webui  # noqa: E402

RESULTS = ROOT / "bench/results/gateway.json"
MODEL = "llama3:8b"
NODE = f"gpu0 models={MODEL} slots=1000 max_loaded=1000 load_rate=inf decode_rate=inf echo=true"
TURNS, TURN, QUIET_SECONDS = 40, 11, 0.5  # requests in a turn: the first finds all asleep
CLIENTS, SECONDS = 16, 10.0
TOKENS, STREAMS = 2000, 5
MASTER_KEY = "sk-bench-master"
PACK = """\
plugins: [gpu_router, ollama_pack_events, ollama_pack_gateway]
model_provider:
  endpoints: [{{name: gpu0, url: "{url}", slots: 1000}}]
  models: [{{name: gpt-4, local_name: "llama3:8b"}}]
router: {{max_queue: 1000}}
gateway: {{mode: {mode}}}
"""

JSON = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """One way to the node.

    Attributes:
        url: of the chat route.
        model: that is asked for; empty: the URL is read, and nobody is asked for anything.
        key: that is shown; empty: none.
        pid: of the server in between; 0: there is none.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    pid: int = 0


def main() -> None:
    asked = arguments()
    scale = 10 if asked.quick else 1
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nodes = stack.enter_context(simulated_nodes(NODE))
        url = nodes.urls["gpu0"]
        ways = {"node": Way(f"{url}/api/chat", MODEL)}
        for mode in ("full", "direct"):
            webui = stack.enter_context(site(folder / mode, url, mode))
            pid, key = server_at(int(webui.url.rpartition(":")[2])).pid, plain_key(webui)
            if mode == "full":
                ways["native"] = Way(f"{webui.url}/api/chat/completions", MODEL, key, pid)
                ways["nothing"] = Way(f"{webui.url}/api/version", "", key, pid)
            ways[mode] = Way(f"{webui.url}/ollama-pack/v1/chat/completions", "gpt-4", key, pid)
        if asked.litellm:
            proxy = stack.enter_context(litellm(asked.litellm, {"gpu0": url}, (MODEL,), MASTER_KEY))
            pid = server_at(int(proxy.rpartition(":")[2])).pid
            ways["litellm"] = Way(f"{proxy}/v1/chat/completions", f"{MODEL}:latest", MASTER_KEY, pid)
        pin(ways, nodes.pid)
        result = measure(ways, scale)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--litellm", type=Path, metavar="FOLDER", help="the folder of its commands")
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests")
    return parser.parse_args()


@contextmanager
def site(folder: Path, node: str, mode: str) -> Iterator[RunningWebUI]:
    """An Open WebUI with the node as its own connection, and the gateway over the router."""
    environment = connections(ollama=(node,)) | NO_BACKGROUND | API_KEYS
    with open_webui(folder, environment=environment) as webui:
        config = folder / "pack.yaml"
        config.write_text(PACK.format(url=node, mode=mode))
        done = upload(webui, str(config))
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        everybody = {"principal_type": "user", "principal_id": "*", "permission": "read"}
        row = {"id": MODEL, "name": MODEL, "meta": {}, "params": {}, "access_grants": [everybody]}
        webui.as_admin().post("/api/v1/models/create", row)
        webui.as_admin().models(refresh=True)
        yield webui


def plain_key(webui: RunningWebUI) -> str:
    account = webui.add_user("client", "client-password")
    headers = {"Authorization": f"Bearer {account.token}"}
    made = requests.post(f"{webui.url}/api/v1/auths/api_key", json={}, headers=headers, timeout=60)
    made.raise_for_status()
    return str(made.json()["api_key"])


def pin(ways: Mapping[str, Way], node: int) -> None:
    """Give servers one core, and the node and the clients the other."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:  # noqa: PLR2004 - one for each side
        return
    for way in ways.values():
        for process in family(way.pid):
            process.cpu_affinity([cores[0]])
    psutil.Process(node).cpu_affinity([cores[1]])
    os.sched_setaffinity(0, {cores[1]})


def family(pid: int) -> list[psutil.Process]:
    """A server's processes."""
    if not pid:
        return []
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def measure(ways: Mapping[str, Way], scale: int) -> JSON:
    turns = run(in_turns, ways, TURNS // scale)
    warm = {name: [took for turn in each for took in turn[1:]] for name, each in turns.items()}
    first = {name: statistics.median(turn[0] for turn in each) for name, each in turns.items()}
    node = statistics.median(warm["node"])
    figures: dict[str, JSON] = {}
    for name, way in ways.items():
        asked = node if way.model else 0.0
        ordered = sorted(took - asked for took in warm[name])
        figures[name] = {
            "added_ms_p50": round(statistics.median(ordered) * 1000, 2),
            "added_ms_p99": round(ordered[int(len(ordered) * 0.99) - 1] * 1000, 2),
            "added_ms_first": round((first[name] - (first["node"] if way.model else 0.0)) * 1000, 2),
        }
        if not way.model:
            continue
        before = cpu(way)
        answered = run(crowd, way, SECONDS / scale)
        figures[name] |= {
            "requests_per_second": round(answered / (SECONDS / scale), 1),
            "cpu_ms_per_request": round((cpu(way) - before) * 1000 / max(1, answered), 2),
        }
        before, began = cpu(way), time.perf_counter()
        tokens = run(streams, way, max(1, STREAMS // scale))
        figures[name] |= {
            "streamed_tokens_per_second": round(tokens / (time.perf_counter() - began)),
            "cpu_us_per_token": round((cpu(way) - before) * 1e6 / max(1, tokens), 1),
            "megabytes": round(sum(process.memory_info().rss for process in family(way.pid)) / 2**20),
        }
    return {"ways": figures, "goals": goals(figures)}


def goals(figures: Mapping[str, JSON]) -> dict[str, bool]:
    direct, peer = figures["direct"], figures.get("litellm")
    found = {
        "direct adds at most 3 ms (p50)": direct["added_ms_p50"] <= 3,  # noqa: PLR2004 - the goal
        "direct adds at most 8 ms (p99)": direct["added_ms_p99"] <= 8,  # noqa: PLR2004
    }
    if peer:
        found["at most half of what LiteLLM adds"] = direct["added_ms_p50"] <= peer["added_ms_p50"] / 2
        found["at least twice LiteLLM's requests a second"] = (
            direct["requests_per_second"] >= 2 * peer["requests_per_second"]
        )
    return found


def cpu(way: Way) -> float:
    """Seconds of CPU that a server has used."""
    return sum(sum(process.cpu_times()[:2]) for process in family(way.pid))


def run(work: Any, *given: Any) -> Any:
    """Do the asking in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(asking, (work, given))


def asking(work: Any, given: Sequence[Any]) -> Any:
    return asyncio.run(work(*given))


def body_of(way: Way, text: str = "hello", *, stream: bool = False) -> JSON:
    return {"model": way.model, "stream": stream, "messages": [{"role": "user", "content": text}]}


async def ask(session: aiohttp.ClientSession, way: Way, text: str = "hello", *, stream: bool = False) -> int:
    """Ask once; the number of lines of the answer."""
    headers = {"Authorization": f"Bearer {way.key}"} if way.key else {}
    method, body = ("POST", body_of(way, text, stream=stream)) if way.model else ("GET", None)
    async with session.request(method, way.url, json=body, headers=headers) as answer:
        whole = await answer.read()
        if answer.status != HTTPStatus.OK or (b"said" not in whole and way.model):
            raise SystemExit(f"{way.url} answered {answer.status}: {whole[:300]!r}")
    return sum(1 for line in whole.split(b"\n") if line.strip())


async def in_turns(ways: Mapping[str, Way], turns: int) -> dict[str, list[list[float]]]:
    """Seconds of each request, by turns. A turn begins once the servers have been quiet for a while."""
    times: dict[str, list[list[float]]] = {name: [] for name in ways}
    async with aiohttp.ClientSession() as session:
        for number in range(1 + turns):
            for name, way in list(ways.items())[:: 1 if number % 2 else -1]:
                await asyncio.sleep(QUIET_SECONDS)
                took = []
                for _ in range(TURN):
                    began = time.perf_counter()
                    await ask(session, way)
                    took.append(time.perf_counter() - began)
                if number:  # the first turn warms up
                    times[name].append(took)
    return times


async def crowd(way: Way, seconds: float) -> int:
    """Requests that are answered while so many clients ask."""
    until = time.perf_counter() + seconds

    async def client() -> int:
        answered = 0
        while time.perf_counter() < until:
            await ask(session, way)
            answered += 1
        return answered

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        return sum(await asyncio.gather(*(client() for _ in range(CLIENTS))))


async def streams(way: Way, count: int) -> int:
    """Pieces of some long answers, which the node sends as fast as they are taken."""
    async with aiohttp.ClientSession() as session:
        return sum([await ask(session, way, "word " * TOKENS, stream=True) for _ in range(count)])


def show(result: JSON) -> None:
    console = Console(width=140)
    first = next(iter(result["ways"].values()))
    table = Table("way", *(name.replace("_", " ") for name in first))
    for name, told in result["ways"].items():
        table.add_row(name, *(f"{value:g}" for value in told.values()))
    console.print(table)
    for goal, met in result["goals"].items():
        console.print(f"{'met' if met else 'NOT met'}: {goal}")


if __name__ == "__main__":
    main()
