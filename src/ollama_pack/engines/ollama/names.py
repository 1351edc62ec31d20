"""Model names as Ollama writes them: `[host/][namespace/]model[:tag]`, the tag `latest` if there is none."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from functools import cached_property, lru_cache

DEFAULT_TAG = "latest"
DEFAULT_REGISTRY, DEFAULT_NAMESPACE = "registry.ollama.ai/", "library/"  # may be left out of a name

# The levels that llama.cpp and Ollama write, at the end of a tag: q4_K_M, q8_0, iq2_xxs, fp16, bf16, mxfp4 …
_QUANTIZATION = re.compile(
    r"(?:^|[-_.])([it]?q\d+(?:_[a-z0-9]+)*|(?:b?f|fp)(?:16|32)|mxfp[48]|nvfp4|int[48])$", re.IGNORECASE
)
# Tags say fp16 where Ollama reports F16; "unknown" is what it reports for IQ4_XS and other newer levels.
_OTHER_WORDS = {"FP16": "F16", "FP32": "F32", "UNKNOWN": ""}


def split_tag(name: str) -> tuple[str, str]:
    """Split `llama3:8b` into `("llama3", "8b")`; the tag is empty when the name has none.

    A colon before the last slash belongs to a host's port, not to a tag.
    """
    head, _, tag = name.rpartition(":")
    return (head, tag) if head and tag and "/" not in tag else (name, "")


class Families:
    """Models by their names without tags, upper and lower case being the same.

    They are gone through once, when first asked for: they may be many, and their list far away in Redis.
    """

    def __init__(self, models: Iterable[str]) -> None:
        self._models = models

    @cached_property
    def _by_stem(self) -> Mapping[str, tuple[tuple[str, str], ...]]:
        return _families(tuple(self._models))

    def of(self, name: str) -> tuple[tuple[str, str], ...]:
        """The models that are `name` but for the tag: each id with its whole name in lower case, sorted."""
        return self._by_stem.get(split_tag(name)[0].lower(), ())


@lru_cache(maxsize=8)  # models change once in a while, and going through hundreds of names takes its time
def _families(models: tuple[str, ...]) -> Mapping[str, tuple[tuple[str, str], ...]]:
    families: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for model in sorted(models):
        families[split_tag(model)[0].lower()].append((model, _whole(model).lower()))
    return {stem: tuple(members) for stem, members in families.items()}


def find_model(name: str, models: Collection[str], families: Families | None = None) -> str | None:
    """The id under which `models` holds `name`: exactly, or with the default tag added or left out.

    Failing that, upper and lower case are the same, as they are to Ollama: it lists q4_K_M and takes q4_k_m.

    Args:
        name: the model as the alias table names it.
        models: ids.
        families: those of the models, when several names are looked up.
    """
    return name if name in models else _find_in_family(name, (families or Families(models)).of(name))


def _find_in_family(name: str, family: Iterable[tuple[str, str]]) -> str | None:
    wanted = _whole(name)
    alike = [model for model, whole in family if whole == wanted.lower()]
    return min(alike, key=lambda model: (model != name, _whole(model) != wanted), default=None)


def is_same_model(asked: str, answered: str) -> bool:
    """Whether a name in an Ollama's answer is the one that was asked for, in any of its spellings."""
    return _bare(asked) == _bare(answered)


def _bare(name: str) -> str:
    return _whole(name).lower().removeprefix(DEFAULT_REGISTRY).removeprefix(DEFAULT_NAMESPACE)


def _whole(name: str) -> str:
    return name if split_tag(name)[1] else f"{name}:{DEFAULT_TAG}"


def quantization_in(name: str) -> str:
    """The quantization level that a tag ends in, in upper case as Ollama reports it; else empty."""
    found = _QUANTIZATION.search(split_tag(name)[1])
    return _level(found.group(1)) if found else ""


def level_of(reported: str, name: str) -> str:
    """The quantization level of a model: as its node reports it, else as its tag ends; empty: unknown."""
    return _level(reported) or quantization_in(name)


def find_variant(
    name: str,
    levels: Iterable[str],
    models: Mapping[str, str],
    denied: AbstractSet[str] = frozenset(),
    families: Families | None = None,
) -> str | None:
    """The model that is `name` in the first of the preferred quantization levels that `models` has.

    Among several of one level, `name` itself comes first, then the others by the alphabet.

    Args:
        name: the model as the alias table names it.
        levels: quantization levels, the preferred one first; upper and lower case are the same.
        models: model id → its quantization level, empty where unknown (then the tag tells).
        denied: ids that are not to be chosen.
        families: those of the models, when several names are looked up.
    """
    by_level: dict[str, str] = {}
    for model, level in variants_of(name, models, denied, families).items():
        by_level.setdefault(level, model)
    return next((by_level[level] for level in map(_level, levels) if level in by_level), None)


def variants_of(
    name: str,
    models: Mapping[str, str],
    denied: AbstractSet[str] = frozenset(),
    families: Families | None = None,
) -> dict[str, str]:
    """The models that are variants of `name`, and the quantization level of each; empty: unknown.

    `llama3:8b` stands for `llama3:8b` itself and for every tag that continues it, such as
    `llama3:8b-instruct-q8_0`; a name without a tag stands for all tags of the model.

    Args:
        name: as in `find_variant`, as are the others.
        models: of these.
        denied: without these.
        families: of the models.
    """
    family = (families or Families(models)).of(name)
    exact = _find_in_family(name, family)
    start = f"{name.lower()}-" if split_tag(name)[1] else ""
    variants = [
        model
        for model, whole in family
        if model not in denied and (model == exact or whole.startswith(start))
    ]
    variants.sort(key=lambda model: model != exact)
    # Only these levels are looked up: `models` may be far away.
    return {model: level_of(models.get(model, ""), model) for model in variants}


def _level(written: str) -> str:
    """A quantization level in the form in which levels are compared; empty when it tells nothing."""
    level = written.upper()
    return _OTHER_WORDS.get(level, level)
