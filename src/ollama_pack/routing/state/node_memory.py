"""The memory of one node: how much there is, what each of its models takes, and which variants fit."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ollama_pack.base.messages import message
from ollama_pack.fit.choose import Variant, best_variant, usable_memory
from ollama_pack.fit.learned import MemoryLearner, SeenLoad
from ollama_pack.fit.memory import DRIVER_BYTES, Engine, RunOptions
from ollama_pack.routing.decide.view import InstalledModel, RunnerOptions
from ollama_pack.routing.naming import auto_parts, fold_name
from ollama_pack.routing.nodes import NodeRow

DEFAULT_CONTEXT = 4096  # tokens, where a node has not shown what it takes when nobody asks
FOREIGN_LOOKS = 3  # looks at the GPUs in a row in which other programs must be seen
FOREIGN_SHARE = 0.05  # of the memory; less is the driver's own
GROWTH_STEP = 4096  # tokens, over which the growth of a cache is measured


def is_split(options: RunnerOptions) -> bool:
    """Whether a model is in part on the CPU because its `num_gpu` says so, and not for want of memory."""
    layers = dict(options).get("num_gpu")
    return isinstance(layers, int) and layers >= 0


class NodeMemory:
    """What is known of a node's memory. All is bounded by the models that it has."""

    def __init__(self, row: NodeRow, engine: Engine | None = None) -> None:
        self._declared = usable_memory(row.memory) if row.memory else 0
        self._told = 0  # by its GPUs
        self._foreign: deque[int] = deque(maxlen=FOREIGN_LOOKS)
        self._together = 0  # bytes that have been seen in memory together, and none on the CPU
        self._spilled = 0  # bytes that were in GPU memory while a model was there only in part
        self._learner = MemoryLearner(row.slots, engine)

    @property
    def measured(self) -> bool:
        """Whether it is known how much there is, and not only what was seen together."""
        return bool(self._declared or self._told or self._spilled)

    @property
    def room(self) -> int:
        """The bytes that models can have together."""
        there = self._declared or max(0, self._told - min(self._foreign, default=0))
        if self._spilled:
            there = min(there, self._spilled) if there else self._spilled
        return max(there, self._together)

    @property
    def source(self) -> str:
        """How it is known how much there is, in words; empty: it is not."""
        if self._declared:
            return message("as its row says")
        if self._told:
            return message("as its GPUs report")
        return message("as a model shows that is only partly in GPU memory") if self._spilled else ""

    @property
    def options(self) -> RunOptions:
        """How its server loads models, as far as it has shown."""
        return self._learner.options

    def told(self, total: int, used: int, gpus: int, ours: int) -> None:
        """Its GPUs were looked at.

        Args:
            total: bytes of all of them.
            used: of these, by whomever.
            gpus: how many there are.
            ours: bytes of the models that are in memory.
        """
        self._told = usable_memory(total, gpus)
        others = used - ours - 2 * gpus * DRIVER_BYTES
        self._foreign.append(others if others > FOREIGN_SHARE * total else 0)

    def seen_together(self, size: int) -> None:
        """So many bytes of models are in memory together."""
        self._together = max(self._together, size)

    def spilled(self, size: int) -> None:
        """A model is in GPU memory only in part: with so many bytes it is full."""
        self._spilled = size
        self._together = min(self._together, size)

    def seen(self, model: InstalledModel, context: int, size: int, *, on_gpu: bool) -> bool:
        """A model is in memory. Returns whether what is predicted has changed."""
        if model.shape is None or not context or not size:
            return False
        return self._learner.seen(model.blob, SeenLoad(model.shape, context, size), on_gpu=on_gpu)

    def sized(self, models: Mapping[str, InstalledModel], default: int) -> dict[str, InstalledModel]:
        """The models with the bytes that each takes here.

        Args:
            models: by name.
            default: the context that a model has here when nobody asks for any; 0: unknown.
        """
        return {name: self._sized(name, model, default) for name, model in models.items()}

    def _sized(self, name: str, model: InstalledModel, default: int) -> InstalledModel:
        shape = model.shape
        if shape is None:
            return replace(model, name=name)
        usual = model.context or default or DEFAULT_CONTEXT
        usual = min(usual, shape.longest) if shape.longest else usual
        size = self._learner.expected(model.blob, shape, usual)
        more = self._learner.expected(model.blob, replace(shape, longest=0), usual + GROWTH_STEP)
        growth = max(0.0, (more - size) / GROWTH_STEP)
        return replace(model, name=name, size=size, usual=usual, growth=growth)

    def choose(
        self, auto: str, models: Mapping[str, InstalledModel], resident: Iterable[tuple[str, int]]
    ) -> tuple[InstalledModel, bool] | None:
        """The variant of an automatic name to answer with, and whether it fits; None: the node has none."""
        names, context = auto_parts(auto)
        there = [models[folded] for name in names if (folded := fold_name(name)) in models]
        if not there:
            return None
        variants = [Variant(one.name, one.blob, one.bits, one.takes(context)) for one in there]
        best, fits = best_variant(variants, self.room, tuple(resident), measured=self.measured)
        return there[variants.index(best)], fits
