"""A node's virtual future: what it does now, and what those ahead in the queue will have it do.

The decision places each waiting request here, in fair order, so that the ones behind see the queue as it is.
"""

from bisect import bisect_right, insort
from collections.abc import Mapping
from dataclasses import dataclass

from ollama_pack.routing.decide.cost import (
    decode_share,
    evict_model,
    overwrite_prefix,
    predict_output,
    prompt_head,
    prompt_pace,
)
from ollama_pack.routing.decide.policy import RoutingPolicy
from ollama_pack.routing.decide.view import (
    FleetRequest,
    FleetView,
    InstalledModel,
    KeptPrefix,
    NodeView,
    PairRates,
    RunnerOptions,
    RunnerView,
    fits_runner,
)

# The model's name as `fold_name` makes it, the request's kind, its limit on the output.
QuoteKey = tuple[str, str, int]

_UNKNOWN = PairRates()


@dataclass(slots=True)
class VirtualRunner:
    """A runner in the virtual future: when it is loaded, when each of its slots is free."""

    blob: str
    size: int
    context: int
    asked: int | None
    options: RunnerOptions | None
    ready_at: float
    free_at: list[float]  # sorted, one for each slot
    prefixes: tuple[KeptPrefix, ...] = ()
    keeps: int = 1
    remote: bool = False

    def fits(self, request: FleetRequest, model: InstalledModel) -> bool:
        """Whether it answers without being loaded again."""
        return model.fixed or fits_runner(model.wanted(request), self.context, self.asked, self.options)


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
        model: the name by which the node knows the model.
        blob: the weights.
        rates: of the node with these weights.
        prefixes: what the runner that answers still holds.
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
    model: str
    blob: str
    rates: PairRates
    prefixes: tuple[KeptPrefix, ...]
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
    """One node's future. Changed by `place` and `reserve` alone.

    Attributes:
        view: the node as it is now.
        runners: by the digest of their weights.
        quotes: what it can offer, as long as nothing changes.
    """

    __slots__ = (
        "_clearings",
        "_fleet",
        "_held",
        "_loading_until",
        "_now",
        "_placed",
        "_policy",
        "_reserved",
        "_tier",
        "quotes",
        "runners",
        "view",
    )

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
        self.runners = {
            runner.blob: _virtual_runner(runner, view, fleet.now, policy) for runner in view.runners
        }
        self._placed = 0
        self._fleet = fleet
        self._now = fleet.now
        self._held = held
        self._policy = policy
        self._tier = policy.tier_seconds * view.tier
        self._loading_until = max(fleet.now, view.loading_until)
        self._reserved = False
        self.quotes: dict[QuoteKey, Quote] = {}
        self._clearings: dict[tuple[int, str], Clearing] = {}

    @property
    def running(self) -> int:
        """Requests that it answers, those that were placed here included."""
        return self._placed + sum([len(runner.ends) for runner in self.view.runners])

    def forget_quotes(self) -> None:
        """Somewhere a model was evicted: what evicting it here costs has changed."""
        self.quotes.clear()
        self._clearings.clear()

    def reserve(self) -> None:
        """Nobody behind may begin here now."""
        self._reserved = True
        self.quotes.clear()

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

    def quote(self, key: QuoteKey, request: FleetRequest) -> Quote:
        """What it can offer for a model that it has, to any request of this kind; kept in `quotes`.

        Args:
            key: the model, and what else of the request the quote depends on.
            request: one of that kind.
        """
        model = self.view.models[key[0]]
        rates = self.view.rates.get(model.blob, _UNKNOWN)
        runner = self.runners.get(model.blob)
        output = predict_output(rates, background=request.background, limit=request.max_output)
        if runner and runner.fits(request, model):
            made = self._offer_runner(model, runner, rates, output)
        else:
            made = self._offer_load(model, rates, output)
        self.quotes[key] = made
        return made

    def _offer_runner(
        self, model: InstalledModel, runner: VirtualRunner, rates: PairRates, output: float
    ) -> Quote:
        now, free_at = self._now, runner.free_at
        starts = max(now, runner.ready_at, free_at[0])
        busy = len(free_at) - bisect_right(free_at, starts)
        evict = 0.0
        if len(runner.prefixes) >= runner.keeps:
            evict = overwrite_prefix(runner.prefixes[-1], now, rates, self._policy)
        decode = decode_share(output, busy, len(free_at), rates, self._policy)
        return Quote(  # by position: by name takes twice as long, and here it counts
            starts - now + decode + self._tier,
            starts - now,
            0.0,
            decode,
            evict,
            prompt_pace(busy, rates),
            prompt_head(busy, rates),
            starts,
            starts <= now and not self._reserved,
            model.name,
            runner.blob,
            rates,
            runner.prefixes,
            runner,
        )

    def _offer_load(self, model: InstalledModel, rates: PairRates, output: float) -> Quote:
        own = model.blob if model.blob in self.runners else ""
        found = self._clearings.get((model.size, own))
        if found is None:
            found = self._clearings[model.size, own] = self._clear(model.size, own)
        decode = decode_share(output, 0, rates.slots, rates, self._policy)
        wait = found.begins - self._now
        return Quote(
            wait + rates.load + decode + self._tier,
            wait,
            rates.load,
            decode,
            found.evict,
            prompt_pace(0, rates),
            prompt_head(0, rates),
            found.begins + rates.load,
            wait <= 0 and not self._reserved,
            model.name,
            model.blob,
            rates,
            (),
            None,
            found.victims,
        )

    def _clear(self, size: int, own: str) -> Clearing:
        """Make room as Ollama does: those that are idle go first. A runner that is loaded anew goes, too."""
        others = [runner for runner in self.runners.values() if runner.blob != own and not runner.remote]
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
        return Clearing(begins, evict, tuple([runner.blob for runner in gone]))

    def _evict(self, blob: str) -> float:
        rates = self.view.rates.get(blob, _UNKNOWN)
        others = max(0, self._held.get(blob, 1) - 1)
        return evict_model(rates, self._fleet.demand.get(blob, 0.0), others, self._policy)

    def place(self, quote: Quote, request: FleetRequest, service: float) -> None:
        """Let a request take the slot that was quoted, for so many seconds from when it starts."""
        self.forget_quotes()
        self._placed += 1
        runner = quote.reused or self._load(quote, request)
        del runner.free_at[0]
        insort(runner.free_at, quote.starts_at + service)
        runner.prefixes = runner.prefixes[: runner.keeps - 1]  # the last used stay

    def _load(self, quote: Quote, request: FleetRequest) -> VirtualRunner:
        for blob in quote.victims:
            del self.runners[blob]
        model = next(model for model in self.view.models.values() if model.name == quote.model)
        asked, options = model.wanted(request)
        self._loading_until = quote.starts_at
        runner = self.runners[quote.blob] = VirtualRunner(
            quote.blob,
            model.size,
            0,
            asked,
            options,
            quote.starts_at,
            [quote.starts_at] * quote.rates.slots,
            keeps=quote.rates.keeps,
        )
        return runner


def _virtual_runner(runner: RunnerView, node: NodeView, now: float, policy: RoutingPolicy) -> VirtualRunner:
    free_at = sorted(runner.ends)
    if free_at and free_at[0] <= now:  # longer than predicted: how long still, nobody knows
        overdue = now + policy.overdue_share * node.rates.get(runner.blob, _UNKNOWN).service
        free_at = sorted([end if end > now else overdue for end in free_at])
    idle = runner.slots - len(free_at)
    free_at = [0.0] * idle + free_at if idle >= 0 else free_at[-idle:]
    return VirtualRunner(
        runner.blob,
        runner.size,
        runner.context,
        runner.asked,
        runner.options,
        runner.ready_at,
        free_at,
        runner.prefixes,
        runner.keeps,
        runner.remote,
    )


def _idle_at(runner: VirtualRunner) -> float:
    return runner.free_at[-1]
