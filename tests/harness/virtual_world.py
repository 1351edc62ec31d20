"""A scheduler told of events as a router would tell it, with a clock that stands still unless it is moved."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import strategies as st

from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.decide.view import FleetRequest, InstalledModel, PromptBlock
from ollama_pack.routing.nodes import NodeRow
from ollama_pack.routing.state.estimates import Durations
from ollama_pack.routing.state.node_state import ResidentModel
from ollama_pack.routing.state.scheduler import Scheduler

MODELS = {name: InstalledModel(f"blob-{name}", 10) for name in ("a", "b", "c")}
SLOTS = 2


@dataclass
class World:
    """A scheduler, its clock, and what has been bound to where."""

    names: tuple[str, ...] = ("x", "y", "z")
    slots: int | None = SLOTS
    seed: int = 1
    max_queue: int = 64
    strategy: str = "predicted_ttft"
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # name → what else its row says
    now: float = 1000.0
    running: dict[str, Assignment] = field(default_factory=dict)
    answering: set[str] = field(default_factory=set)
    log: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = [
            NodeRow(name, f"http://{name}", **{"slots": self.slots, **self.rows.get(name, {})})
            for name in self.names
        ]
        dice = Random(self.seed)  # noqa: S311 - seeded on purpose
        self.scheduler = Scheduler(
            rows, lambda: self.now, dice, max_queue=self.max_queue, strategy=self.strategy
        )
        for name in self.names:
            self.scheduler.cluster.probed(name, MODELS, [])

    def ask(self, number: int, model: str = "a", **fields: Any) -> None:
        user = fields.pop("user", f"u{number % 4}")
        prompt = (PromptBlock(-1, 100), PromptBlock(number, 300))
        self.scheduler.submit(FleetRequest(f"r{number}", user, (model,), f"c{number}", prompt, **fields))

    def decide(self) -> list[Assignment]:
        bindings = self.scheduler.decide()
        for binding in bindings:
            assert binding.request.id not in self.running
            self.running[binding.request.id] = binding
            self.log.append((binding.request.id, binding.node))
        return bindings

    def first_token(self, name: str) -> None:
        self.answering.add(name)
        self.scheduler.first_token(name)

    def finish(self, name: str, **fields: float) -> None:
        self.running.pop(name)
        self.scheduler.finished(name, Durations(**({"total": 3.0, "prompt": 0.5, "decode": 2.5} | fields)))  # type: ignore[arg-type] # counts and seconds in one


def resident(expires_at: float, **fields: Any) -> ResidentModel:
    return ResidentModel("a", 10, 4096, expires_at, **fields)


def check(world: World) -> None:
    """What holds at every moment."""
    by_runner: dict[tuple[str, str], int] = {}
    for binding in world.running.values():
        key = (binding.node, binding.model)
        by_runner[key] = by_runner.get(key, 0) + 1
    if world.strategy != "random":
        assert all(count <= SLOTS for count in by_runner.values())
    for node in world.scheduler.cluster.nodes.values():
        assert len(node.runners) <= len(MODELS)
        assert sum(len(runner.ends) for runner in node.runners.values()) <= len(world.running)


STEPS = ("ask", "ask", "title", "tick", "first token", "finish", "fail", "cancel", "probe")
steps = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1000)), max_size=120)


def take(world: World, number: int, step: str, chance: int) -> None:
    """One event of any kind; one that does not apply does nothing."""
    running = sorted(world.running)
    name = running[chance % len(running)] if running else ""
    match step:
        case "ask" | "title" if world.scheduler.waiting < 40:
            world.ask(number, "abc"[chance % 3], background=step == "title")
        case "tick":
            world.now += chance / 200
        case "first token" if name:
            world.first_token(name)
        case "finish" if name:
            world.first_token(name)
            world.finish(name, prompt_count=300, decode_count=100)
        case "fail" if name:
            world.running.pop(name)
            world.scheduler.failed(name, node_down=False)
        case "cancel" if name:
            world.running.pop(name)
            world.scheduler.cancel(name)
        case "probe":
            node = world.names[chance % 3]
            known = world.scheduler.cluster.nodes[node].runners.values()
            world.scheduler.cluster.probed(
                node, MODELS, [ResidentModel(one.model, 10, 0, 1.0) for one in known if not one.loading]
            )
