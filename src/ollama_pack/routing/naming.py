"""Names of models as the fleet compares them: `llama3` is `llama3:latest`, and `Llama3` too, as to Ollama."""

from collections.abc import Sequence
from functools import lru_cache

from ollama_pack.engines.ollama.names import DEFAULT_TAG, split_tag


@lru_cache(maxsize=1024)
def fold_name(name: str) -> str:
    """The form in which two names of one model are equal: in lower case, without the default tag."""
    folded = name.lower()
    if _BETWEEN in folded:
        names, context = auto_parts(folded)
        return auto_name([fold_name(one) for one in names], context)
    stem, tag = split_tag(folded)
    return stem if tag == DEFAULT_TAG else folded


# An automatic name stands for several variants of a model, the best first, of which each node takes the one
# that fits there: `llama3:8b-q8_0 | llama3:8b-q4_0`, or with a context `… @16384`. Names of models have no
# spaces.
_BETWEEN, _WITH = " | ", " @"


def auto_name(names: Sequence[str], context: int = 0) -> str:
    """The automatic name for some variants, and for the context that is asked for (0: whatever is usual)."""
    return _BETWEEN.join(names) + (f"{_WITH}{context}" if context else "")


@lru_cache(maxsize=1024)
def auto_parts(name: str) -> tuple[tuple[str, ...], int]:
    """The variants of an automatic name and its context; any other name stands for itself."""
    names, _, context = name.partition(_WITH)
    return tuple(names.split(_BETWEEN)), int(context[:9]) if context.isdecimal() else 0


def is_auto(name: str) -> bool:
    """Whether each node takes the variant that fits there."""
    return _BETWEEN in name
