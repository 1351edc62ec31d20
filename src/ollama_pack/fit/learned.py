"""What a node's reports teach: how its server is set up, and so what any model takes there.

No API says how many slots an Ollama has, which type of cache or which engine. The first load shows it: of the
settings that a server can have, those are taken on whose prediction is nearest to what `/api/ps` reports.
What is left of the difference is added for the same weights.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product

from ollama_pack.fit.memory import CacheType, Engine, ModelShape, RunOptions, memory_needed

MAX_SEEN = 64  # sets of weights that are remembered
LAST_SEEN = 4  # of these, the newest that the settings are found out by
# The settings that a server can have. Unusual ones must be nearer by this part of the size.
_ENGINES: Mapping[Engine | None, float] = {None: 0.0, "ollama": 0.0001, "llama.cpp": 0.0001}
_CACHES: Mapping[CacheType, float] = {"f16": 0.0, "q8_0": 0.0003, "q4_0": 0.0006}
_FLASH: Mapping[bool | None, float] = {None: 0.0, True: 0.00005, False: 0.00005}
_SLOTS: Mapping[int, float] = {1: 0.0, 2: 0.0002, 3: 0.0004, 4: 0.0004, 6: 0.0008, 8: 0.0008}


@dataclass(frozen=True, slots=True)
class SeenLoad:
    """A model in a node's memory: its shape, the context of each slot, and the bytes that it takes."""

    shape: ModelShape
    context: int
    size: int


class MemoryLearner:
    """Predicts memory on one node."""

    def __init__(self, slots: int | None = None, engine: Engine | None = None) -> None:
        """Start with the usual settings.

        Args:
            slots: that a runner is known to have; None: they are to be found out.
            engine: the one that is expected until a load shows it; None: the one of Ollama 0.17.
        """
        self._slots = slots
        self._seen: dict[str, SeenLoad] = {}
        self._on_gpu: dict[str, bool] = {}  # of the same: whether a GPU has some of it
        self.options = RunOptions(0, slots=slots or 1, engine=engine)

    def seen(self, blob: str, load: SeenLoad, *, on_gpu: bool) -> bool:
        """Take in a model in memory. Returns whether that has changed what is predicted."""
        if self._seen.get(blob) == load and self._on_gpu[blob] == on_gpu:
            return False
        self._seen.pop(blob, None)
        self._seen[blob], self._on_gpu[blob] = load, on_gpu
        while len(self._seen) > MAX_SEEN:
            forgotten = next(iter(self._seen))
            del self._seen[forgotten], self._on_gpu[forgotten]
        # A node with a GPU may have a small model on the CPU besides: that one says nothing of the others.
        last = list(self._seen)[-LAST_SEEN:]
        has_gpu = any(self._on_gpu[one] for one in last)
        loads = [self._seen[one] for one in last if self._on_gpu[one] == has_gpu]
        self.options = _nearest(self._candidates(on_gpu=has_gpu), loads)
        return True

    def expected(self, blob: str, shape: ModelShape, context: int) -> int:
        """The bytes that a model will take with so much context for each slot."""
        found = _predict(self.options, shape, context)
        if load := self._seen.get(blob):
            found += load.size - _predict(self.options, load.shape, load.context)
        return max(found, shape.weights // 2)

    def _candidates(self, *, on_gpu: bool) -> Iterable[tuple[RunOptions, float]]:
        """Settings that a server can have, and how unusual they are."""
        slots = _SLOTS if self._slots is None else {self._slots: 0.0}
        every = product(_ENGINES.items(), _CACHES.items(), slots.items(), _FLASH.items())
        for (engine, odd), (cache, odder), (count, oddest), (flash, rest) in every:
            options = RunOptions(0, count, cache, flash=flash, engine=engine, on_gpu=on_gpu)
            yield options, odd + odder + oddest + rest


def _predict(options: RunOptions, shape: ModelShape, context: int) -> int:
    return memory_needed(shape, replace(options, context=context)).total


def _nearest(candidates: Iterable[tuple[RunOptions, float]], loads: Iterable[SeenLoad]) -> RunOptions:
    """The settings that explain best what was seen."""
    told = [load for load in loads if load.size and load.context]

    def off(candidate: tuple[RunOptions, float]) -> float:
        options, unusual = candidate
        errors = [abs(_predict(options, load.shape, load.context) / load.size - 1) for load in told]
        return unusual + sum(errors) / max(1, len(errors))

    return min(candidates, key=off)[0]
