"""Which variant of a model a node takes: the best one that fits, next to what it has in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from ollama_pack.fit.memory import DRIVER_BYTES
from ollama_pack.fit.shapes import level_bits

LOSSLESS_BITS = 8.5  # with more, answers are no better and take longer
UNMEASURED_BITS = 5.0  # the most that is tried where nobody knows how much memory there is
_RESERVE = 0.02  # of a GPU's memory, that no model can have


@dataclass(frozen=True, slots=True)
class Variant:
    """One quantization of a model, on one node.

    Attributes:
        name: of the model.
        blob: its weights.
        bits: of a weight; 0: unknown.
        need: bytes of memory with the context that is asked for; 0: unknown.
    """

    name: str
    blob: str
    bits: float
    need: int


def usable_memory(total: int, gpus: int = 1) -> int:
    """The bytes of a node's memory that models can have: without what drivers and compute contexts take."""
    return max(0, round(total * (1 - _RESERVE)) - gpus * DRIVER_BYTES)


def quality_order(names: Sequence[str], levels: Sequence[str]) -> list[str]:
    """Variants with the best first: 8 bits, then more, which is only slower, then fewer.

    Args:
        names: of the variants.
        levels: the quantization level of each; empty: unknown, and last.
    """
    by_name = dict(zip(names, map(level_bits, levels), strict=True))
    return sorted(by_name, key=lambda name: _rank(by_name[name]), reverse=True)


def _rank(bits: float) -> float:
    return min(bits, LOSSLESS_BITS) - (0.001 * bits if bits > LOSSLESS_BITS else 0.0)


def best_variant(
    variants: Sequence[Variant], room: int, resident: Sequence[tuple[str, int]], *, measured: bool
) -> tuple[Variant, bool]:
    """The variant that a node should answer with, and whether it fits as far as is known.

    The best that fits next to what is in memory; else the best that fits when idle models make room; else the
    smallest, as all would be computed in part by the CPU.

    Args:
        variants: those that the node has, the best first.
        room: bytes that models can have in memory together.
        resident: weights and bytes of what is in memory.
        measured: `room` is known. If not, it is only what was seen: of the variants for which that is too
            little, a small one is taken.
    """
    in_memory = {blob for blob, _ in resident}
    for variant in variants:
        others = sum(size for blob, size in resident if blob != variant.blob)
        # One in memory may be there with less context, or in part on the CPU.
        is_there = variant.blob in in_memory and not (measured and variant.need > room)
        if is_there or (variant.need and variant.need + others <= room):
            return variant, True
    alone = [one for one in variants if one.need and one.need <= room]
    if alone:
        return alone[0], True
    if not measured:
        modest = [one for one in variants if 0 < one.bits <= UNMEASURED_BITS]
        if modest:
            return modest[0], True
    smallest = min(variants, key=lambda one: one.need or one.bits or float("inf"))
    return smallest, not (measured and smallest.need)
