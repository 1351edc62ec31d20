"""What the cache did, in figures without any text: of this process, and to be added up over all of them."""

from bisect import bisect_left
from collections import Counter

# Upper bounds in milliseconds of the classes of lookup times; what takes longer is in a class of its own.
LOOKUP_BOUNDS = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


class CacheCounters:
    """Figures by name.

    | name | what |
    |---|---|
    | `hits`, `follows` | answers that nobody had to generate again |
    | `misses/<reason>`, `bypasses/<reason>` | asked in vain; not asked |
    | `stored`, `not_stored/<reason>` | what became of generations |
    | `unreadable` | entries and streams that had been changed |
    | `takeovers`, `detached` | leaders replaced; generations that went on for others alone |
    | `seconds_saved`, `tokens_saved` | of generation |
    | `lookups_ms/<bound>`, `lookups_ms/more` | how long lookups took |
    """

    def __init__(self) -> None:
        self._all: Counter[str] = Counter()
        self._new: Counter[str] = Counter()

    def add(self, name: str, value: float = 1) -> None:
        self._all[name] += value  # type: ignore[assignment] # Counter adds up floats as well
        self._new[name] += value  # type: ignore[assignment] # as above

    def looked_up(self, seconds: float) -> None:
        place = bisect_left(LOOKUP_BOUNDS, seconds * 1000)
        self.add(f"lookups_ms/{LOOKUP_BOUNDS[place]:g}" if place < len(LOOKUP_BOUNDS) else "lookups_ms/more")

    def snapshot(self) -> dict[str, float]:
        """The figures of this process since it began."""
        return dict(self._all)

    def take_new(self) -> dict[str, float]:
        """What was added since the last time."""
        new, self._new = self._new, Counter()
        return dict(new)

    def give_back(self, new: dict[str, float]) -> None:
        """What was taken and could not be brought to the others."""
        self._new.update(new)
