"""What fits where, what to pull, and what one more GPU would bring: all of a plan, as people read it."""

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ollama_pack.base.messages import message
from ollama_pack.engines.ollama.names import find_model, quantization_in, variants_of
from ollama_pack.engines.ollama.values import is_cloud_name
from ollama_pack.fit.choose import quality_order, usable_memory
from ollama_pack.fit.memory import RunOptions
from ollama_pack.fit.planning import (
    FleetPlan,
    PlannedModel,
    PlannedNode,
    PlannedVariant,
    need_of,
    plan_fleet,
    state_of,
)
from ollama_pack.fit.shapes import in_other_bits, level_bits, parameters_in, planned_shape
from ollama_pack.routing.plan.demand import Asked, Demand, busiest_hour, speeds_of
from ollama_pack.routing.plan.replay import ReplayNode, replay

USUAL_CONTEXT = 8192
LEAST_CONTEXT, MOST_CONTEXT, MOST_USERS = 256, 2**22, 10**6  # that can be asked for
USUAL_LEVEL = "Q4_K_M"  # of a model whose name says none
LEVELS = ("Q8_0", "Q6_K", USUAL_LEVEL, "Q3_K_M")  # that the table has, whether they are installed or not
MORE_GPUS = (24, 48, 80)  # GB of one more GPU, next to those that the fleet has
MAX_SIZES = 5  # of one more GPU that are tried
ACTIVE_SHARE = 0.1  # of people who use a chat, those who wait for an answer at one moment
MAX_PLANNED = 50  # models; those that people ask for most
GIGABYTE = 1e9
# Of the newest chats so many are simulated where somebody waits: about a second for each fleet.
MOST_STEPS, LEAST_REPLAYED = 6_000, 100  # chats times nodes; chats


@dataclass(frozen=True, slots=True)
class SeenNode:
    """A node as it answered.

    Attributes:
        name: of its row.
        url: its address, as it may be shown.
        room: bytes that models can have; 0: nobody knows.
        source: how that is known, in words.
        slots: requests that a model answers at once.
        options: how its server is set up, as far as it has shown; None: as usual.
        variants: what it has installed, by name.
        elsewhere: names that it answers for without memory of its own: cloud models, those of other engines.
        fault: why nothing is known of it; empty: all is.
    """

    name: str
    url: str
    room: int = 0
    source: str = ""
    slots: int = 1
    options: RunOptions | None = None
    variants: Mapping[str, PlannedVariant] = field(default_factory=dict)
    elsewhere: frozenset[str] = frozenset()
    fault: str = ""

    @property
    def planned(self) -> PlannedNode:
        return PlannedNode(self.name, self.room, self.slots, frozenset(self.variants), self.options)


@dataclass(frozen=True, slots=True)
class WantedModels:
    """The models that aliases name, and those of them whose best variant is chosen (`quantization: auto`)."""

    names: tuple[str, ...] = ()
    automatic: frozenset[str] = frozenset()


@dataclass(slots=True)
class PlanReport:
    """All that was found out.

    Attributes:
        nodes: as they are.
        context: tokens of each chat.
        rows: for each model, quantization and node the bytes, and how well it fits.
        plan: what to have where.
        demand: where the demand comes from, in words.
        replays: the record again, on several fleets, and how many of its chats.
    """

    nodes: Sequence[SeenNode]
    context: int
    demand: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    plan: FleetPlan = field(default_factory=FleetPlan)
    replays: list[dict[str, Any]] = field(default_factory=list)
    replayed: int = 0

    @property
    def pulls(self) -> list[str]:
        """What to pull where, as commands."""
        urls = {node.name: node.url for node in self.nodes}
        return [
            f"OLLAMA_HOST={urls[one.node]} ollama pull {one.variant.name}"
            for one in self.plan.placements
            if one.pull
        ]

    @property
    def notes(self) -> list[str]:
        """What keeps nodes out of the plan though they answer."""
        return [
            message(
                "{node}: its memory is not known. Add `memory: 24GB` (in the valve: `memory=24GB`) to its "
                "row, or start gpu_agent.py there.",
                node=node.name,
            )
            for node in self.nodes
            if not node.fault and not node.room
        ]

    @property
    def as_json(self) -> dict[str, Any]:
        """For the page, and for programs."""
        return {
            "context": self.context,
            "nodes": [
                {
                    "name": node.name,
                    "room_bytes": node.room,
                    "room_from": node.source,
                    "slots": node.slots,
                    "fault": node.fault,
                }
                for node in self.nodes
            ],
            "fits": self.rows,
            "plan": [
                {
                    "node": one.node,
                    "model": one.model,
                    "variant": one.variant.name,
                    "level": one.variant.level,
                    "bytes": one.need,
                    "pull": one.pull,
                }
                for one in self.plan.placements
            ],
            "unplaced": self.plan.unplaced,
            "pulls": self.pulls,
            "demand": self.demand,
            "replays": self.replays,
            "replayed": self.replayed,
            "notes": self.notes,
        }


def plan_report(  # noqa: PLR0913 - each is a fact of its own
    nodes: Sequence[SeenNode],
    wanted: WantedModels,
    demand: Demand,
    *,
    context: int = USUAL_CONTEXT,
    users: int | None = None,
    seconds: float = math.inf,
) -> PlanReport:
    """Plan.

    Args:
        nodes: as they answered.
        wanted: the models that aliases name.
        demand: what people asked for.
        context: tokens of each chat.
        users: people who use chats; None: as many as the record has.
        seconds: after which no further fleet is simulated, and fewer chats are: somebody waits.
    """
    report = PlanReport(nodes, context, demand.source)
    elsewhere = _elsewhere(nodes, {*wanted.names, *(one.model for one in demand.chats)})
    wanted = replace(wanted, names=tuple(name for name in wanted.names if name not in elsewhere))
    asked = [one for one in demand.chats if one.model not in elsewhere]
    known = [node for node in nodes if node.room and not node.fault]
    planned = [node.planned for node in known]
    models = list(_models(nodes, wanted, asked, users))
    report.plan = plan_fleet(planned, models, context)
    report.rows = list(_rows(planned, models, report.plan, context))
    if asked and known:
        hurried = math.isfinite(seconds)
        recent = asked[-max(LEAST_REPLAYED, MOST_STEPS // len(known)) :] if hurried else asked
        ends = time.monotonic() + seconds
        for one in _replays(known, models, report.plan, recent, context):
            report.replays.append(one)
            if time.monotonic() > ends:
                break
        report.replayed = len(recent)
    return report


def _elsewhere(nodes: Sequence[SeenNode], names: Collection[str]) -> frozenset[str]:
    """The names that only models answer for which take no memory of these nodes."""
    there = {name for node in nodes for name in node.variants}
    others = {name for node in nodes for name in node.elsewhere}
    return frozenset(
        name
        for name in names
        if (is_cloud_name(name) or find_model(name, others)) and not find_model(name, there)
    )


def _models(
    nodes: Sequence[SeenNode], wanted: WantedModels, asked: Sequence[Asked], users: int | None
) -> Iterator[PlannedModel]:
    """What people ask for, by the record and the aliases, in all quantizations that are there."""
    there = {name: one for node in nodes for name, one in node.variants.items()}
    levels = {name: one.level for name, one in there.items()}
    busy = busiest_hour(asked)
    often = sorted(dict.fromkeys(one.model for one in asked), key=lambda name: -busy.get(name, 0.0))
    names = list(dict.fromkeys([*wanted.names, *often]))[:MAX_PLANNED] or sorted(there)[:MAX_PLANNED]
    if not busy:
        busy = dict.fromkeys(names, 1 / max(1, len(names)))
    scale = users * ACTIVE_SHARE / max(1e-9, sum(busy.values())) if users else 1.0
    sharing: dict[str, list[PlannedVariant]] = {}
    for one in there.values():
        sharing.setdefault(one.blob or one.name, []).append(one)
    covered: set[str] = set()
    for name in names:
        exact = find_model(name, there)
        family = variants_of(name, levels) if name in wanted.automatic else {exact: ""} if exact else {}
        variants = [there[one] for one in quality_order(list(family), [levels[one] for one in family])]
        if not variants and parameters_in(name):
            variants = [_not_pulled(name)]
        found = {one.name for one in variants}
        for number, variant in enumerate(variants):  # names of the same weights share what is in memory
            twins = sharing.get(variant.blob or variant.name, ())
            found |= {twin.name for twin in twins}
            variants[number] = replace(
                variant, context=max([variant.context, *(one.context for one in twins)])
            )
        if variants and not found & covered:
            covered |= found
            busiest = scale * sum(busy.get(one, 0.0) for one in found | {name})
            yield PlannedModel(name, tuple(variants), busiest, frozenset(found))


def _not_pulled(name: str) -> PlannedVariant:
    """A model that no node has, by what its name says."""
    level = quantization_in(name) or USUAL_LEVEL
    bits = level_bits(level) or level_bits(USUAL_LEVEL)
    return PlannedVariant(name, level, bits, planned_shape(parameters_in(name), bits))


def _rows(
    nodes: Sequence[PlannedNode], models: Sequence[PlannedModel], plan: FleetPlan, context: int
) -> Iterator[dict[str, Any]]:
    """Nodes, models and quantizations, those that are there and the usual ones."""
    on = {node.name: plan.on(node.name) for node in nodes}
    for model in models:
        best = model.variants[0]
        usual = [
            PlannedVariant(
                "",
                level,
                level_bits(level),
                in_other_bits(best.shape, best.bits or level_bits(USUAL_LEVEL), level_bits(level)),
                best.context,
            )
            for level in LEVELS
            if level not in {one.level.upper() for one in model.variants}
        ]
        for variant in sorted([*model.variants, *usual], key=lambda one: -one.bits):
            for node in nodes:
                need = need_of(variant, node, context)
                beside = sum(one.need for one in on[node.name] if one.model != model.name)
                yield {
                    "model": model.name,
                    "variant": variant.name,
                    "level": variant.level,
                    "node": node.name,
                    "bytes": need,
                    "state": state_of(need, node.room, beside),
                    "installed": variant.name in node.installed,
                    "planned": any(one.variant == variant for one in on[node.name]),
                }


def _replays(
    nodes: Sequence[SeenNode],
    models: Sequence[PlannedModel],
    plan: FleetPlan,
    asked: Sequence[Asked],
    context: int,
) -> Iterator[dict[str, Any]]:
    """The recorded chats again: on the nodes as they are, with the plan, and with one more GPU."""
    speeds = speeds_of(asked)
    names = {name: model.name for model in models for name in model.names}
    known = [replace(one, model=names.get(one.model, one.model)) for one in asked]
    before = [_as_it_is(node, models, context) for node in nodes]
    sizes = {node.name: node.sizes for node in before}
    yield {"fleet": message("as it is")} | replay(before, known, speeds).figures
    planned = [node.planned for node in nodes]
    with_plan = [_with_plan(node, plan, sizes[node.name]) for node in planned]
    yield {"fleet": message("with the plan")} | replay(with_plan, known, speeds).figures
    rooms = {node.room for node in nodes} | {usable_memory(round(size * GIGABYTE)) for size in MORE_GPUS}
    for room in sorted(_different(rooms)):
        slots = max(node.slots for node in nodes)
        more = [*planned, PlannedNode("one more", room, slots)]
        plan_then = plan_fleet(more, models, context)
        fleet = [_with_plan(node, plan_then, sizes.get(node.name, {})) for node in more]
        label = message("with the plan and one more GPU, {room} GB for models", room=f"{room / GIGABYTE:.0f}")
        yield {"fleet": label} | replay(fleet, known, speeds).figures


def _as_it_is(node: SeenNode, models: Sequence[PlannedModel], context: int) -> ReplayNode:
    sizes = {
        model.name: min(
            need_of(one, node.planned, context) for one in model.variants if one.name in node.variants
        )
        for model in models
        if any(one.name in node.variants for one in model.variants)
    }
    return ReplayNode(node.name, node.room, node.slots, sizes)


def _with_plan(node: PlannedNode, plan: FleetPlan, sizes: Mapping[str, int]) -> ReplayNode:
    placed = {one.model: one.need for one in plan.on(node.name)}
    return ReplayNode(node.name, node.room, node.slots, {**sizes, **placed}, tuple(placed))


def _different(rooms: Collection[int]) -> list[int]:
    """The sizes of a further GPU, without those that read the same."""
    by_label = {round(room / GIGABYTE): room for room in sorted(rooms)}
    return sorted(by_label.values())[-MAX_SIZES:]
