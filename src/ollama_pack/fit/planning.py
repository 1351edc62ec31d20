"""Which models a fleet should have where, so that its demand needs the fewest loads: pure functions.

First each model gets one place, in a modest quantization, where the most memory is left; the model that is
asked for most comes first. Then those that are asked for more than one copy can answer get more copies. The
memory that is left makes quantizations better. Models that fit nowhere next to others are left to loads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ollama_pack.fit.memory import ModelShape, RunOptions, memory_needed

State = Literal["fits beside", "fits", "spills", "cannot"]
MODEST_BITS = 5.0  # the most of a first place
HOPELESS_SHARE = 0.25  # of a model; with less in GPU memory it is too slow to be of use
BUSY_SHARE = 0.6  # of a copy's slots; above that another copy is worth its memory


@dataclass(frozen=True, slots=True)
class PlannedVariant:
    """A quantization of a model.

    Attributes:
        name: to pull.
        level, bits: of the quantization.
        shape: what its memory depends on.
        context: tokens that its own recipe asks for, if those are more than a chat needs.
        blob: its weights, which names may have in common; empty: unknown.
    """

    name: str
    level: str
    bits: float
    shape: ModelShape
    context: int = 0
    blob: str = ""


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model that people ask for.

    Attributes:
        name: what the aliases call it.
        variants: those that can be had, the best first.
        busy: requests of it that run at once, on average, in the busiest hour.
        names: of all that have the weights of a variant, as `ollama cp` and a Modelfile make them.
    """

    name: str
    variants: tuple[PlannedVariant, ...]
    busy: float = 0.0
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PlannedNode:
    """A node.

    Attributes:
        name: of it.
        room: the bytes that models can have; 0: unknown.
        slots: requests that a model answers at once.
        installed: the names that it has.
        options: how its server loads models, as far as it has shown; None: as usual.
    """

    name: str
    room: int
    slots: int = 1
    installed: frozenset[str] = frozenset()
    options: RunOptions | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """A model on a node, with the bytes that it takes."""

    node: str
    model: str
    variant: PlannedVariant
    need: int
    pull: bool


@dataclass(slots=True)
class FleetPlan:
    """What to have where.

    Attributes:
        placements: in the order in which they were decided.
        unplaced: models that fit nowhere next to the others: each time somebody asks, something is unloaded.
    """

    placements: list[Placement] = field(default_factory=list)
    unplaced: list[str] = field(default_factory=list)

    def on(self, node: str) -> list[Placement]:
        return [one for one in self.placements if one.node == node]

    def of(self, model: str) -> list[Placement]:
        return [one for one in self.placements if one.model == model]

    def used(self, node: str) -> int:
        return sum(one.need for one in self.on(node))


def need_of(variant: PlannedVariant, node: PlannedNode, context: int) -> int:
    """The bytes that a variant takes on a node."""
    options = replace(node.options or RunOptions(0), context=max(context, variant.context), slots=node.slots)
    return memory_needed(variant.shape, options).total


def state_of(need: int, room: int, beside: int) -> State:
    """How well a model fits a node.

    Args:
        need: bytes that it takes.
        room: bytes that models can have there.
        beside: bytes of the others that are to be there.
    """
    if need + beside <= room:
        return "fits beside"
    if need <= room:
        return "fits"
    return "spills" if room >= HOPELESS_SHARE * need else "cannot"


def plan_fleet(nodes: Sequence[PlannedNode], models: Sequence[PlannedModel], context: int) -> FleetPlan:
    """What to have where.

    Args:
        nodes: those whose memory is known.
        models: that are asked for.
        context: tokens for each slot.
    """
    plan = FleetPlan()
    wanted = sorted(models, key=lambda model: (-model.busy, model.name))
    for model in wanted:
        if not _place(plan, nodes, model, context, _modest(model)):
            plan.unplaced.append(model.name)
    for model in wanted:
        while (copies := plan.of(model.name)) and _is_crowded(model, copies, nodes):
            if not _place(plan, nodes, model, context, _modest(model)):
                break
    _improve(plan, nodes, {model.name: model for model in models}, context)
    return plan


def _modest(model: PlannedModel) -> tuple[PlannedVariant, ...]:
    """The variants for a first place: the best with few bits, then those with fewer, then the others."""
    few = tuple(one for one in model.variants if one.bits <= MODEST_BITS)
    return few + tuple(one for one in reversed(model.variants) if one not in few)


def _place(
    plan: FleetPlan,
    nodes: Sequence[PlannedNode],
    model: PlannedModel,
    context: int,
    variants: Sequence[PlannedVariant],
) -> bool:
    """Give a model one more node. Those that have the variant come first, then those with the most room."""
    there = {one.node for one in plan.of(model.name)}
    for variant in variants:
        found = [
            (variant.name in node.installed, node.room - plan.used(node.name), node)
            for node in nodes
            if node.name not in there and need_of(variant, node, context) + plan.used(node.name) <= node.room
        ]
        if found:
            _, _, node = max(found, key=lambda one: one[:2])
            need = need_of(variant, node, context)
            pull = variant.name not in node.installed
            plan.placements.append(Placement(node.name, model.name, variant, need, pull))
            return True
    return False


def _is_crowded(model: PlannedModel, copies: Sequence[Placement], nodes: Sequence[PlannedNode]) -> bool:
    slots = {node.name: node.slots for node in nodes}
    return model.busy > BUSY_SHARE * sum(slots[one.node] for one in copies)


def _improve(
    plan: FleetPlan, nodes: Sequence[PlannedNode], models: Mapping[str, PlannedModel], context: int
) -> None:
    """Use what memory is left for better quantizations."""
    rooms = {node.name: node for node in nodes}
    for number, placed in enumerate(plan.placements):
        node = rooms[placed.node]
        left = node.room - plan.used(node.name) + placed.need
        for variant in models[placed.model].variants:
            if variant == placed.variant:
                break
            need = need_of(variant, node, context)
            if need <= left:
                pull = variant.name not in node.installed
                plan.placements[number] = Placement(node.name, placed.model, variant, need, pull)
                break
