"""How fast a node runs a model, learned from the durations that the engine reports."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isclose
from statistics import fmean

from ollama_pack.routing.decide.view import ModelRates

SAMPLES_TO_TRUST = 5
SMOOTHING = 0.2  # the weight of a new sample; the first few weigh more
MIN_PROMPT = 32  # tokens; shorter ones measure the overhead
MOST_HIT = 0.4  # of a prompt: where more is believed to be held, being wrong would matter too much
HIT_FACTOR = 2.5  # a prompt that goes so many times faster than usual was held in part
MAX_COUNTED = 1024  # slots of an engine that tells how many requests it answers
WAIT_NOISE = 0.15  # seconds of reported wait that mean nothing
GOOD_FACTOR = 2.0  # a first token that takes so many times as long as one alone has not waited
COUNTS_TO_SHRINK = 2  # reports in a row that the engine holds requests back


@dataclass(frozen=True, slots=True)
class Durations:
    """What an engine reports at the end of a request, in seconds and tokens.

    Attributes:
        total: from its arrival at the node to its end.
        load: loading the model.
        prompt: evaluating the prompt.
        prompt_count: tokens of the prompt, those reused included.
        decode: generating.
        decode_count: tokens generated.
        hit: tokens reused, where the engine tells (`cached_tokens`); None: it does not.
    """

    total: float
    load: float = 0.0
    prompt: float = 0.0
    prompt_count: int = 0
    decode: float = 0.0
    decode_count: int = 0
    hit: int | None = None

    @property
    def wait(self) -> float:
        """Seconds in the engine's own queue: total - load - prompt evaluation - generation."""
        return max(0.0, self.total - self.load - self.prompt - self.decode)


class Average:
    """An exponentially weighted mean; its first samples are averaged plainly."""

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0

    def add(self, sample: float) -> None:
        self.count += 1
        self.value += max(SMOOTHING, 1 / self.count) * (sample - self.value)

    def or_else(self, prior: float) -> float:
        return self.value if self.count else prior


class RatesLearner:
    """The rates at which one node runs one set of weights."""

    def __init__(self) -> None:
        self.load = Average()
        self.prompt = Average()
        self.token = Average()
        self.output = Average()
        self.background_output = Average()
        self.service = Average()
        self._fast = 0

    def observe(self, spent: Durations, hit: int | None, *, background: bool, loaded: bool) -> None:
        """Learn from one finished request.

        Args:
            spent: what the engine reports.
            hit: tokens of the prompt that are believed to have been held; None: nobody knows.
            background: whether it was a background call, whose answers are shorter.
            loaded: whether it made the node load the model.
        """
        if loaded and spent.load > 0:
            self.load.add(spent.load)
        if spent.decode > 0 and spent.decode_count > 1:
            self.token.add(spent.decode / spent.decode_count)
        if spent.decode_count:
            (self.background_output if background else self.output).add(spent.decode_count)
        if not background:
            self.service.add(spent.prompt + spent.decode)
        known = spent.hit if spent.hit is not None else hit
        if known is not None:
            self._observe_prompt(spent, known)

    def _observe_prompt(self, spent: Durations, hit: int) -> None:
        """Likely hits are left out, unless every prompt is fast: then it is the rate that has changed."""
        evaluated = spent.prompt_count - hit
        if (
            spent.prompt <= 0
            or evaluated < MIN_PROMPT
            or (spent.hit is None and hit > MOST_HIT * spent.prompt_count)
        ):
            return
        rate = evaluated / spent.prompt
        self._fast = self._fast + 1 if self.prompt.count and rate > HIT_FACTOR * self.prompt.value else 0
        if self._fast == 0:
            self.prompt.add(rate)
        elif self._fast >= SAMPLES_TO_TRUST:
            self.prompt.value, self._fast = rate, 0

    def hit(self, spent: Durations) -> float:
        """Tokens of the prompt that were reused: as told, or 1 - duration * rate / count of it."""
        if spent.hit is not None:
            return spent.hit
        return max(0.0, spent.prompt_count - spent.prompt * self.prompt.value)

    def rates(self, priors: ModelRates, slots: int, keeps: int) -> ModelRates:
        """What is known, filled up with what is usual."""
        return ModelRates(
            slots=slots,
            keeps=keeps,
            load=self.load.or_else(priors.load),
            prompt=self.prompt.or_else(priors.prompt),
            token=self.token.or_else(priors.token),
            output=self.output.or_else(priors.output),
            background_output=self.background_output.or_else(priors.background_output),
            service=self.service.or_else(priors.service),
            learned=min(self.prompt.count, self.token.count) >= SAMPLES_TO_TRUST,
            load_measured=self.load.count > 0,
        )


def usual_rates(nodes: Sequence[RatesLearner], priors: ModelRates) -> ModelRates:
    """What nodes have measured, on average; as in `priors` what none of them has."""

    def mean(of: Callable[[RatesLearner], Average], prior: float) -> float:
        measured = [average.value for node in nodes if (average := of(node)).count]
        return fmean(measured) if measured else prior

    return replace(
        priors,
        load=mean(lambda node: node.load, priors.load),
        prompt=mean(lambda node: node.prompt, priors.prompt),
        token=mean(lambda node: node.token, priors.token),
        output=mean(lambda node: node.output, priors.output),
        background_output=mean(lambda node: node.background_output, priors.background_output),
        service=mean(lambda node: node.service, priors.service),
    )


def are_near(one: ModelRates, other: ModelRates) -> bool:
    """Whether all that nodes measure is the same in both, give or take a tenth."""
    pairs = (
        (one.load, other.load),
        (one.prompt, other.prompt),
        (one.token, other.token),
        (one.output, other.output),
        (one.background_output, other.background_output),
        (one.service, other.service),
    )
    return all(isclose(*pair, rel_tol=0.1) for pair in pairs)


class SlotLearner:
    """How many requests a runner answers at once: what its row says, else measured, from one upwards.

    While answers begin as soon as they do alone, twice as many are offered: an engine that batches has all of
    its slots within a few first tokens. When requests wait inside the engine, what was good before is gone
    back to, and one more is tried after ever more requests: an engine with one slot is hardly ever flooded.
    """

    def __init__(self, declared: int | None, probe_requests: int) -> None:
        self.slots = declared or 1
        self._declared = declared is not None
        self._every = probe_requests
        self._until_try = 0
        self._proved = 1  # so many were answered at once without waiting
        self._limited = False  # requests have waited in the engine: from now on one more is tried at a time
        self._reports = False  # the engine says whether requests wait in it
        self._held_back = 0
        self._waited = 0
        self._slow = 0
        self._alone = Average()  # seconds to the first token of requests that had the runner to themselves
        self._pace = Average()  # the same for each token of a long prompt

    @property
    def offered(self) -> int:
        """The slots to count on now, the one that is tried included."""
        tries = not self._declared and self._until_try <= 0 and self.slots < MAX_COUNTED
        return self.slots + tries

    def counted(self, running: int, waiting: int) -> None:
        """Learn from an engine that reports how many requests it answers at once, and how many wait."""
        if self._declared:
            return
        self._reports = True
        self._held_back = self._held_back + 1 if waiting and 0 < running < self.slots else 0
        if running > self.slots or self._held_back >= COUNTS_TO_SHRINK:
            self.slots, self._held_back = min(running, MAX_COUNTED), 0
        if waiting:
            self._limited = True
        elif running >= self.slots:
            self.slots, self._limited = min(2 * running, MAX_COUNTED), False

    def began(self, beside: int, seconds: float, tokens: int) -> None:
        """Learn from a first token.

        Args:
            beside: requests that ran there when this one was sent.
            seconds: that it took.
            tokens: of its prompt that were not held.
        """
        if self._declared:
            return
        if beside == 0:
            self._alone.add(seconds)
            self._pace.add(seconds / max(1, tokens))
        expected = max(self._alone.value, self._pace.value * tokens)
        there = beside + 1
        if not self._alone.count or seconds <= GOOD_FACTOR * expected + WAIT_NOISE:
            self._slow = 0
            if not self._limited and 2 * there > self.slots:
                self.slots = min(2 * there, MAX_COUNTED)
        elif there <= self.slots and not self._reports:
            self._slow += 1
            if self._slow >= SAMPLES_TO_TRUST:
                self._slow, self._limited = 0, True
                self.slots = max(1, min(self.slots, there) * 3 // 4)
                self._until_try = self._every

    def observe(self, beside: int, wait: float) -> None:
        """Learn from a request that was sent while `beside` others ran, and waited so long in the engine."""
        self._until_try -= 1
        if self._declared:
            return
        if wait < WAIT_NOISE:
            self._waited = 0
            self._proved = max(self._proved, beside + 1)
            if beside >= self.slots:
                self.slots = min(MAX_COUNTED, beside + 1)
            return
        self._limited = True
        if beside >= self.slots:
            self._try_later()
        elif beside > 0:
            self._waited += 1
            if beside >= self._proved or self._waited >= SAMPLES_TO_TRUST:  # it has fewer than was believed
                self.slots = self._proved = beside
                self._waited = 0
                self._try_later()

    def _try_later(self) -> None:
        if self._until_try <= 0:
            self._until_try = self._every
            self._every = min(2 * self._every, 4096)
