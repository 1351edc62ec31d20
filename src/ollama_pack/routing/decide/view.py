"""What a routing decision looks at: plain values, made once and never changed.

Times are seconds on one monotonic clock of the caller's choice; rates are tokens per second or bytes per
second; sizes are bytes; contexts and prompts are counted in tokens.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ollama_pack.fit.memory import ModelShape
from ollama_pack.routing.decide.returns import ReturnCurve

RunnerOptions = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class PromptBlock:
    """One message of a prompt.

    Attributes:
        chain: hash of this block and of all before it, so that equal chains mean equal beginnings.
        upto: tokens of the prompt up to and including this block.
        answer: whether the model itself wrote the block: the runner that did holds it already.
    """

    chain: int
    upto: int
    answer: bool = False


@dataclass(frozen=True, slots=True)
class FleetRequest:
    """One request for the fleet.

    Attributes:
        id: unique among the requests that wait or run.
        user: whom fairness counts it for; in the router a hash, the same at all workers.
        chat: the conversation it belongs to, likewise; empty: none.
        models: names of the models that may answer, the preferred one first.
        blocks: the prompt; empty: length unknown, nothing to reuse.
        max_output: the limit on its output in tokens that the client set; 0: none.
        context: the context that the client asked for, in tokens; 0: whatever the runner has.
        options: the other options that a runner is loaded with (`num_gpu`, …), sorted by name.
        background: nobody looks at the answer as it is written (titles, tags): people come first.
        load_only: nobody waits: the model is loaded for those who will come.
        last: its user has used up a budget: it comes behind all others.
    """

    id: str
    user: str
    models: tuple[str, ...]
    chat: str = ""
    blocks: tuple[PromptBlock, ...] = ()
    max_output: int = 0
    context: int = 0
    options: RunnerOptions = ()
    background: bool = False
    load_only: bool = False
    last: bool = False

    @property
    def tokens(self) -> int:
        return self.blocks[-1].upto if self.blocks else 0


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model as a node's `/api/tags` and `/api/show` describe it.

    Attributes:
        blob: digest of the weights: names with the same one share a runner.
        size: bytes of memory that it takes with its usual context; 0: unknown.
        name: as the node lists it, and wants to be asked for it.
        context: `num_ctx` in tokens that its own recipe asks for; 0: none.
        options: the other runner options that its own recipe asks for, sorted by name.
        fixed: the engine never loads it again for other options, as Ollama does.
        remote: it runs elsewhere, as Ollama's cloud models do: there at once, no memory here, no slots.
        shape: what its memory depends on; None: unknown.
        bits: of a weight; 0: unknown.
        usual: the context that `size` is for; 0: unknown.
        growth: bytes for each token of context.
    """

    blob: str
    size: int = 0
    name: str = ""
    context: int = 0
    options: RunnerOptions = ()
    fixed: bool = False
    remote: bool = False
    shape: ModelShape | None = field(default=None, repr=False)
    bits: float = 0.0
    usual: int = 0
    growth: float = 0.0

    def takes(self, context: int) -> int:
        """Bytes of memory with a context (0: the usual one)."""
        if not context or not self.usual:
            return self.size
        return max(0, self.size + round(self.growth * (context - self.usual)))

    def wanted(self, request: FleetRequest) -> tuple[int, RunnerOptions]:
        """The context (0: the node's default) and the options that a request makes the runner have."""
        own = {**dict(self.options), **dict(request.options)}
        return request.context or self.context, tuple(sorted(own.items()))


@dataclass(frozen=True, slots=True)
class KeptPrefix:
    """What one slot of a runner is believed to hold.

    Attributes:
        chains: chain → tokens up to it, for each block of the prompt that was last evaluated in the slot.
        last: the chain of the prompt's last block.
        tokens: length of the prompt.
        output: tokens that were generated after it, and are held too.
        used_at: when it was last used.
        shared: tokens of its beginning that prompts of others have as well.
        kind: what its return is learned by: its turn, or that it is a background call's.
    """

    chains: Mapping[int, int] = field(repr=False)
    last: int
    tokens: int
    output: int
    used_at: float
    shared: int = 0
    kind: int = 0

    @property
    def weight(self) -> int:
        """The tokens that are held for it alone."""
        return self.tokens - self.shared + self.output


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """What a runner holds of a prompt.

    Attributes:
        hit: tokens of the prompt.
        own: they are this chat's own, not only a system prompt that chats share.
        hoped: as many more as can be expected of what it should have lost.
    """

    hit: int = 0
    own: bool = False
    hoped: int = 0


NO_MATCH = PrefixMatch()


class HeldPrefixes(Protocol):
    """What a runner is believed to hold. Decisions only read it."""

    def __len__(self) -> int: ...

    def match(self, blocks: Sequence[PromptBlock], newest: int | None = None) -> PrefixMatch:
        """What it holds of a prompt, counting on so many of the last used prefixes only."""

    def oldest(self) -> KeptPrefix | None:
        """What the next new prompt takes the place of; None: there is room."""


class NothingHeld:
    """A runner that is loaded now, or of which nothing is known."""

    def __len__(self) -> int:
        return 0

    def match(self, blocks: Sequence[PromptBlock], newest: int | None = None) -> PrefixMatch:  # noqa: ARG002
        return NO_MATCH

    def oldest(self) -> KeptPrefix | None:
        return None


NOTHING_HELD = NothingHeld()


@dataclass(frozen=True, slots=True)
class RunnerView:
    """A set of weights in a node's memory.

    Attributes:
        blob: digest of the weights.
        model: the name by which it was loaded.
        size: bytes that it takes; 0: unknown.
        context: tokens that it was loaded for, as the node says; 0: unknown.
        asked: the context that it was loaded with on request; 0: the node's default; None: unknown, as when
            another client did it.
        options: what else it was loaded with; None: unknown.
        slots: how many requests it answers at once.
        keeps: how many prefixes it still holds.
        ready_at: when it is loaded; in the past: it is.
        ends: when each request that it answers now is predicted to end, its first token included.
        prefixes: what it still holds.
        remote: as in `InstalledModel`.
    """

    blob: str
    model: str
    size: int = 0
    context: int = 0
    asked: int | None = None
    options: RunnerOptions | None = None
    slots: int = 1
    keeps: int = 1
    ready_at: float = 0.0
    ends: tuple[float, ...] = ()
    prefixes: HeldPrefixes = NOTHING_HELD
    remote: bool = False


def fits_runner(
    wanted: tuple[int, RunnerOptions],
    context: int,
    asked: int | None,
    options: RunnerOptions | None,
    usual: RunnerOptions = (),
) -> bool:
    """Whether a runner answers without being loaded again: Ollama loads it for any other value.

    Args:
        wanted: the context and the options of a request, as `InstalledModel.wanted` gives them.
        context: of the runner, as in `RunnerView`.
        asked: the same. Where it is unknown, it fits a request that asks for no context.
        options: the same. Where they are unknown, they fit a request that sets none of its own.
        usual: the options of the model itself, which every request has that sets none.
    """
    tokens, others = wanted
    unknown = asked is None and not context
    same_context = unknown or tokens in {asked, context} if tokens else not asked
    if options is None:
        return same_context and others == usual
    asks_layers = any(name == "num_gpu" for name, _ in others)  # any number of layers fits a request without
    return same_context and others == tuple(each for each in options if asks_layers or each[0] != "num_gpu")


@dataclass(frozen=True, slots=True)
class ModelRates:
    """What is known of how one node runs one set of weights.

    Attributes:
        slots: how many requests a runner answers at once.
        keeps: how many prefixes a runner still holds.
        load: seconds to load the weights.
        prompt: prompt tokens evaluated per second.
        token: seconds per generated token.
        output: tokens of a usual answer.
        background_output: tokens of a usual answer to a background call.
        service: seconds that a usual request holds a slot.
        learned: enough has been measured to go by `prompt` and `token`.
        load_measured: `load` was measured at least once.
    """

    slots: int = 1
    keeps: int = 1
    load: float = 4.0
    prompt: float = 500.0
    token: float = 0.03
    output: float = 150.0
    background_output: float = 15.0
    service: float = 5.0
    learned: bool = False
    load_measured: bool = False


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node at one moment.

    Attributes:
        name: as the `nodes` valve calls it.
        tier: lower tiers are preferred.
        weight: how much of the work it should get beside equals.
        models: what it can answer with and may be asked for now, by the names that it lists, and by what
            `fold_name` makes of them.
        runners: what is in its memory.
        loading_until: when the load in progress is predicted to end; one load blocks the others.
        room: bytes that models can have in memory together: known, or seen; a lone runner always fits.
        smallest: bytes of its smallest model; 1: it is not known how much memory there is.
        rates: by blob.
        loads_ahead: it can be asked to load a model without a chat,
        failed_loads: except for these weights: such a load has failed a while ago.
    """

    name: str
    tier: int = 0
    weight: float = 1.0
    models: Mapping[str, InstalledModel] = field(default_factory=dict)
    runners: tuple[RunnerView, ...] = ()
    loading_until: float = 0.0
    room: int = 0
    smallest: int = 1
    rates: Mapping[str, ModelRates] = field(default_factory=dict)
    loads_ahead: bool = False
    failed_loads: frozenset[str] = frozenset()

    def may_load_ahead(self, model: str) -> bool:
        """Whether it can be asked to load a model that it has, without a chat."""
        return self.loads_ahead and self.models[model].blob not in self.failed_loads


@dataclass(frozen=True, slots=True)
class FleetView:
    """All that a decision goes by.

    Attributes:
        now: the moment.
        nodes: the nodes that may be given work.
        demand: blob → requests a second that ask for it.
        returns: blob → how likely its prompts are gone on with, by their kind.
        changed: names of the nodes that look otherwise than in the view before; None: any may.
        by_name: the nodes by their names; made of `nodes` where it is missing.
        holders: chain of a prompt's block → the nodes that such a prompt went to lately.
    """

    now: float
    nodes: tuple[NodeView, ...]
    demand: Mapping[str, float] = field(default_factory=dict)
    returns: Mapping[str, Sequence[ReturnCurve]] = field(default_factory=dict)
    changed: Collection[str] | None = None
    by_name: Mapping[str, NodeView] = field(default_factory=dict)
    holders: Mapping[int, Collection[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.by_name) != len(self.nodes):
            object.__setattr__(self, "by_name", {node.name: node for node in self.nodes})

    def holders_of(self, blocks: Sequence[PromptBlock]) -> Collection[str]:
        """The nodes that got the longest known beginning of a prompt."""
        for block in reversed(blocks):
            if found := self.holders.get(block.chain):
                return found
        return ()
