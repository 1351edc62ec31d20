"""GGUF headers of well-known models, made of their published dimensions: metadata and tensors, no weights.

A few hundred kilobytes each, so that whatever reads headers can be compared over many architectures.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.gguf import TYPE_NAMES
from ollama_pack.fit.shapes import Tensor

_NUMBERS_OF_TYPES = {name: number for number, name in TYPE_NAMES.items()}


@dataclass(frozen=True)
class Header:
    """What a GGUF file begins with."""

    metadata: Mapping[str, Any]
    tensors: Sequence[Tensor]

    @property
    def bytes(self) -> bytes:
        parts = [b"GGUF", struct.pack("<IQQ", 3, len(self.tensors), len(self.metadata))]
        for name, value in self.metadata.items():
            parts += [_text(name), _value(value)]
        offset = 0
        for tensor in self.tensors:
            shape = struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
            kind = _NUMBERS_OF_TYPES[tensor.type]
            parts += [_text(tensor.name), struct.pack("<I", len(tensor.shape)), shape]
            parts.append(struct.pack("<IQ", kind, offset))
            offset += -(-tensor.bytes // 32) * 32
        return b"".join(parts)

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.bytes for tensor in self.tensors)

    def write(self, path: Path) -> None:
        """A file as long as the real one, without its weights: those are a hole."""
        with path.open("wb") as file:
            file.write(self.bytes)
            file.truncate(len(self.bytes) + self.size + 2**20)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


# Numbers and formats of the types of values in a header.
_SCALARS = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}
_ITEMS = {bool: (7, "?"), int: (5, "i")}


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if not isinstance(value, list):
        kind, form = _SCALARS[type(value)]
        return struct.pack(f"<I{form}", kind, value)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
    kind, form = _ITEMS[type(value[0]) if value else int]
    return struct.pack(f"<IIQ{len(value)}{form}", 9, kind, len(value), *value)


@dataclass(frozen=True)
class Model:
    """A model by its published dimensions.

    Attributes:
        name: what people call it.
        architecture: as in its metadata.
        layers, embedding, feed_forward, heads, kv_heads, head_size, vocabulary: as usual.
        tied: the token table is the output, too.
        types: of the tensors of layers, of the token table and of the output.
        experts: of a mixture; 0: it is none.
        expert_rows: width of one expert.
        value_size: where it differs from `head_size`.
        fused: queries, keys and values are one tensor, and so are gate and up.
        recurrent: the layers that are (by number) instead of attention.
        extra: other metadata, without the architecture.
    """

    name: str
    architecture: str
    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False
    types: tuple[str, str, str] = ("Q4_K", "Q4_K", "Q6_K")
    experts: int = 0
    expert_rows: int = 0
    value_size: int = 0
    fused: bool = False
    recurrent: frozenset[int] = frozenset()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def header(self) -> Header:
        kv_heads: Any = self.kv_heads
        if self.recurrent:
            kv_heads = [0 if number in self.recurrent else self.kv_heads for number in range(self.layers)]
        own = {
            "block_count": self.layers,
            "context_length": 131_072,
            "embedding_length": self.embedding,
            "feed_forward_length": self.feed_forward,
            "attention.head_count": self.heads,
            "attention.head_count_kv": kv_heads,
            "attention.key_length": self.head_size,
            "attention.value_length": self.value_size or self.head_size,
            "vocab_size": self.vocabulary,
            **({"expert_count": self.experts, "expert_used_count": 8} if self.experts else {}),
            **({"expert_feed_forward_length": self.expert_rows} if self.expert_rows else {}),
            **self.extra,
        }
        metadata = {"general.architecture": self.architecture}
        metadata |= {f"{self.architecture}.{name}": value for name, value in own.items()}
        return Header(metadata, tuple(self._tensors()))

    def _tensors(self) -> list[Tensor]:
        in_layers, table, output = self.types
        found = [Tensor("token_embd.weight", table, (self.embedding, self.vocabulary))]
        found.append(Tensor("output_norm.weight", "F32", (self.embedding,)))
        if not self.tied:
            found.append(Tensor("output.weight", output, (self.embedding, self.vocabulary)))
        for number in range(self.layers):
            parts = self._mixing(number) | self._feeding()
            found.append(Tensor(f"blk.{number}.attn_norm.weight", "F32", (self.embedding,)))
            for name, shape in parts.items():
                kind = in_layers if shape[0] % 256 == 0 or not in_layers.endswith("_K") else "Q8_0"
                found.append(Tensor(f"blk.{number}.{name}.weight", kind, shape))
        return found

    def _mixing(self, number: int) -> dict[str, tuple[int, ...]]:
        wide, value = self.embedding, self.value_size or self.head_size
        if number in self.recurrent or self.architecture == "mamba":
            if "shortconv.l_cache" in self.extra:
                return {"shortconv.in_proj": (wide, 3 * wide), "shortconv.out_proj": (wide, wide)}
            inner = self.extra["ssm.inner_size"]
            return {"ssm_in": (wide, 2 * inner), "ssm_out": (inner, wide), "ssm_x": (inner, 256)}
        if "attention.kv_lora_rank" in self.extra:
            rank, keys = self.extra["attention.kv_lora_rank"], self.extra["attention.key_length_mla"]
            return {
                "attn_q": (wide, self.heads * keys),
                "attn_kv_a_mqa": (wide, self.head_size),
                "attn_kv_b": (rank, self.heads * 256),
                "attn_output": (self.heads * 128, wide),
            }
        keys, values = self.kv_heads * self.head_size, self.kv_heads * value
        out = {"attn_output": (self.heads * value, wide)}
        if self.fused:
            return {"attn_qkv": (wide, self.heads * self.head_size + keys + values), **out}
        return {
            "attn_q": (wide, self.heads * self.head_size),
            "attn_k": (wide, keys),
            "attn_v": (wide, values),
            **out,
        }

    def _feeding(self) -> dict[str, tuple[int, ...]]:
        wide, rows = self.embedding, self.expert_rows or self.feed_forward
        if self.experts:
            many = {f"ffn_{name}_exps": (wide, rows, self.experts) for name in ("gate", "up")}
            return {"ffn_gate_inp": (wide, self.experts), **many, "ffn_down_exps": (rows, wide, self.experts)}
        if not rows:
            return {}
        if self.fused:
            return {"ffn_up": (wide, 2 * rows), "ffn_down": (rows, wide)}
        return {"ffn_gate": (wide, rows), "ffn_up": (wide, rows), "ffn_down": (rows, wide)}


_EVERY_FOURTH = frozenset(number for number in range(48) if number % 4 != 3)
MODELS = (
    Model("Llama 3.1 8B", "llama", 32, 4096, 14_336, 32, 8, 128, 128_256),
    Model("Llama 3.2 1B", "llama", 16, 2048, 8192, 32, 8, 64, 128_256, tied=True, types=("Q4_K", "Q6_K", "")),
    Model("Llama 3.3 70B", "llama", 80, 8192, 28_672, 64, 8, 128, 128_256),
    Model(
        "Mixtral 8x7B", "llama", 32, 4096, 14_336, 32, 8, 128, 32_000,
        experts=8, extra={"expert_used_count": 2},
    ),
    Model("Qwen 2.5 7B", "qwen2", 28, 3584, 18_944, 28, 4, 128, 152_064),
    Model("Qwen 3 8B", "qwen3", 36, 4096, 12_288, 32, 8, 128, 151_936),
    Model("Qwen 3 30B A3B", "qwen3moe", 48, 2048, 6144, 32, 4, 128, 151_936, experts=128, expert_rows=768),
    Model(
        "Gemma 2 9B", "gemma2", 42, 3584, 14_336, 16, 8, 256, 256_000, tied=True, types=("Q4_K", "Q6_K", ""),
        extra={"attention.sliding_window": 4096},
    ),
    Model(
        "Gemma 3 12B", "gemma3", 48, 3840, 15_360, 16, 8, 256, 262_208, tied=True,
        types=("Q4_K", "Q6_K", ""), extra={"attention.sliding_window": 1024},
    ),
    Model(
        "gpt-oss 20B", "gpt-oss", 24, 2880, 2880, 64, 8, 64, 201_088, types=("MXFP4", "BF16", "BF16"),
        experts=32, expert_rows=2880, extra={"attention.sliding_window": 128, "expert_used_count": 4},
    ),
    Model("Phi 3.5 mini", "phi3", 32, 3072, 8192, 32, 32, 96, 32_064, fused=True),
    Model(
        "Command R7B", "cohere2", 32, 4096, 14_336, 32, 8, 128, 256_000, tied=True,
        types=("Q4_K", "Q6_K", ""), extra={"attention.sliding_window": 4096},
    ),
    Model(
        "DeepSeek V2 Lite", "deepseek2", 27, 2048, 10_944, 16, 1, 576, 102_400, value_size=512,
        experts=64, expert_rows=1408,
        extra={
            "attention.kv_lora_rank": 512, "attention.key_length_mla": 192,
            "attention.value_length_mla": 128, "expert_used_count": 6,
        },
    ),
    Model(
        "Qwen 3 Next 80B A3B", "qwen3next", 48, 2048, 5120, 16, 2, 256, 151_936, experts=512,
        expert_rows=512, recurrent=_EVERY_FOURTH,
        extra={
            "full_attention_interval": 4, "ssm.conv_kernel": 4, "ssm.inner_size": 4096,
            "ssm.state_size": 128, "ssm.group_count": 16, "attention.head_count_kv": 2,
        },
    ),
    Model(
        "LFM2 1.2B", "lfm2", 16, 2048, 8192, 32, 8, 64, 65_536, tied=True,
        recurrent=frozenset({0, 1, 3, 4, 6, 7, 9, 11, 13, 15}), extra={"shortconv.l_cache": 3},
    ),
    Model(
        "Mamba 2.8B", "mamba", 64, 2560, 0, 0, 0, 0, 50_280, tied=True,
        extra={"ssm.conv_kernel": 4, "ssm.inner_size": 5120, "ssm.state_size": 16},
    ),
    Model("SmolLM2 135M", "llama", 30, 576, 1536, 9, 3, 64, 49_152, tied=True, types=("Q4_1", "Q8_0", "")),
)  # fmt: skip
