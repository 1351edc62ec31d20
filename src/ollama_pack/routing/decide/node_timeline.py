"""A node's virtual future: what it does now, and what those ahead in the queue will have it do.

The decision places each waiting request here, in fair order, so that the ones behind see the queue as it is.
A timeline on which nothing was placed serves the next decision as well, until its node changes.
"""

from bisect import insort
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Self

from ollama_pack.routing.decide.cost import (
    decode_share,
    evict_model,
    overwrite_prefix,
    predict_output,
    prompt_head,
    prompt_pace,
)
from ollama_pack.routing.decide.policy import RoutingPolicy
from ollama_pack.routing.decide.returns import ReturnCurve
from ollama_pack.routing.decide.view import (
    NOTHING_HELD,
    FleetRequest,
    HeldPrefixes,
    InstalledModel,
    ModelRates,
    NodeView,
    RunnerOptions,
    RunnerView,
    fits_runner,
)

# The model's name as `fold_name` makes it, the request's kind, its limit on the output.
QuoteKey = tuple[str, str, int]

SIZE_TOLERANCE = 64  # a prediction may be off by this part of the memory
SHORTEST_SERVICE = 0.001  # seconds
FRESH_SECONDS = 1.0  # for so long a quote holds: what a prefix and a model are worth changes slowly
_UNKNOWN = ModelRates()


@dataclass(slots=True)
class TimelineContext:
    """What all timelines of a fleet go by.

    Attributes:
        policy: weights and bounds.
        now: the moment of the decision.
        demand: blob → requests a second that ask for it.
        returns: blob → how likely its prompts are gone on with, by their kind.
        held: blob → how many nodes have it in memory.
    """

    policy: RoutingPolicy
    now: float = 0.0
    demand: Mapping[str, float] = field(default_factory=dict)
    returns: Mapping[str, Sequence[ReturnCurve]] = field(default_factory=dict)
    held: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class VirtualRunner:
    """A runner in the virtual future: when it is loaded, when each of its busy slots is free.

    Attributes:
        ends: of those that it answers, sorted.
        placed: requests that were placed here in this decision: each has overwritten a prefix.
    """

    blob: str
    size: int
    context: int
    asked: int | None
    options: RunnerOptions | None
    slots: int
    ready_at: float
    ends: list[float]
    prefixes: HeldPrefixes = NOTHING_HELD
    keeps: int = 1
    placed: int = 0
    remote: bool = False

    def fits(self, request: FleetRequest, model: InstalledModel) -> bool:
        """Whether it answers without being loaded again."""
        if model.fixed:
            return True
        known = self.context, self.asked, self.options
        return fits_runner(model.wanted(request), *known, model.options)

    @property
    def has_slot(self) -> bool:
        """Whether a slot is free, if only when it is loaded."""
        return len(self.ends) < self.slots

    def busy_until(self, now: float, overdue: float) -> list[float]:
        """When each busy slot is free. Who takes longer than predicted still takes `overdue` seconds."""
        if self.ends and self.ends[0] <= now:
            return sorted([end if end > now else now + overdue for end in self.ends])
        return self.ends

    def free_at(self, now: float, overdue: float) -> float:
        """When a slot is free."""
        if self.has_slot:
            return now
        return self.busy_until(now, overdue)[len(self.ends) - self.slots]

    def idle_at(self, now: float, overdue: float) -> float:
        """When all are."""
        return self.busy_until(now, overdue)[-1] if self.ends else now


@dataclass(slots=True)  # not frozen: thousands are made for one decision, and freezing takes most of the time
class Quote:
    """What a node can offer to requests for one model, whatever their prompt. Times are in seconds.

    Attributes:
        starts_at: when the prompt can begin, unless a load comes first: then when the load can.
        now_open: whether the node can begin, with a load or with the prompt, at this very moment.
        fixed: load + decode + tier: what depends neither on the prompt nor on the moment.
        load, decode: as in `CostTerms`.
        evict: what others lose.
        pace: seconds for each token of the prompt that is not held.
        head: seconds before the first of them.
        model: the name by which the node knows the model.
        blob: the weights.
        rates: of the node with these weights.
        reused: the runner that answers; None: one is loaded.
        victims: blobs that are unloaded first.
        good_until: until when the quote holds.
    """

    starts_at: float
    now_open: bool
    fixed: float
    load: float
    decode: float
    evict: float
    pace: float
    head: float
    model: str
    blob: str
    rates: ModelRates
    reused: VirtualRunner | None
    victims: tuple[str, ...]
    good_until: float


@dataclass(slots=True)
class EvictionPlan:
    """What it takes before a node can load weights of some size.

    Attributes:
        begins: when the load can begin.
        evict: what unloading the victims costs others, in seconds.
        victims: the blobs that are unloaded.
    """

    begins: float
    evict: float
    victims: tuple[str, ...]


class VirtualNode:
    """One node's future. Changed by `place` and `reserve` alone.

    Attributes:
        view: the node as it is now.
        runners: by the digest of their weights.
        changed: something was placed here, or nobody may begin here.
        served: the digests of the weights that it may be asked for now.
    """

    __slots__ = (
        "_evictions",
        "_loading_until",
        "_moment",
        "_placed",
        "_quotes",
        "_reserved",
        "_tier",
        "changed",
        "runners",
        "served",
        "view",
    )

    def __init__(self, view: NodeView, moment: TimelineContext, before: Self | None = None) -> None:
        """Begin with what the node does now. What was there `before` saves time."""
        self.view = view
        self.served: frozenset[str]
        if before is not None and before.view.models is view.models:
            self.served = before.served
        else:
            self.served = frozenset([model.blob for model in view.models.values()])
        self.runners = {runner.blob: _virtual_runner(runner) for runner in view.runners}
        self.changed = False
        self._placed = 0
        self._moment = moment
        self._tier = moment.policy.tier_seconds * view.tier
        self._loading_until = view.loading_until
        self._reserved = False
        self._quotes: dict[QuoteKey, Quote] = {}
        self._evictions: dict[tuple[int, str], EvictionPlan] = {}

    @property
    def running(self) -> int:
        """Requests that it answers, those that were placed here included."""
        return self._placed + sum([len(runner.ends) for runner in self.view.runners])

    def answers(self, model: str) -> int:
        """Requests for a model that it answers now, without those placed here or waiting for its load."""
        blob, now = self.view.models[model].blob, self._moment.now
        return sum([len(one.ends) for one in self.view.runners if one.blob == blob and one.ready_at <= now])

    def forget_quotes(self) -> None:
        """Somewhere a model was evicted: what evicting it here costs has changed."""
        self._quotes.clear()
        self._evictions.clear()

    def reserve(self) -> None:
        """Nobody behind may begin here now."""
        self._reserved = self.changed = True
        self._quotes.clear()

    def is_open(self) -> bool:
        """Whether it could begin anything at this moment."""
        if self._reserved:
            return False
        now, used = self._moment.now, 0
        for runner in self.runners.values():
            if len(runner.ends) < runner.slots and runner.ready_at <= now:
                return True
            used += runner.size
        return self._loading_until <= now and (not used or used + self.view.smallest <= self.view.room)

    def has_room(self) -> bool:
        """Whether it can load a model at this moment, and nothing has to be unloaded for a small one."""
        if self._reserved or not self.view.loads_ahead or self._loading_until > self._moment.now:
            return False
        used = sum([runner.size for runner in self.runners.values()])
        return not self.runners or used + self.view.smallest <= self.view.room

    def has_room_for_all(self) -> bool:
        """Whether its memory holds all of its models together: loading one takes nothing from the others."""
        sizes = {model.blob: model.size for model in self.view.models.values()}
        sizes |= {blob: runner.size for blob, runner in self.runners.items()}
        return len(sizes) == 1 or sum(sizes.values()) <= self.view.room

    def serves_now(self, blob: str) -> bool:
        """Whether it has these weights in memory, and a slot free for them at this moment."""
        runner = self.runners.get(blob)
        return (
            runner is not None
            and not self._reserved
            and len(runner.ends) < runner.slots
            and runner.ready_at <= self._moment.now
        )

    def has(self, model: str) -> bool:
        """Whether a model that it may be asked for is in memory."""
        installed = self.view.models.get(model)
        return installed is not None and installed.blob in self.runners

    def load_seconds(self, model: str) -> float:
        """How long loading a model that it has takes."""
        return self.view.rates.get(self.view.models[model].blob, _UNKNOWN).load

    def pace(self, blob: str, slots: int) -> float:
        """Usual requests a second that so many slots of it answer with some weights."""
        return slots / max(SHORTEST_SERVICE, self.view.rates.get(blob, _UNKNOWN).service)

    def free_at(self, runner: VirtualRunner) -> float:
        """About when a runner has a slot free; in the past: any moment."""
        if runner.has_slot:
            return runner.ready_at
        return max(runner.ready_at, runner.ends[len(runner.ends) - runner.slots])

    def can_load(self) -> tuple[bool, float]:
        """Whether it can load something once a load is over, and about when that or an idle runner is.

        How much memory that takes, and what is in the way, `quote` finds out.
        """
        if self._reserved:
            return False, self._loading_until
        used, idle_at = 0, inf
        for runner in self.runners.values():
            used += runner.size
            if not runner.remote:
                idle_at = min(idle_at, max(runner.ready_at, runner.ends[-1] if runner.ends else 0.0))
                if not runner.ends and runner.ready_at <= max(self._moment.now, self._loading_until):
                    return True, max(self._loading_until, runner.ready_at)
        if not used or used + self.view.smallest <= self.view.room:
            return True, self._loading_until
        return False, max(self._loading_until, idle_at)

    def quote(self, key: QuoteKey, request: FleetRequest) -> Quote:
        """What it can offer for a model that it has, to any request of this kind.

        Args:
            key: the model, and what else of the request the quote depends on.
            request: one of that kind.
        """
        known = self._quotes.get(key)
        if known is not None and known.good_until > self._moment.now:
            return known
        model = self.view.models[key[0]]
        rates = self.view.rates.get(model.blob, _UNKNOWN)
        runner = self.runners.get(model.blob)
        output = predict_output(rates, background=request.background, limit=request.max_output)
        if runner and runner.fits(request, model):
            made = self._offer_runner(model, runner, rates, output)
        else:
            made = self._offer_load(model, rates, output, model.takes(request.context))
        if len(self._quotes) > MAX_QUOTES:
            self._quotes.clear()
        self._quotes[key] = made
        return made

    def _offer_runner(
        self, model: InstalledModel, runner: VirtualRunner, rates: ModelRates, output: float
    ) -> Quote:
        policy, now = self._moment.policy, self._moment.now
        starts = max(runner.ready_at, runner.free_at(now, policy.overdue_share * rates.service))
        busy = len(runner.ends)
        beside = min(busy, runner.slots - 1)
        evict = 0.0
        oldest = runner.prefixes.oldest()
        if oldest is not None and runner.placed < runner.keeps:
            evict = overwrite_prefix(oldest, now, rates, self._moment.returns.get(runner.blob, ()))
        decode = decode_share(output, beside, runner.slots, rates, policy)
        good_until = now + FRESH_SECONDS
        if starts > now:
            good_until = min(starts, good_until) if not runner.ends or runner.ends[0] > now else now
        return Quote(  # by position: by name takes twice as long, and here it counts
            starts,
            starts <= now and not self._reserved,
            decode + self._tier,
            0.0,
            decode,
            evict,
            prompt_pace(beside, rates),
            prompt_head(beside, rates),
            model.name,
            runner.blob,
            rates,
            runner,
            (),
            good_until,
        )

    def _offer_load(self, model: InstalledModel, rates: ModelRates, output: float, size: int) -> Quote:
        own = model.blob if model.blob in self.runners else ""
        now = self._moment.now
        found = self._evictions.get((size, own))
        if found is None or found.begins <= now:
            found = self._evictions[size, own] = self._plan_eviction(size, own)
        decode = decode_share(output, 0, rates.slots, rates, self._moment.policy)
        open_now = found.begins <= now
        return Quote(
            found.begins,
            open_now and not self._reserved,
            rates.load + decode + self._tier,
            rates.load,
            decode,
            found.evict,
            prompt_pace(0, rates),
            prompt_head(0, rates),
            model.name,
            model.blob,
            rates,
            None,
            found.victims,
            now + FRESH_SECONDS if open_now else min(found.begins, now + FRESH_SECONDS),
        )

    def _plan_eviction(self, size: int, own: str) -> EvictionPlan:
        """Make room as Ollama does: the idle ones go first, by their digests as all stay equally long.

        A runner that is loaded again goes, too.
        """
        now = self._moment.now
        share = self._moment.policy.overdue_share
        idle_at = {
            blob: runner.idle_at(now, share * self.view.rates.get(blob, _UNKNOWN).service)
            for blob, runner in self.runners.items()
        }
        others = [runner for runner in self.runners.values() if runner.blob != own and not runner.remote]
        if len(others) > 1:
            others.sort(key=lambda runner: (idle_at[runner.blob], runner.blob))
        needed = size - self.view.room - self.view.room // SIZE_TOLERANCE
        for runner in others:
            needed += runner.size
        gone = [self.runners[own]] if own else []
        begins, evict = max(now, self._loading_until), 0.0
        for runner in others:
            if needed <= 0:
                break
            gone.append(runner)
            needed -= runner.size
            evict += self._evict(runner.blob)
        for runner in gone:
            begins = max(begins, idle_at[runner.blob], runner.ready_at)
        return EvictionPlan(begins, evict, tuple([runner.blob for runner in gone]))

    def _evict(self, blob: str) -> float:
        rates = self.view.rates.get(blob, _UNKNOWN)
        others = max(0, self._moment.held.get(blob, 1) - 1)
        return evict_model(rates, self._moment.demand.get(blob, 0.0), others, self._moment.policy)

    def place(self, quote: Quote, request: FleetRequest, service: float) -> None:
        """Let a request take the slot that was quoted, for so many seconds from when it starts."""
        self.forget_quotes()
        self.changed = True
        self._placed += 1
        runner = quote.reused or self._load(quote, request)
        now = self._moment.now
        if not runner.has_slot:
            overdue = self._moment.policy.overdue_share * quote.rates.service
            runner.ends = runner.busy_until(now, overdue)[len(runner.ends) - runner.slots + 1 :]
        insort(runner.ends, max(now, quote.starts_at + quote.load) + service)
        runner.placed += 1

    def _load(self, quote: Quote, request: FleetRequest) -> VirtualRunner:
        for blob in quote.victims:
            del self.runners[blob]
        model = next(model for model in self.view.models.values() if model.name == quote.model)
        asked, options = model.wanted(request)
        self._loading_until = max(self._moment.now, quote.starts_at) + quote.load
        runner = self.runners[quote.blob] = VirtualRunner(
            quote.blob,
            model.takes(asked),
            0,
            asked,
            options,
            quote.rates.slots,
            self._loading_until,
            [],
            keeps=quote.rates.keeps,
        )
        return runner


MAX_QUOTES = 64  # that a timeline keeps, whatever limits clients set on their outputs


def _virtual_runner(runner: RunnerView) -> VirtualRunner:
    return VirtualRunner(
        runner.blob,
        runner.size,
        runner.context,
        runner.asked,
        runner.options,
        runner.slots,
        runner.ready_at,
        sorted(runner.ends),
        runner.prefixes,
        runner.keeps,
        remote=runner.remote,
    )
