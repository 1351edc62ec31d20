"""Quantization by node, rolling pulls and models kept warm, over a real Open WebUI and three nodes."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import pytest
import requests

from deploy.client import OpenWebUI
from harness.events_target import EVENTS, eventually, plugin_text
from harness.fixtures_routing import RoutedWebUI
from harness.gguf_headers import MODELS
from harness.ollama_node import Model, NodeShape, OllamaNode
from ollama_pack.fit.shapes import in_other_bits, level_bits, shape_of

Json = dict[str, Any]
LEVELS = ("F16", "Q8_0", "Q6_K", "Q4_K_M", "Q3_K_S")
MEMORY = {"small": "8GB", "middle": "16GB", "large": "24GB"}
SHAPE = NodeShape(slots=4, max_loaded=4, load_rate=1e12, prompt_rate=20_000, decode_rate=200, echo=True)


def variants(name: str, header_name: str) -> list[Model]:
    """A real model's metadata, in five quantizations."""
    header = next(model.header for model in MODELS if model.name == header_name)
    shape = shape_of(header.metadata, header.tensors)
    info = {key: [] if isinstance(value, list) else value for key, value in header.metadata.items()}
    sizes = {level: in_other_bits(shape, 4.65, level_bits(level)) for level in LEVELS}
    return [
        Model(
            f"{name}-{level.lower()}",
            size=one.weights,
            quantization_level=level,
            info=info,
        )
        for level, one in sizes.items()
    ]


@dataclass
class Fleet:
    """The router of the session's Open WebUI over three nodes of 8, 16 and 24 GB."""

    routed: RoutedWebUI
    nodes: dict[str, OllamaNode] = field(default_factory=dict)

    @property
    def admin(self) -> OpenWebUI:
        return self.routed.admin

    def change(self, **valves: Any) -> None:
        """Save some valves of the router."""
        old = self.admin.valves("functions", "gpu_router")
        self.admin.post("/api/v1/functions/id/gpu_router/valves/update", old | valves)

    def ask(self, model: str, **more: Any) -> Json:
        """Which node and model answered."""
        body = {"model": f"gpu_router.{model}", "messages": [{"role": "user", "content": "hello"}], **more}
        answer: Json = self.admin.post("/api/chat/completions", body)
        return {**answer["ollama_pack"], "text": answer["choices"][0]["message"]["content"]}

    def upkeep(self, path: str, **body: Any) -> Json:
        answer = requests.post(
            f"{self.routed.webui.url}/ollama-pack/nodes/{path}",
            json=body,
            headers={"Authorization": f"Bearer {self.admin.key}"},
            timeout=60,
        )
        found: Json = answer.json()
        return found

    def report(self) -> Json:
        """What the router shows on the dashboard."""
        found: Json = self.admin.get("/ollama-pack/data", {"router": dict})["router"]
        return found

    def pulls(self) -> list[Json]:
        found: list[Json] = self.report()["upkeep"]["pulls"]
        return found

    def empty(self, node: str) -> None:
        """Restart a node, until the router knows that nothing is in its memory."""

        def told() -> Json:
            return next(one for one in self.report()["nodes"] if one["name"] == node)

        eventually(lambda: bool(told()["models"]))  # else it may be what was there before
        self.nodes[node].stop()
        self.nodes[node].start()
        eventually(lambda: told()["healthy"] and told()["models"] == [])

    def states(self, model: str) -> list[str]:
        """Of the pulls of a model, in order."""
        return [one["state"] for one in self.pulls() if one["model"] == model]


@pytest.fixture(scope="module")
def fleet(routed: RoutedWebUI) -> Iterator[Fleet]:
    models = [*variants("m:8b", "Llama 3.1 8B"), *variants("l:12b", "Gemma 3 12B")]
    with ExitStack() as stack:
        nodes = {name: stack.enter_context(OllamaNode(models, shape=SHAPE)) for name in MEMORY}
        fleet = Fleet(routed, nodes)
        before = routed.admin.valves("functions", "gpu_router")
        rows = "\n".join(f"{name} {node.url} slots=1 memory={MEMORY[name]}" for name, node in nodes.items())
        fleet.change(nodes=rows, aliases="eight = m:8b [quant=auto]\ntwelve = l:12b [quant=auto]")
        eventually(lambda: "gpu_router.twelve" in routed.admin.models(refresh=True))
        form = {"id": EVENTS, "name": EVENTS, "meta": {"description": ""}, "content": plugin_text()}
        routed.admin.post("/api/v1/functions/create", form)
        routed.admin.post(f"/api/v1/functions/id/{EVENTS}/toggle")
        yield fleet
        routed.admin.post(f"/api/v1/functions/id/{EVENTS}/toggle")
        headers = {"Authorization": f"Bearer {routed.admin.key}"}
        url = f"{routed.webui.url}/api/v1/functions/id/{EVENTS}/delete"
        requests.delete(url, headers=headers, timeout=60).raise_for_status()
        routed.admin.post("/api/v1/functions/id/gpu_router/valves/update", before)


def test_each_node_answers_with_the_best_quantization_that_fits(fleet: Fleet) -> None:
    """Would catch a variant that spills to the CPU, or one with fewer bits than the node has room for.

    With 4096 tokens the 8B model takes 8.8, 7.0, 5.4 and 4.1 GB in 8, 6, 4 and 3 bits.
    """
    found: dict[str, dict[str, str]] = {"eight": {}, "twelve": {}}
    for node in MEMORY:
        fleet.change(drained=" ".join(sorted(MEMORY.keys() - {node})))
        for alias, answers in found.items():
            told = fleet.ask(alias)
            assert told["node"] == node
            answers[node] = told["model"].partition("b-")[2]
            fleet.empty(node)  # what fits next to another model is of another test
    fleet.change(drained="")
    assert found["eight"] == {"small": "q6_k", "middle": "q8_0", "large": "q8_0"}
    assert found["twelve"] == {"small": "q3_k_s", "middle": "q8_0", "large": "q8_0"}


class Crowd:
    """People who chat until they are told to go, and what became of their chats."""

    def __init__(self, fleet: Fleet, people: int) -> None:
        self.texts: list[str] = []
        self._fleet = fleet
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._chat) for _ in range(people)]

    def _chat(self) -> None:
        while not self._ends.is_set():
            try:
                self.texts.append(self._fleet.ask("m:8b-q3_k_s")["text"])
            except Exception as error:  # noqa: BLE001 - a lost chat, for the test to see
                self.texts.append(repr(error))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()


def test_a_rolling_pull_loses_no_chat(fleet: Fleet) -> None:
    """Would catch a node that is pulled while it answers, a lost chat, or a setting that ends the pull."""
    new = Model("new:1b")
    for node in fleet.nodes.values():
        node.offer(new, pieces=8)
    with Crowd(fleet, 3) as crowd:
        eventually(lambda: bool(crowd.texts))
        begun = fleet.upkeep("pull", model="new:1b")
        assert begun["fault"] == ""
        assert [one["node"] for one in begun["pulls"] if one["model"] == "new:1b"] == list(MEMORY)
        assert "under way" in fleet.upkeep("pull", model="new:1b")["fault"]
        eventually(lambda: fleet.states("new:1b")[-3:-1].count("done") >= 1)
        fleet.change(probe_seconds=0.6)  # makes another router, which goes on
        eventually(lambda: fleet.states("new:1b")[-1:] == ["done"])
        seen = len(crowd.texts)
        eventually(lambda: len(crowd.texts) > seen)
    assert set(crowd.texts) == {"You said: hello"}
    assert {node.busy_while_pulling for node in fleet.nodes.values()} == {0}
    assert all("registry.ollama.ai/library/new:1b" in node.models for node in fleet.nodes.values())


def test_a_pull_is_stopped(fleet: Fleet) -> None:
    """Would catch a stop button that stops nothing, and a fault that nobody is told."""
    fleet.nodes["small"].offer(Model("long:1b"), pieces=10_000)
    assert "No pull" in fleet.upkeep("pull/stop")["fault"]
    assert "There is no node elsewhere" in fleet.upkeep("pull", model="a", nodes=["elsewhere"])["fault"]
    fleet.upkeep("pull", model="long:1b", nodes=["small", "large"])
    asked = fleet.nodes["small"].requests
    eventually(lambda: (asked[-1].body or {}).get("model") == "long:1b")
    assert fleet.upkeep("pull/stop")["fault"] == ""
    eventually(lambda: fleet.states("long:1b") == ["stopped", "stopped"])
    assert asked[-1].left.wait(20)
    fleet.upkeep("pull", model="missing:1b", nodes=["small"])
    eventually(lambda: fleet.states("missing:1b") == ["failed"])
    assert "file does not exist" in fleet.pulls()[-1]["fault"]
    assert fleet.ask("m:8b-q3_k_s")["text"] == "You said: hello"


def in_memory(node: OllamaNode) -> set[str]:
    return {one["name"] for one in requests.get(f"{node.url}/api/ps", timeout=10).json()["models"]}


def test_a_node_that_restarts_gets_its_models_back(fleet: Fleet) -> None:
    """Would catch a model that stays out of memory for the rest of its hours once its node was restarted."""
    name = "m:8b-q4_k_m"
    fleet.change(warm=f"{name} = 00:00-24:00 copies=2")
    fleet.ask("m:8b-q3_k_s")

    def warm() -> list[str]:
        return [node for node, server in fleet.nodes.items() if name in in_memory(server)]

    eventually(lambda: len(warm()) >= 2)
    node = fleet.nodes[warm()[0]]
    node.stop()
    node.start()
    assert name not in in_memory(node)
    eventually(lambda: len(warm()) >= 2)
    fleet.change(warm="")


def test_a_plan_is_made_of_what_people_asked_for(fleet: Fleet) -> None:
    """Would catch a plan that anybody can ask for, or that knows no record, nodes or aliases."""
    url = f"{fleet.routed.webui.url}/ollama-pack/plan"

    def plan(key: str, **asked: Any) -> requests.Response:
        return requests.get(url, params=asked, headers={"Authorization": f"Bearer {key}"}, timeout=60)

    assert plan(fleet.routed.student.key).status_code in {401, 403}
    told = plan(fleet.admin.key, context=4096).json()
    assert told["fault"] == ""
    assert {node["name"]: node["room_from"] for node in told["nodes"]} == dict.fromkeys(
        MEMORY, "as its row says"
    )
    rooms = {node["name"]: node["room_bytes"] for node in told["nodes"]}
    for node, room in rooms.items():
        assert sum(one["bytes"] for one in told["plan"] if one["node"] == node) <= room
    assert {"m:8b", "l:12b"} <= {one["model"] for one in told["plan"]}
    assert "chats of the router's record" in told["demand"]
    assert [one["fleet"] for one in told["replays"]][:2] == ["as it is", "with the plan"]
    assert "one more GPU" in told["replays"][-1]["fleet"]
    chinese = plan(fleet.admin.key, context=4096, language="zh-CN").json()
    assert chinese["replays"][1]["fleet"] == "按规划"
    assert "whole number" in plan(fleet.admin.key, context="many").json()["fault"]
