"""Shapes of models: from metadata and tensors, or from as little as a number of parameters."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ollama_pack.fit.memory import LayerCache, ModelShape

# GGML's types of tensors: values in a block, and bytes of a block.
TENSOR_TYPES: dict[str, tuple[int, int]] = {
    "F64": (1, 8),
    "I64": (1, 8),
    "F32": (1, 4),
    "I32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "I16": (1, 2),
    "I8": (1, 1),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q8_1": (32, 36),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "Q8_K": (256, 292),
    "IQ1_S": (256, 50),
    "IQ1_M": (256, 56),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
    "MXFP4": (32, 17),
    "NVFP4": (64, 36),
    "Q1_0": (128, 18),
}
# Bits of a weight, the usual mix of tensor types included, by what a tag or `/api/tags` calls it. Of others,
# such as IQ4_NL, Q4_K_XL or INT8, the number tells.
LEVEL_BITS: dict[str, float] = {
    "F32": 32.0,
    "F16": 16.0,
    "BF16": 16.0,
    "Q8_0": 8.5,
    "Q6_K": 6.6,
    "Q5_K_M": 5.7,
    "Q5_1": 6.0,
    "Q5_K_S": 5.5,
    "Q5_0": 5.5,
    "Q4_K_M": 4.84,
    "Q4_1": 5.0,
    "Q4_K_S": 4.6,
    "Q4_0": 4.6,
    "IQ4_XS": 4.3,
    "MXFP4": 4.3,
    "NVFP4": 4.5,
    "Q3_K_L": 4.3,
    "Q3_K_M": 3.91,
    "Q3_K_S": 3.5,
    "IQ3_XXS": 3.1,
    "Q2_K": 2.6,
    "IQ2_XS": 2.4,
    "IQ2_XXS": 2.1,
    "IQ1_S": 1.6,
}
MOST_LAYERS = 4096
_MOST = 2**40  # what a number of the metadata may be

# Of the layers of these architectures every so many look at all of the context, the others at a window; the
# full one is the last of each group, or the first. `sliding_window` counts only for these, unless the
# metadata has a pattern of its own. As in llama.cpp's `set_swa_pattern`.
_PERIODS: dict[str, int] = {
    "afmoe": 4,
    "cohere2": 4,
    "exaone-moe": 4,
    "gemma-embedding": 6,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "gptoss": 2,
    "llama4": 4,
    "olmo2": 4,
    "plamo3": 8,
}
_FULL_FIRST: dict[str, int] = {"cohere2moe": 4, "laguna": 4, "modern-bert": 3, "smallthinker": 4}
_WINDOWS: dict[str, int] = {"exaone-moe": 128, "gemma2": 4096, "llama4": 8192, "smallthinker": 4096}
_INTERVALS: dict[str, int] = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}  # one in so many attends
_OWN_CACHES: dict[str, int] = {"gemma3n": 20}  # so many leading layers cache; the others read those

_BLOCK = re.compile(r"(?:blk|layers?)\.(\d+)\.(.+)")
_PROJECTOR = re.compile(r"(?:v|mm|a|vision_tower|multi_modal_projector)\.")
# `30b-a3b` has 30 billion parameters, of which each token uses 3. Of Gemma's `e4b` as many again are tables.
_PARAMETERS = re.compile(
    r"(?<![0-9.])(?<![^a-z]a)((?<![a-z])e)?(\d+(?:\.\d+)?)\s*([KMBT])(?![a-z0-9])", re.IGNORECASE
)
_SCALES = {"B": 1e9, "T": 1e12, "M": 1e6, "K": 1e3}  # names may have tokens in K, M and T besides
_LEVEL_NUMBER = re.compile(r"(?:UD-)?(?:I?Q|TQ|INT|FP|MXFP|NVFP)(\d)")
_OTHER_LEVELS = {"FP16": "F16", "FP32": "F32"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a model: its name, its type as GGML calls it, and its dimensions, the innermost first."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        values, size = TENSOR_TYPES.get(self.type.upper(), (1, 2))
        return self.values // values * size

    @property
    def values(self) -> int:
        return prod(self.shape)

    @property
    def is_known(self) -> bool:
        """Whether its type tells its bytes. Ollama up to 0.17 calls all of IQ4_XS and the like "unknown"."""
        return self.type.upper() in TENSOR_TYPES


class _Metadata:
    """The metadata of one architecture. Values that are missing or of an odd type have their default."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.architecture = str(values.get("general.architecture") or "")
        self._values = values

    def get(self, name: str) -> Any:
        return self._values.get(f"{self.architecture}.{name}")

    def number(self, name: str, default: int = 0) -> int:
        """A number, or the largest of a list of them."""
        value = self.get(name)
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = max((one for one in value if isinstance(one, int)), default=None)
        return value if isinstance(value, int) and 0 <= value < _MOST else default

    def each(self, name: str, layers: int, default: int) -> list[int]:
        """A number for each layer, whether the metadata has one for all or a list."""
        value = self.get(name)
        if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == layers:
            return [one if isinstance(one, int) and 0 <= one < _MOST else default for one in value]
        return [self.number(name, default)] * layers


def shape_of(metadata: Mapping[str, Any], tensors: Iterable[Tensor] = (), size: int = 0) -> ModelShape:
    """The shape of a model that is there.

    Args:
        metadata: of its GGUF header, or `model_info` of `/api/show`. Long lists may be empty in that.
        tensors: of the same; empty: an old Ollama did not list them.
        size: bytes of its files, for those without tensors or with tensors of unknown types.
    """
    known = _Metadata(metadata)
    listed = [one for one in tensors if one.shape and min(one.shape) > 0]
    per_value = _unknown_bytes(listed, size)
    blocks: dict[int, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    beside: dict[str, int] = {}  # bytes of the same
    weights = projector = 0
    for tensor in listed:
        taken = tensor.bytes if tensor.is_known else round(tensor.values * per_value)
        if _PROJECTOR.match(tensor.name):
            projector += taken
        elif found := _BLOCK.match(tensor.name):
            blocks.setdefault(int(found[1]), {})[found[2]] = tensor
            weights += taken
        else:
            rest[tensor.name] = tensor
            beside[tensor.name] = taken
    count = min(known.number("block_count") or len(blocks), MOST_LAYERS)
    table = rest.get("token_embd.weight")
    looked_up = sum(taken for name, taken in beside.items() if name.startswith(("token_", "position_")))
    tied = table is not None and "output.weight" not in rest
    weights += sum(beside.values()) - (0 if tied else looked_up)
    embedding = known.number("embedding_length")
    heads = known.number("attention.head_count")
    head_size = known.number("attention.key_length") or (embedding // heads if heads else 0)
    return ModelShape(
        architecture=known.architecture,
        weights=weights if listed else size,
        token_table=looked_up,
        projector=projector,
        embedding=embedding,
        feed_forward=_feed_forward(known),
        vocabulary=_vocabulary(known, metadata, table),
        heads=heads,
        head_size=head_size,
        layers=tuple(Counter(_layers(known, blocks, count, head_size)).items()),
        longest=known.number("context_length"),
        exact=bool(listed),
    )


def _unknown_bytes(tensors: Iterable[Tensor], size: int) -> float:
    """Bytes of each value in tensors of unknown types: what the file has besides the others."""
    known = sum(one.bytes for one in tensors if one.is_known)
    values = sum(one.values for one in tensors if not one.is_known)
    return min(2.0, (size - known) / values) if values and size > known else 2.0


def _vocabulary(known: _Metadata, metadata: Mapping[str, Any], table: Tensor | None) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if table is not None and len(table.shape) > 1:
        return table.shape[-1]
    told = len(tokens) if isinstance(tokens, Sequence) else 0
    return known.number("vocab_size") or told


def _feed_forward(known: _Metadata) -> int:
    """The widest rows: of a mixture those of the experts that are used at once."""
    used, expert = known.number("expert_used_count"), known.number("expert_feed_forward_length")
    shared = known.number("expert_shared_feed_forward_length")
    dense = known.number("feed_forward_length")
    if used:
        return max(used * (expert or dense) + shared, 0)
    return dense


def _layers(
    known: _Metadata, blocks: Mapping[int, Mapping[str, Tensor]], count: int, head_size: int
) -> list[LayerCache]:
    """What each layer caches: attention layers a key and a value for each token, recurrent ones a state."""
    if known.get("attention.causal") is False or known.get("pooling_type") is not None:
        return []  # it makes vectors, and keeps nothing
    windows = _windows(known, count)
    kv_heads = known.each("attention.head_count_kv", count, known.number("attention.head_count"))
    value_size = known.number("attention.value_length") or head_size
    state, latent = _state(known), known.number("attention.kv_lora_rank")
    interval = known.number("full_attention_interval", _INTERVALS.get(known.architecture, 0))
    caching = known.number("attention.shared_kv_layers")
    caching = count - caching if caching else _OWN_CACHES.get(known.architecture, count)
    layers = []
    for number in range(count):
        tensors = blocks.get(number, {})
        attends = _attends(known, tensors, kv_heads[number], number, interval)
        key, value = _widths(known, tensors, kv_heads[number], head_size, value_size, windows[number])
        layers.append(
            LayerCache(
                key=key if attends and number < caching else 0,
                value=value if attends and number < caching else 0,
                latent=latent if attends and not value else 0,
                window=windows[number] if attends else 0,
                state=state if _recurs(known, tensors, attends=attends, interval=interval) else 0,
            )
        )
    return layers


def _attends(known: _Metadata, tensors: Mapping[str, Tensor], heads: int, number: int, interval: int) -> bool:
    """Whether a layer keeps keys and values: by its tensors, or where there are none by the metadata."""
    if known.architecture.startswith(("rwkv", "arwkv", "mamba")):
        return False
    if interval > 1:
        return (number + 1) % interval == 0
    if tensors:
        if not heads and isinstance(known.get("attention.head_count_kv"), Sequence):
            return False  # Kimi Linear's recurrent layers have keys, too
        names = ("attn_k.weight", "attn_qkv.weight", "attn_kv_a_mqa.weight", "attn_kv_b.weight")
        return any(name in tensors for name in names)
    return heads > 0


def _recurs(known: _Metadata, tensors: Mapping[str, Tensor], *, attends: bool, interval: int) -> bool:
    if interval > 1:
        return not attends
    if tensors:
        return any(name.startswith(("ssm_", "shortconv.", "time_mix_")) for name in tensors)
    return known.architecture == "falcon-h1" or not attends


def _widths(  # noqa: PLR0913, PLR0917 - each is a fact of its own
    known: _Metadata, tensors: Mapping[str, Tensor], heads: int, key_size: int, value_size: int, window: int
) -> tuple[int, int]:
    """Numbers in the key and in the value of one token."""
    key, value = tensors.get("attn_k.weight"), tensors.get("attn_v.weight")
    if key is not None:
        return key.shape[-1], (value or key).shape[-1]
    if heads == 1 and known.number("attention.kv_lora_rank"):
        return key_size, 0  # latent attention: the value is a part of the key
    if window:
        key_size = known.number("attention.key_length_swa") or key_size
        value_size = known.number("attention.value_length_swa") or value_size
    return heads * key_size, heads * value_size


def _windows(known: _Metadata, count: int) -> list[int]:
    """The window of each layer; 0: it looks at all of the context."""
    name, pattern = known.architecture, known.get("attention.sliding_window_pattern")
    window = known.number("attention.sliding_window") or _WINDOWS.get(name, 0)
    if isinstance(pattern, Sequence) and len(pattern) == count:
        return [window if one else 0 for one in pattern]
    first = _FULL_FIRST.get(name, 0)
    period = pattern if isinstance(pattern, int) and pattern > 0 else _PERIODS.get(name, first)
    if not window or period < 2:  # noqa: PLR2004 - each layer looks at all
        return [0] * count
    full = 0 if first else period - 1
    return [0 if number % period == full else window for number in range(count)]


def _state(known: _Metadata) -> int:
    """Numbers that a recurrent layer keeps for each slot: its convolution's and its own."""
    embedding = known.number("embedding_length")
    if head := known.number("wkv.head_size"):
        shifts = known.number("token_shift_count") or 2
        return shifts * embedding + head * embedding
    if short := known.number("shortconv.l_cache"):
        return (short - 1) * embedding
    if head := known.number("kda.head_dim"):
        inner = head * known.number("attention.head_count")
        return 3 * max(0, known.number("ssm.conv_kernel") - 1) * inner + head * inner
    kernel, inner = known.number("ssm.conv_kernel"), known.number("ssm.inner_size")
    size, groups = known.number("ssm.state_size"), known.number("ssm.group_count")
    convolution = (kernel - 1) * (inner + 2 * groups * size) if kernel else 0
    return convolution + size * inner


# How wide models of so many billion parameters usually are: layers, KV width (keys and values), embedding,
# feed-forward and vocabulary, as Llama 3 and Qwen 3 have them.
_USUAL = (
    (1.0, 16, 1024, 2048, 8192, 128_000),
    (3.0, 28, 2048, 3072, 8192, 128_000),
    (8.0, 32, 2048, 4096, 14_336, 128_000),
    (14.0, 40, 2048, 5120, 17_408, 152_000),
    (32.0, 64, 2048, 5120, 25_600, 152_000),
    (70.0, 80, 2048, 8192, 28_672, 128_000),
    (240.0, 94, 1024, 4096, 12_288, 152_000),
    (2000.0, 61, 1152, 7168, 18_432, 129_000),
)


def planned_shape(parameters: float, bits: float) -> ModelShape:
    """The shape that a model of so many parameters usually has: for one that nobody has pulled yet."""
    _, layers, width, embedding, feed_forward, vocabulary = next(
        (row for row in _USUAL if parameters <= row[0] * 1.5e9), _USUAL[-1]
    )
    return ModelShape(
        weights=round(parameters * bits / 8),
        embedding=embedding,
        feed_forward=feed_forward,
        vocabulary=vocabulary,
        heads=embedding // 128,
        head_size=128,
        layers=((LayerCache(width // 2, width // 2), layers),),
    )


def in_other_bits(shape: ModelShape, bits: float, to_bits: float) -> ModelShape:
    """The same model in another quantization: only the weights change."""
    scale = to_bits / bits if bits else 1.0
    weights, table = round(shape.weights * scale), round(shape.token_table * scale)
    return replace(shape, weights=weights, token_table=table, exact=False)


def level_bits(level: str) -> float:
    """Bits of a weight in a quantization level; 0: it is not known."""
    name = level.upper()
    known = LEVEL_BITS.get(_OTHER_LEVELS.get(name, name))
    if known is not None:
        return known
    found = _LEVEL_NUMBER.match(name)
    return int(found[1]) + 0.5 if found else 0.0


def parameters_in(text: str) -> float:
    """The number of parameters in `8.0B`, `llama3:70b` or `qwen3:30b-a3b`; 0: there is none."""
    if mixture := re.search(r"(\d+)x(\d+(?:\.\d+)?)b", text, re.IGNORECASE):
        if mixture[2] == "17":  # Llama 4, where that is what each token uses: 16 experts are 109B, 128 400B
            return (67.4 + 2.6 * int(mixture[1])) * 1e9
        return int(mixture[1]) * float(mixture[2]) * 0.84e9  # the experts share what is not feed-forward
    found = _PARAMETERS.findall(text)
    for unit, scale in _SCALES.items():
        for effective, number, of in found:
            if of.upper() == unit:
                return float(number) * scale * (2 if effective else 1)
    return 0.0
