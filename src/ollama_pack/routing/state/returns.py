"""Whether prompts are gone on with, learned for each set of weights and for each number of turns.

Every prompt is followed for an hour or until it is gone on with. Old observations fade. Bounded.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from ollama_pack.routing.decide.returns import SPANS, ReturnCurve, begins_at, span_of
from ollama_pack.routing.decide.view import PromptBlock

TURNS = 4  # prompts with more turns count as ones with so many - 1
BACKGROUND_KIND = TURNS  # the kind of prompts that are nobody's turn
KINDS = TURNS + 1
MAX_FOLLOWED = 2048  # prompts of one set of weights
FADES_AFTER = 1024  # prompts of a kind: then what was seen before counts half
USUAL_SHARE = 0.5  # of prompts that are gone on with, before anything was observed, and
USUAL_SECONDS = 60.0  # how long after they usually are
DOUBT = 4.0  # so many prompts without a return are bad luck


def _usual(span: int) -> float:
    """The share of a span, before anything was observed."""

    def left(age: float) -> float:
        return 1 - USUAL_SHARE * (1 - exp(-age / USUAL_SECONDS))

    return 1 - left(begins_at(span + 1)) / left(begins_at(span))


_USUAL = tuple(map(_usual, range(SPANS)))


@dataclass(slots=True, eq=False)
class FollowedPrompt:
    """A prompt that may be gone on with.

    Attributes:
        chains: of its blocks.
        tokens: its length.
        shared: tokens that other prompts begin with as well.
        kind: its turn, or that it is a background call's.
        asked_at: when.
        returned: it was gone on with.
    """

    chains: tuple[int, ...]
    tokens: int
    shared: int
    kind: int
    asked_at: float
    returned: bool = False


class LifeTable:
    """What was observed of one kind of prompts."""

    def __init__(self) -> None:
        self._returned = [0.0] * SPANS
        self._reached = [0.0] * SPANS

    def reached(self, span: int) -> None:
        """A prompt has become so old."""
        if self._reached[0] >= FADES_AFTER and span == 0:
            self._returned = [count / 2 for count in self._returned]
            self._reached = [count / 2 for count in self._reached]
        self._reached[span] += 1

    def returned(self, span: int, share: float) -> None:
        """A share of a prompt of this age came again."""
        self._returned[span] += share

    def curve(self) -> ReturnCurve:
        """What was observed, and what is usual as far as that has proved true."""
        expected = sum(usual * reached for usual, reached in zip(_USUAL, self._reached, strict=True))
        proved = (sum(self._returned) + DOUBT / 2) / (expected + DOUBT / 2)
        return ReturnCurve(
            tuple(
                min(1.0, (returned + DOUBT * min(1.0, proved * usual)) / (reached + DOUBT))
                for usual, returned, reached in zip(_USUAL, self._returned, self._reached, strict=True)
            )
        )


class ReturnLearner:
    """Follows the prompts for one set of weights. Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._tables = [LifeTable() for _ in range(KINDS)]
        self._by_chain: dict[int, FollowedPrompt] = {}
        self._followed: OrderedDict[int, FollowedPrompt] = OrderedDict()
        self._ages: list[deque[FollowedPrompt]] = [deque() for _ in range(SPANS)]
        self._count = 0
        self._curves: tuple[ReturnCurve, ...] | None = None
        self._curves_at = 0.0

    def asked(self, blocks: Sequence[PromptBlock], now: float, *, background: bool) -> FollowedPrompt | None:
        """A prompt is sent: what it goes on with has returned, and from now on it is followed itself."""
        if not blocks:
            return None
        covered, before = self._longest(blocks)
        kind, shared = BACKGROUND_KIND if background else 0, covered
        if before is not None and covered > before.shared:
            share = (covered - before.shared) / max(1, before.tokens - before.shared)
            self._tables[before.kind].returned(span_of(now - before.asked_at), min(1.0, share))
            if 2 * covered >= before.tokens:
                before.returned, shared = True, before.shared
                kind = kind if background else min(before.kind + 1, TURNS - 1)
        prompt = FollowedPrompt(tuple(block.chain for block in blocks), blocks[-1].upto, shared, kind, now)
        self._follow(prompt)
        return prompt

    def _longest(self, blocks: Sequence[PromptBlock]) -> tuple[int, FollowedPrompt | None]:
        """The tokens of the longest beginning that is known, and the last prompt that had it."""
        low, high = 0, len(blocks)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if blocks[middle].chain in self._by_chain else (low, middle)
        return (blocks[low - 1].upto, self._by_chain[blocks[low - 1].chain]) if low else (0, None)

    def _follow(self, prompt: FollowedPrompt) -> None:
        self._count += 1
        self._followed[self._count] = prompt
        for chain in prompt.chains:
            self._by_chain[chain] = prompt
        self._tables[prompt.kind].reached(0)
        self._ages[0].append(prompt)
        if len(self._followed) > MAX_FOLLOWED:
            _, oldest = self._followed.popitem(last=False)
            for chain in oldest.chains:
                if self._by_chain.get(chain) is oldest:
                    del self._by_chain[chain]

    def curves(self, now: float) -> tuple[ReturnCurve, ...]:
        """What is known now of each kind; looked at again each second."""
        if self._curves is None or now >= self._curves_at + 1.0:
            self._grow_old(now)
            self._curves_at = now
            self._curves = tuple(table.curve() for table in self._tables)
        return self._curves

    def _grow_old(self, now: float) -> None:
        for span, (young, older) in enumerate(zip(self._ages, self._ages[1:], strict=False), start=1):
            while young and now - young[0].asked_at >= begins_at(span):
                prompt = young.popleft()
                if not prompt.returned:
                    self._tables[prompt.kind].reached(span)
                    older.append(prompt)
        while self._ages[-1] and len(self._ages[-1]) > MAX_FOLLOWED:
            self._ages[-1].popleft()
