"""Which models the nodes have, put together: what a picker offers and what an alias may stand for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ollama_pack.engines.ollama.to_ollama import Thinking
from ollama_pack.routing.decide.view import InstalledModel
from ollama_pack.routing.naming import auto_parts, fold_name


@dataclass(frozen=True, slots=True)
class NodeModel:
    """A model as one node has it.

    Attributes:
        name: as the node lists it, with its tag.
        installed: what the scheduler goes by.
        digest: of the manifest; empty where it is not told.
        quantization: such as Q4_K_M; empty where it is not told.
        capabilities: such as tools and vision; None where it is not told.
        thinking: what `think` it takes; None where it is not told.
    """

    name: str
    installed: InstalledModel
    digest: str = ""
    quantization: str = ""
    capabilities: frozenset[str] | None = None
    thinking: Thinking | None = None


@dataclass(frozen=True, slots=True)
class FleetModel:
    """A model of the fleet.

    Attributes:
        name: as the nodes list it.
        nodes: names of the nodes that have it.
        model: as the first of them has it.
        digests: of the manifests, in order, each once; without the nodes that tell none.
    """

    name: str
    nodes: tuple[str, ...]
    model: NodeModel
    digests: tuple[str, ...] = ()

    def can(self, capability: str) -> bool:
        """Whether it is able to, as far as is known."""
        return self.model.capabilities is None or capability in self.model.capabilities


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The models of all nodes, without duplicates, by name.

    Attributes:
        models: name → model, sorted by name.
        levels: name → quantization level, which is what alias tables are resolved against.
    """

    models: Mapping[str, FleetModel] = field(default_factory=dict)
    levels: Mapping[str, str] = field(default_factory=dict)
    _folded: Mapping[str, FleetModel] = field(default_factory=dict, repr=False)

    def find(self, name: str) -> FleetModel | None:
        """The model of a name in any spelling, of an automatic name the best; None where no node has it."""
        best = auto_parts(name)[0][0]
        return self.models.get(best) or self._folded.get(fold_name(best))


def build_catalogue(nodes: Mapping[str, Iterable[NodeModel]]) -> Catalogue:
    """Put the models of some nodes together.

    Args:
        nodes: name of a node → what it has.
    """
    holders: dict[str, list[tuple[str, NodeModel]]] = {}
    for node, models in nodes.items():
        for model in models:
            holders.setdefault(model.name, []).append((node, model))
    found = {name: _fleet_model(name, holders[name]) for name in sorted(holders)}
    levels = {name: model.model.quantization for name, model in found.items()}
    return Catalogue(found, levels, {fold_name(name): model for name, model in found.items()})


def _fleet_model(name: str, holders: list[tuple[str, NodeModel]]) -> FleetModel:
    first = holders[0][1]
    digests = {model.digest for _, model in holders if model.digest}
    return FleetModel(name, tuple(node for node, _ in holders), first, tuple(sorted(digests)))
