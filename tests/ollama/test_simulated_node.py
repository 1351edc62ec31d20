"""What the simulated node adds: time, memory and faults on command, over HTTP and from another process."""

import asyncio
import gc
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import requests

from harness.node_clients import HEAD, PATIENCE, fail
from harness.node_contract import lines, wait_until
from harness.ollama_node import Fault, Model, NodeShape, OllamaNode
from harness.sim_faults import FaultKind
from harness.sim_process import TESTS, SimulationError, simulated_nodes
from ollama_pack.engines.errors import (
    NodeError,
    NodeFaultError,
    NodeTimeoutError,
    NodeUnreachableError,
)
from ollama_pack.engines.openai.client import OpenAIClient
from ollama_pack.engines.openai.metrics import EngineActivity
from ollama_pack.engines.transport import NodeLimits

MODEL = "smollm2:135m"
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Write 20 words"}]}
QUICK = NodeShape(decode_rate=2000.0, prompt_rate=100_000.0, slots=2)


@pytest.fixture
def node() -> Iterator[OllamaNode]:
    with OllamaNode(
        [Model(MODEL, load_seconds=0.05), Model("other", load_seconds=0.05)], shape=QUICK
    ) as simulated:
        yield simulated


def ask(
    node: OllamaNode, http: requests.Session, path: str = "/api/chat", **change: Any
) -> requests.Response:
    return http.post(f"{node.url}{path}", json=CHAT | change, timeout=10)


def connects(node: OllamaNode) -> bool:
    parts = urlsplit(node.url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5):
            return True
    except ConnectionRefusedError:
        return False


# --- an answer, and what is noted of it


def test_records_tell_how_a_request_went(node: OllamaNode, http: requests.Session) -> None:
    """Would catch figures of a benchmark that the node did not see."""
    last = [lines(ask(node, http))[-1] for _ in range(2)]
    first, again = node.records
    assert (first.loaded, first.hit_tokens, first.outcome) == (True, 0, "done")
    assert (again.loaded, again.hit_tokens) == (False, again.prompt_tokens - 1)
    assert first.prompt_tokens == last[0]["prompt_eval_count"] == last[1]["prompt_eval_count"]
    assert first.output_tokens == last[0]["eval_count"] == 20
    assert first.came <= (first.first_token or 0) <= (first.ended or 0)
    assert last[0]["load_duration"] > 50_000_000 > last[1]["load_duration"]
    assert node.stats["totals"]["cold_loads"] == 1
    assert node.stats["loaded"] == [MODEL]


def test_a_faster_node_tells_the_durations_of_the_wall(http: requests.Session) -> None:
    """Would catch a client that learns rates which are wrong by the factor of the speed."""
    shape = NodeShape(prompt_rate=1000.0, decode_rate=100.0, speed=20.0)
    with OllamaNode([Model(MODEL, load_seconds=2.0)], shape=shape) as node:
        asked = [{"role": "user", "content": "Write 400 words" + " a" * 1000}]
        last = lines(ask(node, http, messages=asked))[-1]
    assert last["load_duration"] >= 2.0e9 / 20
    assert last["prompt_eval_duration"] >= last["prompt_eval_count"] / 1000 * 1e9 / 20
    assert last["eval_duration"] >= 400 / 100 * 1e9 / 20 > last["prompt_eval_duration"]
    assert last["total_duration"] < 2.0e9  # the load alone would take as long in simulated seconds


def test_a_client_that_leaves_frees_the_slot_and_is_noted(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a stopped chat that counts as answered, or whose tokens count though nobody got them."""
    endless = [{"role": "user", "content": "Write 100000 words"}]
    with http.post(
        f"{node.url}/api/chat", json=CHAT | {"messages": endless}, stream=True, timeout=10
    ) as answer:
        received = answer.iter_lines()
        assert next(received)
        assert (node.records[0].outcome, node.stats["working"]) == ("running", 1)
    wait_until(lambda: node.records[0].outcome == "left")
    assert node.stats["working"] == 0
    assert 0 < node.records[0].output_tokens < 100_000


def test_tokens_that_come_together_are_lines_of_their_own(http: requests.Session) -> None:
    """Would catch gathering that changes what is sent, and not only when."""
    with OllamaNode([Model(MODEL)], shape=NodeShape(decode_rate=5000.0, write_seconds=0.02)) as node:
        *pieces, last = lines(ask(node, http))
        whole = ask(node, http, stream=False).json()
    assert len(pieces) == last["eval_count"] == 20
    assert {piece["done"] for piece in pieces} == {False}
    assert "".join(piece["message"]["content"] for piece in pieces) == whole["message"]["content"]


def test_the_next_turn_reuses_the_answer_too(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a slot that forgets what was said in it."""
    said = ask(node, http, stream=False).json()["message"]
    history = [*CHAT["messages"], said, {"role": "user", "content": "Go on"}]
    ask(node, http, messages=history)
    first, second = node.records
    assert second.hit_tokens > first.prompt_tokens + len(said["content"]) // 4 - 2


def test_a_connection_at_the_last_moment_is_closed_with_the_rest() -> None:
    """Would catch a socket that stays open, which warns when it is collected and fails some later test."""
    for _ in range(10):
        with OllamaNode([Model(MODEL)]) as stopping:
            assert connects(stopping)
        gc.collect()


# --- faults

FAULTS: dict[str, tuple[Fault, type[NodeError], int]] = {
    "hang": (Fault("hang"), NodeTimeoutError, 0),
    "slow": (Fault("slow", seconds=30.0), NodeTimeoutError, 0),
    "500": (Fault("error"), NodeFaultError, 0),
    "reset": (Fault("reset"), NodeFaultError, 0),
    "html": (Fault("html"), NodeFaultError, 0),
    "crash": (Fault("crash", after=3), NodeFaultError, 3),
    "stall": (Fault("stall", after=3), NodeTimeoutError, 3),
    "garbage": (Fault("garbage", after=3), NodeFaultError, 3),
    "truncated": (Fault("truncated", after=3), NodeFaultError, 3),
    "no_done": (Fault("no_done", after=3), NodeFaultError, 4),
    "at once": (Fault("garbage", after=0), NodeFaultError, 0),
    "refuse": (Fault("refuse"), NodeUnreachableError, 0),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_client_sees_the_fault(node: OllamaNode, http: requests.Session, name: str) -> None:
    """Would catch a fault that is none, or one that stays after it was cleared."""
    fault, error, before = FAULTS[name]
    ask(node, http)
    http.close()  # a connection that stays open would not see a refusal
    node.command(fault)
    fail(node.url, error, NodeLimits(next_line=0.5), first_byte=0.5, lines_before=before)
    node.clear_faults()
    assert lines(ask(node, http))[-1]["done"] is True


def test_a_fault_has_its_status_and_its_words(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a 503 that looks like a 500."""
    node.command(Fault("error", status=503, message="server busy", times=1))
    answer = ask(node, http)
    assert (answer.status_code, answer.json()) == (503, {"error": "server busy"})
    assert ask(node, http).ok
    assert [(record.outcome, record.fault) for record in node.records] == [
        ("refused", "error"),
        ("done", None),
    ]


def test_a_fault_keeps_to_its_path_its_model_and_its_number(node: OllamaNode, http: requests.Session) -> None:
    """Would catch an outage that is wider than was commanded."""
    node.command(Fault("error", times=1, path="/api/generate"), Fault("error", times=1, model="other:latest"))
    assert ask(node, http).ok
    assert ask(node, http, model="other").status_code == 500
    assert ask(node, http, model="other").ok
    assert ask(node, http, path="/api/generate", prompt="Hello").status_code == 500
    assert ask(node, http, path="/api/generate", prompt="Hello").ok
    node.command(Fault("error", times=1, path="/api/show", model="other"))
    assert http.post(f"{node.url}/api/show", json={"model": MODEL}, timeout=10).ok
    assert http.post(f"{node.url}/api/show", json={"model": "other"}, timeout=10).status_code == 500


@pytest.mark.parametrize("kind", ["error", "html", "garbage", "truncated"])
def test_probes_can_fail_too(node: OllamaNode, http: requests.Session, kind: FaultKind) -> None:
    """Would catch a prober that is never tried on a node which talks nonsense."""
    node.command(Fault(kind, times=1, path="/api/ps"))
    answer = http.get(f"{node.url}/api/ps", timeout=10)
    assert answer.status_code == (500 if kind == "error" else 200)
    if kind != "error":
        with pytest.raises(requests.exceptions.JSONDecodeError):
            answer.json()
    assert http.get(f"{node.url}/api/ps", timeout=10).json() == {"models": []}


@pytest.mark.parametrize("kind", ["crash", "reset"])
def test_a_probe_can_be_cut_off(node: OllamaNode, http: requests.Session, kind: FaultKind) -> None:
    """Would catch half a list of models that is taken for a whole one."""
    node.command(Fault(kind, times=1, path="/api/tags"))
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        http.get(f"{node.url}/api/tags", timeout=10)
    assert http.get(f"{node.url}/api/tags", timeout=10).ok


@pytest.mark.parametrize("kind", ["crash", "garbage", "truncated", "no_done"])
def test_an_answer_in_one_piece_can_be_spoiled(
    node: OllamaNode, http: requests.Session, kind: FaultKind
) -> None:
    """Would catch faults that only streams have."""
    node.command(Fault(kind, times=1))
    try:
        answer = ask(node, http, stream=False).json()
    except requests.RequestException:
        answer = {}
    assert "done" not in answer
    assert node.records[0].outcome == "failed"


def test_a_slow_first_byte_comes(node: OllamaNode, http: requests.Session) -> None:
    """Would catch "slow" that is "never"."""
    node.command(Fault("slow", seconds=0.3))
    answer = ask(node, http)
    assert answer.elapsed.total_seconds() >= 0.3
    assert lines(answer)[-1]["done"] is True


def test_nobody_listens_while_connections_are_refused(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a refusal that cuts what runs, that open connections do not see, or that loses the port."""
    assert connects(node)
    with http.post(
        f"{node.url}/api/chat",
        json=CHAT | {"messages": [{"role": "user", "content": "Write 400 words"}]},
        stream=True,
        timeout=10,
    ) as running:
        received = running.iter_lines()
        next(received)
        node.command(Fault("refuse"))
        assert not connects(node)
        assert json.loads(list(received)[-1])["done"] is True
    with pytest.raises(requests.ConnectionError):  # the same connection
        ask(node, http)
    node.clear_faults()
    assert connects(node)


def test_a_refusal_can_end_by_itself(node: OllamaNode) -> None:
    """Would catch an outage of two seconds that lasts."""
    node.command(Fault("refuse", seconds=0.2))
    wait_until(lambda: connects(node))
    assert node.stats["totals"]["requests"] == 0


def test_a_killed_node_forgets_and_comes_back(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a restart that keeps models in memory, or a port that somebody else takes meanwhile."""
    url = node.url
    ask(node, http)
    node.kill()
    assert not connects(node)
    with socket.socket() as thief, pytest.raises(OSError, match="in use"):
        thief.bind(("127.0.0.1", urlsplit(url).port or 0))
    node.start()
    assert node.url == url
    assert http.get(f"{url}/api/ps", timeout=10).json() == {"models": []}


def test_starting_a_node_that_serves_changes_nothing(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a second start that forgets models, or that leaves a server behind."""
    ask(node, http)
    node.start()
    assert node.stats["loaded"] == [MODEL]


def test_a_port_that_is_taken_is_told(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a node that seems to run and does not, or cannot be started when the port is free again."""
    parts = urlsplit(node.url)
    node.stop()
    with (
        socket.create_server((parts.hostname or "", parts.port or 0)),
        pytest.raises(OSError, match="in use"),
    ):
        node.start()
    node.start()
    assert ask(node, http).ok


def test_killing_cuts_what_runs(node: OllamaNode) -> None:
    """Would catch a power failure that lets answers end first."""
    ended = threading.Event()

    def chat() -> None:
        with requests.Session() as session:
            session.trust_env = False
            endless = CHAT | {"messages": [{"role": "user", "content": "Write 100000 words"}]}
            with pytest.raises(requests.RequestException):
                session.post(f"{node.url}/api/chat", json=endless, timeout=30)
        ended.set()

    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(chat)
        wait_until(lambda: node.stats["working"] == 1)
        node.kill()
        assert ended.wait(10)
        done.result()


# --- control over HTTP


def test_control_on_the_nodes_own_port(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a demo that cannot command its nodes."""
    faults, stats = f"{node.url}/sim/faults", f"{node.url}/sim/stats"
    fault = Fault("error", status=503, times=2)
    assert http.post(faults, json=asdict(fault), timeout=10).json() == [asdict(fault)]
    assert ask(node, http).status_code == 503
    assert http.get(faults, timeout=10).json() == [asdict(fault)]
    assert http.delete(faults, timeout=10).json() == []
    assert ask(node, http).ok
    told = http.get(f"{stats}?last=1", timeout=10).json()
    assert (told["totals"]["refused"], told["totals"]["done"]) == (1, 1)
    assert [record["outcome"] for record in told["requests"]] == ["done"]
    assert http.delete(stats, timeout=10).ok
    assert http.get(stats, timeout=10).json()["totals"]["requests"] == 0


@pytest.mark.parametrize("body", ['{"kind": "explode"}', "{", '[{"kind": "hang"}, 5]'])
def test_a_command_that_cannot_be_read_is_refused(
    node: OllamaNode, http: requests.Session, body: str
) -> None:
    """Would catch half of a command put in force."""
    answer = http.post(f"{node.url}/sim/faults", data=body, timeout=10)
    assert answer.status_code == 400
    assert http.get(f"{node.url}/sim/faults", timeout=10).json() == []


def test_records_are_asked_for_by_number(node: OllamaNode, http: requests.Session) -> None:
    """Would catch a mistyped number that breaks the control."""
    assert http.get(f"{node.url}/sim/stats?last=all", timeout=10).status_code == 400


# --- a process of its own


def test_nodes_in_a_process_of_their_own(http: requests.Session) -> None:
    """Would catch nodes that cannot be reached, commanded or ended from outside."""
    rows = (f"gpu0 models={MODEL};load_seconds=0 speed=10", f"gpu1 models={MODEL},other slots=2")
    with simulated_nodes(*rows) as nodes:
        url = nodes.urls["gpu0"]
        assert http.get(f"{nodes.control}/sim/nodes", timeout=10).json() == nodes.urls
        assert len(http.get(f"{nodes.urls['gpu1']}/api/tags", timeout=10).json()["models"]) == 2
        assert http.post(f"{url}/api/chat", json=CHAT, timeout=10).ok
        assert nodes.stats("gpu0", last=5)["requests"][0]["output_tokens"] == 20
        assert nodes.stats("gpu1")["totals"]["requests"] == 0
        nodes.forget("gpu0")
        assert nodes.stats("gpu0")["totals"]["requests"] == 0
        nodes.command("gpu0", Fault("error", times=1), Fault("refuse"))
        with pytest.raises(requests.ConnectionError):
            requests.get(url, timeout=10)
        nodes.clear_faults("gpu0")
        assert requests.get(url, timeout=10).ok
        nodes.kill("gpu0")
        with pytest.raises(requests.ConnectionError):
            requests.get(url, timeout=10)
        assert requests.get(nodes.urls["gpu1"], timeout=10).ok
        nodes.start("gpu0")
        assert requests.get(url, timeout=10).ok
        with pytest.raises(requests.HTTPError, match="404"):
            nodes.kill("gpu7")
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=10)


def test_a_row_that_cannot_be_read_ends_the_process(capfd: pytest.CaptureFixture[str]) -> None:
    """Would catch a benchmark that waits for nodes that never come."""
    with pytest.raises(SimulationError) as caught, simulated_nodes("gpu0 models=a slots=0"):
        pass
    assert caught.value.status == 2
    assert "slots must be at least 1, not 0" in capfd.readouterr().err


def test_the_command_ends_when_it_is_told() -> None:
    """Would catch nodes that outlive a demo."""
    argv = [sys.executable, "-m", "harness.sim_command", "gpu0 models=a"]
    with subprocess.Popen(argv, env={"PYTHONPATH": str(TESTS)}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert set(json.loads(process.stdout.readline())) == {"control", "nodes"}
        process.terminate()
        assert process.wait(10) == 0


def test_a_simulated_engine_speaks_openais_protocol() -> None:
    """Would catch a benchmark of batching engines whose engines load a model, or hide what they reuse."""
    row = "engine0 models=m0 slots=4 engine=vllm prompt_rate=100000 decode_rate=1000"
    asked = {"model": "m0", "messages": [{"role": "user", "content": "Write 5 words. " + "so " * 400}]}

    async def use(url: str) -> tuple[list[Any], Any, EngineActivity | None]:
        async with aiohttp.ClientSession() as session:
            client = OpenAIClient(url, session)
            for _ in range(2):
                chunks = [chunk async for chunk in client.complete(asked, HEAD, first_byte=PATIENCE)]
            return chunks, await client.tags(), await client.activity()

    with simulated_nodes(row) as nodes:
        chunks, models, activity = asyncio.run(use(nodes.urls["engine0"]))
        refused = requests.post(
            f"{nodes.urls['engine0']}/v1/chat/completions", json={**asked, "model": "other"}, timeout=10
        )
        assert nodes.stats("engine0")["totals"]["cold_loads"] == 0
    said = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert len(said.split()) == 5
    usage = chunks[-1]["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1
    assert [model.name for model in models] == ["m0"]
    assert activity == EngineActivity(0, 0)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, 404)
