"""A node's virtual future: what it does now, and what those ahead in the queue will have it do.

The decision places each waiting request here, in fair order, so that the ones behind see the queue as it is.
"""

from bisect import bisect_right, insort
from collections.abc import Mapping
from dataclasses import dataclass

from ollama_pack.fleet.cost import (
    decode_share,
    evict_model,
    overwrite_prefix,
    predict_output,
    prompt_head,
    prompt_pace,
)
from ollama_pack.fleet.policy import RoutingPolicy
from ollama_pack.fleet.view import (
    FleetRequest,
    FleetView,
    InstalledModel,
    KeptPrefix,
    NodeView,
    PairRates,
    RunnerOptions,
    RunnerView,
)

_UNKNOWN = PairRates()


@dataclass(slots=True)
class VirtualRunner:
    """A runner in the virtual future: when it is loaded, when each of its slots is free."""

    blob: str
    size: int
    context: int
    options: RunnerOptions | None
    ready_at: float
    free_at: list[float]  # sorted, one for each slot
    prefixes: tuple[KeptPrefix, ...] = ()
    keeps: int = 1

    def fits(self, context: int, options: RunnerOptions) -> bool:
        """Whether it answers without being loaded anew."""
        big_enough = not context or not self.context or self.context >= context
        return big_enough and (not options or self.options == options)


@dataclass(slots=True)  # not frozen: thousands are made for one decision, and freezing takes most of the time
class Quote:
    """What a node can offer to requests for one model, whatever their prompt. Times are in seconds.

    Attributes:
        base: wait + load + decode + tier: what does not depend on the prompt.
        wait, load, decode, evict: as in `CostTerms`.
        pace: seconds for each token of the prompt that is not held, and
        head: before the first of them: `predict_prompt` in its two parts.
        starts_at: when the prompt can begin.
        starts_now: whether the node can begin, with a load or with the prompt, at this very moment.
        busy: requests that its runner then answers.
        blob: the weights.
        rates: of the node with these weights.
        reused: the runner that answers; None: one is loaded.
        victims: blobs that are unloaded first.
    """

    base: float
    wait: float
    load: float
    decode: float
    evict: float
    pace: float
    head: float
    starts_at: float
    starts_now: bool
    busy: int
    blob: str
    rates: PairRates
    reused: VirtualRunner | None
    victims: tuple[str, ...] = ()


@dataclass(slots=True)
class Clearing:
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
    """One node's future. Changed by `place` and `reserve` alone."""

    def __init__(
        self, view: NodeView, fleet: FleetView, held: Mapping[str, int], policy: RoutingPolicy
    ) -> None:
        """Begin with what the node does now.

        Args:
            view: the node.
            fleet: the moment, and what is asked for.
            held: blob → how many nodes have it in memory, kept up to date by the caller.
            policy: weights and bounds.
        """
        self.view = view
        self.runners = {runner.blob: self._virtual(runner, fleet.now, policy) for runner in view.runners}
        self._fleet = fleet
        self._now = fleet.now
        self._held = held
        self._policy = policy
        self._tier = policy.tier_seconds * view.tier
        self._loading_until = max(fleet.now, view.loading_until)
        self._reserved = False
        self._quotes: dict[tuple[object, ...], Quote] = {}
        self._clearings: dict[tuple[int, str], Clearing] = {}

    def _virtual(self, runner: RunnerView, now: float, policy: RoutingPolicy) -> VirtualRunner:
        ends = runner.ends
        if ends and min(ends) <= now:  # longer than predicted: how long still, nobody knows
            overdue = now + policy.overdue_share * self.view.rates.get(runner.blob, _UNKNOWN).service
            ends = tuple(end if end > now else overdue for end in ends)
        free_at = [0.0] * (runner.slots - len(ends)) + sorted(ends)[-runner.slots :]
        return VirtualRunner(
            runner.blob,
            runner.size,
            runner.context,
            runner.options,
            runner.ready_at,
            free_at,
            runner.prefixes,
            runner.keeps,
        )

    def forget_quotes(self) -> None:
        """Somewhere a model was evicted: what evicting it here costs has changed."""
        self._quotes.clear()
        self._clearings.clear()

    def reserve(self) -> None:
        """Nobody behind may begin here now."""
        self._reserved = True
        self._quotes.clear()

    def is_open(self) -> bool:
        """Whether it could begin anything at this moment."""
        if self._reserved:
            return False
        now = self._now
        for runner in self.runners.values():
            if runner.free_at[0] <= now and runner.ready_at <= now:
                return True
        used = sum(runner.size for runner in self.runners.values())
        return self._loading_until <= now and (not self.runners or used < self.view.room)

    def quote(self, model: str, request: FleetRequest) -> Quote:
        """What it can offer for a model that it has, to any request of this kind."""
        key = (model, request.background, request.max_output, request.context, request.options)
        found = self._quotes.get(key)
        if found is None:
            found = self._quotes[key] = self._make_quote(self.view.models[model], request)
        return found

    def _make_quote(self, model: InstalledModel, request: FleetRequest) -> Quote:
        rates = self.view.rates.get(model.blob, _UNKNOWN)
        runner = self.runners.get(model.blob)
        output = predict_output(rates, background=request.background, limit=request.max_output)
        if runner and runner.fits(request.context, request.options):
            return self._offer_runner(runner, rates, output)
        return self._offer_load(model, rates, output)

    def _offer_runner(self, runner: VirtualRunner, rates: PairRates, output: float) -> Quote:
        starts = max(self._now, runner.ready_at, runner.free_at[0])
        busy = len(runner.free_at) - bisect_right(runner.free_at, starts)
        evict = 0.0
        if len(runner.prefixes) >= runner.keeps:
            evict = overwrite_prefix(runner.prefixes[-1], self._now, rates, self._policy)
        decode = decode_share(output, busy, len(runner.free_at), rates, self._policy)
        return Quote(
            base=starts - self._now + decode + self._tier,
            wait=starts - self._now,
            load=0.0,
            decode=decode,
            evict=evict,
            pace=prompt_pace(busy, rates),
            head=prompt_head(busy, rates),
            starts_at=starts,
            starts_now=starts <= self._now and not self._reserved,
            busy=busy,
            blob=runner.blob,
            rates=rates,
            reused=runner,
        )

    def _offer_load(self, model: InstalledModel, rates: PairRates, output: float) -> Quote:
        own = model.blob if model.blob in self.runners else ""
        found = self._clearings.get((model.size, own))
        if found is None:
            found = self._clearings[model.size, own] = self._clear(model.size, own)
        decode = decode_share(output, 0, rates.slots, rates, self._policy)
        return Quote(
            base=found.begins - self._now + rates.load + decode + self._tier,
            wait=found.begins - self._now,
            load=rates.load,
            decode=decode,
            evict=found.evict,
            pace=prompt_pace(0, rates),
            head=prompt_head(0, rates),
            starts_at=found.begins + rates.load,
            starts_now=found.begins <= self._now and not self._reserved,
            busy=0,
            blob=model.blob,
            rates=rates,
            reused=None,
            victims=found.victims,
        )

    def _clear(self, size: int, own: str) -> Clearing:
        """Make room as Ollama does: those that are idle go first. A runner that is loaded anew goes, too."""
        others = [runner for runner in self.runners.values() if runner.blob != own]
        if len(others) > 1:
            others.sort(key=_idle_at)
        needed = size - self.view.room
        for runner in others:
            needed += runner.size
        gone = [self.runners[own]] if own else []
        begins, evict = self._loading_until, 0.0
        for runner in others:
            if needed <= 0:
                break
            gone.append(runner)
            needed -= runner.size
            evict += self._evict(runner.blob)
        for runner in gone:
            begins = max(begins, runner.free_at[-1], runner.ready_at)
        return Clearing(begins, evict, tuple(runner.blob for runner in gone))

    def _evict(self, blob: str) -> float:
        rates = self.view.rates.get(blob, _UNKNOWN)
        others = max(0, self._held.get(blob, 1) - 1)
        return evict_model(rates, self._fleet.demand.get(blob, 0.0), others, self._policy)

    def place(self, quote: Quote, request: FleetRequest, service: float) -> None:
        """Let a request take the slot that was quoted, for so many seconds from when it starts."""
        self.forget_quotes()
        runner = quote.reused or self._load(quote, request)
        del runner.free_at[0]
        insort(runner.free_at, quote.starts_at + service)
        runner.prefixes = runner.prefixes[: runner.keeps - 1]  # the last used stay

    def _load(self, quote: Quote, request: FleetRequest) -> VirtualRunner:
        for blob in quote.victims:
            del self.runners[blob]
        size = next(model.size for model in self.view.models.values() if model.blob == quote.blob)
        self._loading_until = quote.starts_at
        runner = self.runners[quote.blob] = VirtualRunner(
            quote.blob,
            size,
            request.context,
            request.options,
            quote.starts_at,
            [quote.starts_at] * quote.rates.slots,
            keeps=quote.rates.keeps,
        )
        return runner


def _idle_at(runner: VirtualRunner) -> float:
    return runner.free_at[-1]
