"""Memory of models: against an independent estimate, from headers, from what an Ollama shows, and learned."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.gguf import GGUFError, SkippedList, read_header
from harness.gguf_headers import MODELS, Model
from ollama_pack.engines.ollama.values import ShownModel
from ollama_pack.fit.learned import MemoryLearner, SeenLoad
from ollama_pack.fit.memory import LayerCache, ModelShape, RunOptions, memory_needed
from ollama_pack.fit.shapes import (
    Tensor,
    in_other_bits,
    level_bits,
    parameters_in,
    planned_shape,
    shape_of,
)

GB = 1e9
ORACLE = json.loads((Path(__file__).parents[1] / "harness" / "gguf_oracle" / "figures.json").read_text())
BY_NAME = {model.name: model for model in MODELS}
every_model = pytest.mark.parametrize("model", MODELS, ids=[model.name for model in MODELS])
# The oracle counts the keys of DeepSeek's latent attention as one head of 192 and 128; llama.cpp keeps 576.
LATENT = "DeepSeek V2 Lite"


def shape_in(model: Model) -> ModelShape:
    """The shape that the file of a model gives, read as a file."""
    return shape_of(*read_header(io.BytesIO(model.header.bytes)))


def as_shown(model: Model) -> dict[str, Any]:
    """Its metadata as `/api/show` has them: lists of more than five items are empty."""
    metadata = model.header.metadata
    return {
        name: [] if isinstance(value, list) and len(value) > 5 else value for name, value in metadata.items()
    }


SHAPES = {model.name: shape_in(model) for model in MODELS}


@pytest.mark.parametrize("context", [4096, 32_768])
@every_model
def test_within_five_percent_of_an_independent_estimate(model: Model, context: int) -> None:
    """Would catch an architecture whose windows, recurrent layers or experts are counted as another's.

    gguf-parser-go made the figures; `tests/harness/gguf_oracle/refresh.py` asks it again.
    """
    oracle = ORACLE[model.name][str(context)]
    need = memory_needed(SHAPES[model.name], RunOptions(context, engine="llama.cpp", flash=True))
    assert need.weights == pytest.approx(oracle["weights"], rel=0.001)
    if model.name != LATENT:
        assert need.cache + need.state == pytest.approx(oracle["kv"], rel=0.01)
    assert need.total == pytest.approx(sum(oracle.values()), rel=0.05)


def test_there_are_enough_architectures() -> None:
    """Would catch an oracle that shrinks."""
    assert len({model.architecture for model in MODELS}) >= 12


@every_model
def test_what_an_ollama_shows_gives_the_same_shape_as_the_file(model: Model) -> None:
    """Would catch facts that are only in the lists which `/api/show` leaves out."""
    assert shape_of(as_shown(model), model.header.tensors) == SHAPES[model.name]


@every_model
def test_an_old_ollama_without_tensors_is_near(model: Model) -> None:
    """Would catch metadata that are read as another architecture's. Sizes of files have the token table."""
    told = shape_of(model.header.metadata, (), model.header.size)
    exact, near = (memory_needed(shape, RunOptions(8192)).total for shape in (SHAPES[model.name], told))
    assert near == pytest.approx(exact, rel=0.25)


@pytest.mark.parametrize(
    ("parameters", "level", "name"),
    [
        (8.0e9, "Q4_K_M", "Llama 3.1 8B"),
        (70.6e9, "Q4_K_M", "Llama 3.3 70B"),
        (7.6e9, "Q4_K_M", "Qwen 2.5 7B"),
    ],
)
def test_a_model_that_is_not_pulled_is_guessed_from_its_parameters(
    parameters: float, level: str, name: str
) -> None:
    """Would catch a plan that is off by more than a step of the quantization."""
    guessed = memory_needed(planned_shape(parameters, level_bits(level)), RunOptions(8192)).total
    assert guessed == pytest.approx(memory_needed(SHAPES[name], RunOptions(8192)).total, rel=0.25)


def test_another_quantization_changes_the_weights_alone() -> None:
    shape = SHAPES["Llama 3.1 8B"]
    other = in_other_bits(shape, 4.5, 9.0)
    assert other.weights == 2 * shape.weights
    assert other.layers == shape.layers


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("llama3:8b", 8e9),
        ("8.0B", 8e9),
        ("135M", 135e6),
        ("mixtral:8x7b", 47e9),
        ("qwen3:0.6b", 0.6e9),
        ("qwen3:30b-a3b", 30e9),
        ("hf.co/unsloth/Qwen3-235B-A22B-GGUF:Q2_K", 235e9),
        ("phi3:14b-medium-128k-instruct-q4_0", 14e9),
        ("llama3-gradient:8b-instruct-1048k", 8e9),
        ("internlm2:7b-chat-1m", 7e9),
        ("qwen2.5-1m:14b", 14e9),
        ("tinyllama-1.1b-1t-openorca", 1.1e9),
        ("hf.co/mlx-community/Qwen3-8B-4bit", 8e9),
        ("kimi-k2:1t", 1e12),
        ("gemma3n:e4b", 8e9),
        ("llama4:16x17b", 109e9),
        ("llama4:128x17b", 400e9),
        ("vicuna13b", 13e9),
        ("nemotron:a3b", 0),
        ("", 0),
    ],
)
def test_parameters_are_read_from_names(text: str, parameters: float) -> None:
    """Would catch a model that fits everywhere, as a part of it or its context is taken for all of it."""
    assert parameters_in(text) == pytest.approx(parameters, rel=0.01)


@given(st.sampled_from(MODELS), st.integers(256, 131_072), st.integers(1, 8))
def test_more_context_and_more_slots_never_take_less(model: Model, context: int, slots: int) -> None:
    """Would catch a sign or a rounding that makes a plan promise too much."""
    shape = SHAPES[model.name]
    need = memory_needed(shape, RunOptions(context, slots))
    for more in (RunOptions(context + 256, slots), RunOptions(context, slots + 1)):
        assert memory_needed(shape, more).total >= need.total
    smaller = memory_needed(shape, RunOptions(context, slots, "q4_0"))
    assert smaller.total <= memory_needed(shape, RunOptions(context, slots, "q8_0")).total <= need.total


# --- headers that are not as they should be ---

HEADER = BY_NAME["SmolLM2 135M"].header


@given(st.integers(0, len(HEADER.bytes) - 1))
def test_a_file_that_is_cut_off_is_refused(end: int) -> None:
    with pytest.raises(GGUFError, match="Download it again"):
        read_header(io.BytesIO(HEADER.bytes[:end]))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(noise: bytes) -> None:
    """Would catch a header whose claimed sizes are believed, or an error that nobody expects."""
    with pytest.raises(GGUFError):
        read_header(io.BytesIO(b"GGUF\x03\0\0\0" + noise))


def test_a_long_list_is_counted_and_not_kept() -> None:
    metadata = {"general.architecture": "llama", "tokenizer.ggml.tokens": ["a"] * 5000}
    header = HEADER.__class__(metadata, ())
    read, _ = read_header(io.BytesIO(header.bytes))
    assert isinstance(read["tokenizer.ggml.tokens"], SkippedList)
    assert len(read["tokenizer.ggml.tokens"]) == 5000


def test_odd_metadata_are_passed_over() -> None:
    """Would catch a node whose odd answer stops the router."""
    odd = {"general.architecture": "llama", "llama.block_count": "many", "llama.embedding_length": -3}
    assert shape_of(odd, [Tensor("blk.x.y", "?", (-1,))], 100).layers == ()
    assert shape_of({}, (), 100).weights == 100


ODD_VALUES = st.one_of(
    st.sampled_from([None, True, "", "many", 0.5, -3, 2**70]),
    st.integers(0, 9000),
    st.lists(st.integers(-5, 64), max_size=4),
)
OWN_NAMES = sorted({name.partition(".")[2] for model in MODELS for name in model.header.metadata})
ODD_TENSORS = st.builds(
    Tensor,
    st.sampled_from(["blk.0.attn_k.weight", "blk.1.attn_v.weight", "token_embd.weight", "v.x", "?"]),
    st.sampled_from(["F16", "Q4_K", "unknown"]),
    st.lists(st.integers(-5, 5000), max_size=3).map(tuple),
)


@given(
    st.dictionaries(st.sampled_from(OWN_NAMES), ODD_VALUES, max_size=12),
    st.sampled_from(MODELS),
    st.lists(ODD_TENSORS, max_size=6),
    st.integers(0, 10**12),
)
def test_no_metadata_stop_anything(
    odd: dict[str, Any], model: Model, tensors: list[Tensor], size: int
) -> None:
    """Would catch a node that is never looked at again for one tensor without dimensions."""
    name = model.architecture
    metadata = {**model.header.metadata, **{f"{name}.{key}": value for key, value in odd.items()}}
    shape = shape_of(metadata | {"general.architecture": name}, tensors, size)
    need = memory_needed(shape, RunOptions(4096))
    assert min(need.weights, need.cache, need.state, need.projector, need.buffers) >= 0


@every_model
def test_tensors_of_unknown_types_have_what_the_file_has(model: Model) -> None:
    """Would catch IQ4_XS with 16 bits a weight: Ollama up to 0.17 calls such types "unknown"."""
    header = model.header
    tensors = [replace(one, type="unknown") if one.type == "Q4_K" else one for one in header.tensors]
    exact, found = SHAPES[model.name], shape_of(header.metadata, tensors, header.size)
    assert found.weights == pytest.approx(exact.weights, rel=0.1)
    assert shape_of(header.metadata, tensors).weights >= exact.weights


@pytest.mark.parametrize(
    ("level", "bits"),
    [
        ("MXFP4", 4.3),
        ("FP16", 16),
        ("f16", 16),
        ("IQ4_NL", 4.5),
        ("Q4_K_XL", 4.5),
        ("UD-IQ2_M", 2.5),
        ("int8", 8.5),
        ("mxfp8", 8.5),
        ("unknown", 0),
        ("", 0),
    ],
)
def test_every_level_has_bits(level: str, bits: float) -> None:
    """Would catch a variant that comes last in `quantization: auto` as nobody knows its level."""
    assert level_bits(level) == bits


def test_layers_without_attention_cache_no_tokens() -> None:
    """Would catch Kimi Linear's recurrent layers, which have keys but no cache, counted as attention."""
    kda = ["attn_q", "attn_k", "attn_v", "ssm_conv1d_k"]
    mla = ["attn_q", "attn_kv_a_mqa", "attn_k_b", "attn_v_b"]
    tensors = [
        Tensor(f"blk.{number}.{name}.weight", "F16", (2304, 4096))
        for number in range(8)
        for name in (mla if number % 4 == 3 else kda)
    ]
    own = {
        "block_count": 8, "embedding_length": 2304, "attention.head_count": 32,
        "attention.head_count_kv": [0, 0, 0, 1] * 2, "attention.key_length": 576,
        "attention.value_length": 512, "attention.kv_lora_rank": 512, "kda.head_dim": 128,
        "ssm.conv_kernel": 4,
    }  # fmt: skip
    metadata = {"general.architecture": "kimi-linear"} | {f"kimi-linear.{k}": v for k, v in own.items()}
    need = memory_needed(shape_of(metadata, tensors), RunOptions(8192, engine="llama.cpp"))
    assert need.cache == 2 * 8192 * 576 * 2
    assert need.state == 6 * 4 * (3 * 3 * 4096 + 128 * 128 * 32)


def test_qwen_next_needs_no_interval_in_its_file() -> None:
    """Would catch a cache four times too large: the first files of Qwen3-Next do not have it."""
    header = BY_NAME["Qwen 3 Next 80B A3B"].header
    metadata = {name: value for name, value in header.metadata.items() if "interval" not in name}
    assert shape_of(metadata, header.tensors) == SHAPES["Qwen 3 Next 80B A3B"]


def test_the_own_engine_keeps_more() -> None:
    """Would catch half of the cache of GLM 4.7 Flash, or Llama 4 with windows that Ollama does not cut."""
    for engine, width in (("llama.cpp", 576), ("ollama", 576 + 512)):
        need = memory_needed(SHAPES[LATENT], RunOptions(8192, engine=engine))  # type: ignore[arg-type]
        assert need.cache == 27 * 8192 * width * 2
    layers = ((LayerCache(1024, 1024, window=128), 12), (LayerCache(1024, 1024), 12))
    for architecture, kept in (("gemma3", 128), ("gpt-oss", 4096), ("llama4", 131_072)):
        shape = ModelShape(architecture, weights=1, layers=layers)
        need = memory_needed(shape, RunOptions(131_072, engine="ollama"))
        assert need.cache == pytest.approx(12 * 2048 * 2 * (131_072 + min(131_072, kept + 512)), rel=0.001)


# --- what a recipe adds ---


@pytest.mark.parametrize(("written", "tokens"), [("8192", 8192), ("1e+06", 10**6), ("1.048576e+06", 2**20)])
def test_a_context_of_a_million_is_read(written: str, tokens: int) -> None:
    """Would catch a model that is taken for one of 4,096 tokens: Go writes numbers from a million on so."""
    shown = ShownModel(parameters=f"num_ctx                        {written}\ntemperature   0.5")
    assert shown.num_ctx == tokens


def test_an_adapter_takes_memory_and_a_runner_of_its_own() -> None:
    """Would catch two fine-tunes of one model that are taken for one in memory, and a LoRA without bytes."""
    header, bare = BY_NAME["Llama 3.1 8B"].header, f"FROM /models/blobs/sha256-{'a' * 64}\n"
    tuned = [f"{bare}ADAPTER /models/blobs/sha256-{digest * 64}\nTEMPLATE x\n" for digest in "bc"]
    plain, *others = (
        ShownModel(modelfile=recipe, model_info=dict(header.metadata), tensors=tuple(header.tensors))
        for recipe in (bare, *tuned)
    )
    assert len({one.blob for one in (plain, *others)}) == 3
    size = header.size + 300_000_000
    assert others[0].shape(size).weights - plain.shape(size).weights == 300_000_000


# --- what loads teach ---


@pytest.mark.parametrize(
    "real",
    [
        RunOptions(0, slots=3),
        RunOptions(0, cache="q8_0", flash=True),
        RunOptions(0, engine="ollama", flash=False),
        RunOptions(0, engine="llama.cpp", slots=4),
        RunOptions(0, on_gpu=False),
    ],
    ids=str,
)
@pytest.mark.parametrize("overhead", [0, 0.01, 0.05])
def test_one_load_teaches_how_the_server_is_set_up(real: RunOptions, overhead: float) -> None:
    """Would catch a correction that holds for the context that was seen, and for no other."""
    learner, shape = MemoryLearner(), SHAPES["Llama 3.1 8B"]

    def takes(context: int) -> float:
        return memory_needed(shape, replace(real, context=context)).total + overhead * shape.weights

    assert learner.seen("a", SeenLoad(shape, 16_384, round(takes(16_384))), on_gpu=real.on_gpu)
    assert not learner.seen("a", SeenLoad(shape, 16_384, round(takes(16_384))), on_gpu=real.on_gpu)
    assert learner.expected("a", shape, 16_384) == pytest.approx(takes(16_384), rel=0.001)
    if not overhead:
        assert learner.expected("a", shape, 8192) == pytest.approx(takes(8192), rel=0.02)
        assert learner.expected("other", shape, 32_768) == pytest.approx(takes(32_768), rel=0.05)


def test_an_odd_report_predicts_nothing_absurd() -> None:
    """Would catch a node that reports one byte for a model, which would then fit anywhere."""
    learner, shape = MemoryLearner(), SHAPES["Llama 3.1 8B"]
    learner.seen("a", SeenLoad(shape, 4096, 1), on_gpu=True)
    learner.seen("b", SeenLoad(ModelShape(), 0, 0), on_gpu=True)
    assert learner.expected("a", shape, 4096) >= shape.weights // 2


def test_a_model_on_the_cpu_of_a_gpu_node_changes_nothing_at_each_look() -> None:
    """Would catch settings that are found out anew at every probe, milliseconds each, and never hold."""
    learner, shape = MemoryLearner(), SHAPES["Llama 3.1 8B"]
    on_gpu, on_cpu = SeenLoad(shape, 4096, 6 * 10**9), SeenLoad(shape, 8192, 7 * 10**9)
    assert learner.seen("a", on_gpu, on_gpu=True)
    learner.seen("b", on_cpu, on_gpu=False)
    assert not learner.seen("a", on_gpu, on_gpu=True)
    assert not learner.seen("b", on_cpu, on_gpu=False)
    assert learner.options.on_gpu
