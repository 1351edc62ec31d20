"""The nodes of a fleet as they are known, and the events that tell of them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from ollama_pack.routing.decide.policy import RoutingPolicy
from ollama_pack.routing.decide.view import (
    FleetRequest,
    FleetView,
    InstalledModel,
    ModelRates,
    NodeView,
    PromptBlock,
    RunnerOptions,
)
from ollama_pack.routing.naming import auto_parts, fold_name
from ollama_pack.routing.nodes import NodeRow
from ollama_pack.routing.state.demand import DemandMeter
from ollama_pack.routing.state.estimates import are_near, usual_rates
from ollama_pack.routing.state.model_stats import Lesson
from ollama_pack.routing.state.node_state import NodeState, ResidentModel
from ollama_pack.routing.state.peer_requests import RemoteRequests, node_key
from ollama_pack.routing.state.returns import ReturnLearner

MAX_FOLLOWED_BLOBS = 64  # sets of weights whose prompts are followed
HOLDER_STRIDE = 8  # blocks of a prompt, of which one is remembered with the nodes that it went to
MAX_HOLDERS = 4  # nodes that are remembered for a block
MAX_REMEMBERED = 32768  # blocks
MAX_AUTOS = 256  # automatic names


class Cluster:
    """What decisions see. Names are those of the rows; times are seconds on the caller's clock.

    Attributes:
        nodes: by name.
        demand: how often each set of weights is asked for.
        remote: requests of other workers at these nodes.
        stale_at: when the first node looks otherwise though nothing happens.
    """

    def __init__(
        self, rows: Iterable[NodeRow], clock: Callable[[], float], policy: RoutingPolicy, priors: ModelRates
    ) -> None:
        self.nodes: dict[str, NodeState] = {}
        self._policy, self._priors = policy, priors
        self._usual: dict[str, ModelRates] = {}  # by blob, what nodes that have measured it have on average
        self._clock = clock
        self._autos: dict[str, None] = {}  # automatic names that were asked for lately
        self.demand = DemandMeter()
        self._returns: dict[str, ReturnLearner] = {}
        self._usual_options: dict[str, tuple[int, RunnerOptions]] = {}
        self._holders: dict[int, tuple[str, ...]] = {}
        self._views: dict[str, NodeView] = {}
        self._changed: set[str] = set()  # since the last decision
        self._others = False  # other nodes than at the last decision
        self._stale: dict[str, None] = {}  # in the order of the rows, as they are shown
        self.stale_at = -math.inf
        self.remote = RemoteRequests(clock, self.demand, self._prompt_sent_elsewhere, self.learn)
        for row in rows:
            self.add(row)

    def add(self, row: NodeRow) -> None:
        """A node is there from now on; nothing is known of it before `probed`."""
        node = self.nodes[row.name] = NodeState(row, self._policy, self._expected)
        self.remote.nodes[node_key(row)] = node
        self._others = True
        self._stale[row.name] = None
        node.on_change = self._stale.setdefault

    def remove(self, name: str) -> None:
        """A node is there no more. None of this worker's requests may be at it."""
        node = self.nodes.pop(name)
        node.on_change = lambda _: None
        if self.remote.nodes.get(node_key(node.row)) is node:  # no newer one has its address
            del self.remote.nodes[node_key(node.row)]
        for known in (self._stale, self._views):
            known.pop(name, None)
        self._changed.discard(name)
        self._others = True

    def probed(
        self,
        name: str,
        models: Mapping[str, InstalledModel],
        residents: Iterable[ResidentModel] | None,
        asked_at: float = -math.inf,
    ) -> None:
        """A node has answered a probe.

        Args:
            name: the node's.
            models: what it has (`/api/tags`, `/api/show`).
            residents: what it has in memory (`/api/ps`).
            asked_at: when it was asked: after its last failure it is well again.
        """
        node, now = self.nodes[name], self._clock()
        node.changed()
        node.probed(models, residents, now)
        for auto in self._autos:  # what waits may be answered by another variant now
            offer = node.offer(auto)
            if offer is not None and offer[1]:
                node.set_auto(auto, offer[0])
        if node.breaker.state(now) == "half-open" or node.breaker.failed_at < asked_at:
            node.breaker.succeeded()

    def learn(self, node: NodeState, blob: str, lesson: Lesson) -> None:
        """Take in what an answered request teaches of a node, and of those that have measured less."""
        node.stats(blob).learn(lesson)
        node.learned(blob)
        if are_near(node.known(blob), self._expected(blob)):
            return
        having = [one for one in self.nodes.values() if one.has_weights(blob)]
        usual = usual_rates([one.stats(blob).rates for one in having], self._priors)
        if are_near(usual, self._expected(blob)):
            return  # each new node would have all others looked at anew for nothing
        if blob not in self._usual and len(self._usual) >= MAX_FOLLOWED_BLOBS:
            del self._usual[next(iter(self._usual))]
        self._usual[blob] = usual
        for one in having:
            known = one.known(blob)
            if one is not node and not (known.learned and known.load_measured):
                one.learned(blob)

    def _expected(self, blob: str) -> ModelRates:
        """What to expect of a node that has not measured some weights: as from those that have."""
        return self._usual.get(blob, self._priors)

    def sized(self, name: str, room: int) -> None:
        """Somebody knows how many bytes of models a node has had in memory together."""
        self.nodes[name].memory.seen_together(room)
        self.nodes[name].changed()

    def gpu_memory(self, name: str, total: int, used: int, gpus: int) -> None:
        """Somebody, such as `gpu_agent`, knows how much memory a node's GPUs have, and how much is used."""
        node = self.nodes[name]
        before = node.memory.room
        node.memory.told(total, used, gpus, sum(runner.size for runner in node.runners.values()))
        if node.memory.room != before:
            node.changed()

    def offer_variants(self, auto: str) -> None:
        """Let each node answer for an automatic name with the variant that fits there.

        Nodes on which even the smallest would be computed in part by the CPU are left out, unless that is so
        on all.
        """
        auto = fold_name(auto)
        self._autos.pop(auto, None)
        self._autos[auto] = None
        while len(self._autos) > MAX_AUTOS:
            forgotten = next(iter(self._autos))
            del self._autos[forgotten]
            for node in self.nodes.values():
                node.set_auto(forgotten, None)
        offers = {name: node.offer(auto) for name, node in self.nodes.items()}
        some_fit = any(offer is not None and offer[1] for offer in offers.values())
        for name, offer in offers.items():
            usable = offer is not None and (offer[1] or not some_fit)
            self.nodes[name].set_auto(auto, offer[0] if offer and usable else None)

    def activity(self, name: str, running: int, waiting: int, asked_at: float = math.inf) -> None:
        """A node's engine tells how many requests it answers and holds in its queue, over all clients.

        Args:
            name: the node.
            running: those that it answers.
            waiting: those in its queue.
            asked_at: when it was asked, which may have been before one of ours ended: then nobody knows
                whether that one counts.
        """
        node = self.nodes[name]
        if node.left_at < asked_at:
            node.changed()
            node.counts(running, waiting, self._clock())

    def gpu_busy(self, name: str, utilization: float) -> None:
        """Somebody, such as `gpu_agent`, knows how busy a node's busiest GPU is, in percent."""
        node = self.nodes[name]
        node.changed()
        node.gpu_busy(utilization, self._clock())

    def unreachable(self, name: str) -> None:
        """A node has not answered a probe."""
        node, now = self.nodes[name], self._clock()
        node.changed()
        node.breaker.failed(now)

    def drain(self, name: str, *, draining: bool = True) -> None:
        """Let a node finish what it has and give it nothing new, or take it back."""
        self.nodes[name].draining = draining
        self.nodes[name].changed()

    def view(self) -> FleetView:
        """All that a decision goes by, as of now."""
        return self.view_at(self._clock())

    def refresh(self, now: float) -> None:
        """Look at the nodes that may look otherwise than before."""
        if now >= self.stale_at:
            self._stale.update(dict.fromkeys(self.nodes))
        if self._stale:
            for name in self._stale:
                seen = self.nodes[name].view(now)
                if self._views.get(name) is not seen:
                    self._views[name] = seen
                    self._changed.add(name)
            self._stale.clear()
            self.stale_at = min([node.next_change for node in self.nodes.values()], default=math.inf)

    def view_at(self, now: float) -> FleetView:
        """The same as of a moment, with the nodes that look otherwise than at the last decision."""
        self.refresh(now)
        returns = {blob: learner.curves(now) for blob, learner in self._returns.items()}
        nodes = tuple(self._views.values())
        changed = None if self._others else self._changed
        return FleetView(now, nodes, self.demand.rates(now), returns, changed, self._views, self._holders)

    def decided(self) -> None:
        """A decision was made on the last view: changes count from here on."""
        self._changed.clear()
        self._others = False

    def usual_options(self, blob: str) -> tuple[int, RunnerOptions]:
        """The context and the options that the last chat with these weights asked for."""
        return self._usual_options.get(blob, (0, ()))

    def asked_for(self, blob: str, request: FleetRequest) -> None:
        """A chat asks for these weights."""
        self._usual_options.pop(blob, None)
        self._usual_options[blob] = request.context, request.options
        if len(self._usual_options) > MAX_FOLLOWED_BLOBS:
            del self._usual_options[next(iter(self._usual_options))]

    def prompt_sent(self, node: str, blob: str, request: FleetRequest, now: float) -> tuple[int, int]:
        """A prompt goes to a node: it may be what another one goes on with.

        Returns:
            The tokens of it that others begin with as well, and what its return is learned by.
        """
        if blob not in self._returns and len(self._returns) >= MAX_FOLLOWED_BLOBS:
            del self._returns[next(iter(self._returns))]
        learner = self._returns.setdefault(blob, ReturnLearner())
        followed = learner.asked(request.blocks, now, background=request.background)
        if followed is None:
            return 0, 0
        self._remember_holder(node, request.blocks)
        return followed.shared, followed.kind

    def _prompt_sent_elsewhere(
        self, node: str, blob: str, blocks: tuple[PromptBlock, ...]
    ) -> tuple[int, int]:
        return self.prompt_sent(node, blob, FleetRequest("", "", (), blocks=blocks), self._clock())

    def _remember_holder(self, node: str, blocks: Sequence[PromptBlock]) -> None:
        for block in (*blocks[HOLDER_STRIDE - 1 :: HOLDER_STRIDE], blocks[-1]):
            before = self._holders.pop(block.chain, ())
            self._holders[block.chain] = (node, *(one for one in before if one != node))[:MAX_HOLDERS]
        while len(self._holders) > MAX_REMEMBERED:
            del self._holders[next(iter(self._holders))]

    def can_answer(self, models: Iterable[str]) -> bool:
        """Whether any node may be asked for one of these now, by whatever name it lists it."""
        names = {fold_name(name) for model in models for name in auto_parts(model)[0]}
        return any(not names.isdisjoint(node.models) for node in self.view().nodes if node.weight > 0)
