"""What the cache did, in figures without any text: of this process, and to be added up over all of them."""

from bisect import bisect_left
from collections import defaultdict

# Upper bounds in milliseconds of the classes of lookup times; what takes longer is in a class of its own.
LOOKUP_BOUNDS = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_LOOKUP_NAMES = (*(f"lookups_ms/{bound:g}" for bound in LOOKUP_BOUNDS), "lookups_ms/more")


class CacheCounters:
    """Figures by name.

    | name | what |
    |---|---|
    | `hits`, `follows` | answers that nobody had to generate again |
    | `similar/<tier>` | hits on an answer to the same question in other words; they are in `hits`, too |
    | `similar/would have served`, `similar/judged` | what the semantic tier learns from |
    | `similar/promotions` | wordings that a judge has accepted for another question's answer |
    | `similar/rejected` | answers to similar questions that got a thumbs-down or were regenerated |
    | `similar/no room` | labels of more models, scopes and languages than are counted |
    | `misses/<reason>`, `bypasses/<reason>` | asked in vain; not asked |
    | `stored`, `not_stored/<reason>` | what became of generations |
    | `unreadable` | entries and streams that had been changed |
    | `takeovers`, `detached` | leaders replaced; generations that went on for others alone |
    | `seconds_saved`, `tokens_saved` | of generation |
    | `lookups_ms/<bound>`, `lookups_ms/more` | how long lookups took |
    | `lookup_seconds` | the sum of these times |
    """

    def __init__(self) -> None:
        self._all: defaultdict[str, float] = defaultdict(int)
        self._taken: dict[str, float] = {}

    def add(self, name: str, value: float = 1) -> None:
        self._all[name] += value

    def looked_up(self, seconds: float) -> None:
        self.add(_LOOKUP_NAMES[bisect_left(LOOKUP_BOUNDS, seconds * 1000)])
        self.add("lookup_seconds", seconds)

    def snapshot(self) -> dict[str, float]:
        """The figures of this process since it began."""
        return dict(self._all)

    def take_new(self) -> dict[str, float]:
        """What was added since the last time."""
        now, before = dict(self._all), self._taken
        self._taken = now
        return {name: more for name, value in now.items() if (more := value - before.get(name, 0))}

    def give_back(self, new: dict[str, float]) -> None:
        """What was taken and could not be brought to the others."""
        for name, value in new.items():
            self._taken[name] -= value
