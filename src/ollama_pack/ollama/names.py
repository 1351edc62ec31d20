"""Model names as Ollama writes them: `[host/][namespace/]model[:tag]`, the tag `latest` if there is none."""

import re
from collections.abc import Container, Iterable, Mapping

DEFAULT_TAG = "latest"

# The levels that llama.cpp and Ollama write, at the end of a tag: q4_K_M, q8_0, iq2_xxs, fp16, bf16, mxfp4 …
_QUANTIZATION = re.compile(r"(?:^|[-_.])(i?q\d+(?:_[a-z0-9]+)*|b?fp?(?:16|32)|mxfp4|nvfp4)$", re.IGNORECASE)


def split_tag(name: str) -> tuple[str, str]:
    """Split `llama3:8b` into `("llama3", "8b")`; the tag is empty when the name has none.

    A colon before the last slash belongs to a host's port, not to a tag.
    """
    head, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        return name, ""
    return head, tag


def find_model(name: str, models: Container[str]) -> str | None:
    """The id under which `models` holds `name`: exactly, or with the default tag added or left out."""
    if name in models:
        return name
    stem, tag = split_tag(name)
    if not tag:
        other = f"{name}:{DEFAULT_TAG}"
    elif tag == DEFAULT_TAG:
        other = stem
    else:
        return None
    return other if other in models else None


def quantization_in(name: str) -> str:
    """The quantization level that a tag ends in, in upper case as Ollama reports it; else empty."""
    found = _QUANTIZATION.search(split_tag(name)[1])
    return found.group(1).upper() if found else ""


def find_variant(name: str, levels: Iterable[str], models: Mapping[str, str]) -> str | None:
    """The model that is `name` in the first of the preferred quantization levels that `models` has.

    `llama3:8b` stands for `llama3:8b` itself and for every tag that continues it, such as
    `llama3:8b-instruct-q8_0`; a name without a tag stands for all tags of the model.

    Args:
        name: the model as the alias table names it.
        levels: quantization levels, the preferred one first; upper and lower case are the same.
        models: model id → its quantization level, empty where unknown (then the tag tells).
    """
    stem, tag = split_tag(name)
    exact = find_model(name, models)

    def is_variant(model: str) -> bool:
        other_stem, other_tag = split_tag(model)
        if model == exact:
            return True
        return other_stem == stem and (not tag or other_tag.startswith(f"{tag}-"))

    variants = sorted(model for model in models if is_variant(model))
    for level in levels:
        for model in variants:
            if (models[model] or quantization_in(model)).upper() == level.upper():
                return model
    return None
