"""Model names: tags, quantization levels, and which of the models that are there a name means."""

from collections import UserDict

import pytest

from ollama_pack.engines.ollama.names import find_model, find_variant, quantization_in, split_tag


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("llama3", ("llama3", "")),
        ("llama3:8b", ("llama3", "8b")),
        ("hf.co/bartowski/Llama-3.2-GGUF:Q4_K_M", ("hf.co/bartowski/Llama-3.2-GGUF", "Q4_K_M")),
        ("localhost:5000/team/llama3", ("localhost:5000/team/llama3", "")),
        ("localhost:5000/team/llama3:8b", ("localhost:5000/team/llama3", "8b")),
        ("", ("", "")),
        ("llama3:", ("llama3:", "")),
        (":8b", (":8b", "")),
    ],
)
def test_split_tag(name: str, parts: tuple[str, str]) -> None:
    """Would catch a host's port that is taken for a tag."""
    assert split_tag(name) == parts


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("llama3:8b-instruct-q4_K_M", "Q4_K_M"),
        ("llama3:8b-Q8_0", "Q8_0"),
        ("hf.co/x/y-GGUF:Q4_K_M", "Q4_K_M"),
        ("hf.co/x/y-GGUF:UD-Q4_K_XL", "Q4_K_XL"),
        ("x:7b-iq2_xxs", "IQ2_XXS"),
        ("x:tq1_0", "TQ1_0"),
        ("x:8b-fp16", "F16"),
        ("x:8b-f32", "F32"),
        ("x:8b-bf16", "BF16"),
        ("gpt-oss:20b-mxfp4", "MXFP4"),
        ("x:8b-int4", "INT4"),
        ("x:8b", ""),
        ("x:8b-q4_0-instruct", ""),
        ("x-q4_0", ""),
        ("localhost:5000/q4_0", ""),
        ("x:faq4", ""),
    ],
)
def test_quantization_in(name: str, level: str) -> None:
    """Would catch a level that is not seen, seen where none is, or called otherwise than Ollama calls it."""
    assert quantization_in(name) == level


@pytest.mark.parametrize(
    ("name", "models", "found"),
    [
        ("llama3:8b", ["llama3", "llama3:8b"], "llama3:8b"),
        ("llama3", ["llama3:latest", "llama3:8b"], "llama3:latest"),
        ("llama3:latest", ["llama3", "llama3:8b"], "llama3"),
        ("llama3", ["llama3:latest", "llama3"], "llama3"),
        ("llama3", ["llama3:8b"], None),
        ("llama3:8b", ["llama3", "llama3:latest", "llama3:8b-q4_0"], None),
        ("host:5000/llama3", ["host:5000/llama3:latest"], "host:5000/llama3:latest"),
        ("host", ["host:5000/llama3"], None),
        ("llama3:8b-q4_k_m", ["llama3:8b-q4_K_M"], "llama3:8b-q4_K_M"),
        ("HF.co/X/Y", ["hf.co/x/y:latest"], "hf.co/x/y:latest"),
        ("a:LATEST", ["a"], "a"),
        ("A:b", ["a:B", "A:B"], "A:B"),
        ("A", ["a", "A:latest"], "A:latest"),
        ("a", ["A:latest", "a:latest"], "a:latest"),
        ("a", [], None),
    ],
)
def test_find_model(name: str, models: list[str], found: str | None) -> None:
    """Would catch a model that is there and not found, or another one that is: as written comes first."""
    assert find_model(name, models) == found
    assert find_model(name, models[::-1]) == found


MODELS = {
    "llama3:latest": "Q4_0",
    "llama3:8b": "Q4_0",
    "llama3:8b-instruct-q4_0": "Q4_0",
    "llama3:8b-instruct-q8_0": "",
    "llama3:8b-text-q8_0": "Q8_0",
    "llama3:8b-fp16": "F16",
    "llama3:80b-q2_K": "Q2_K",
    "llama3:8bit-q3_K": "Q3_K",
    "llama3:70b-iq4_xs": "unknown",
    "llama3.1:8b-q6_K": "Q6_K",
    "host:5000/llama3:8b-q6_K": "Q6_K",
    "Qwen:7B-Q5_K_M": "Q5_K_M",
}


@pytest.mark.parametrize(
    ("name", "levels", "found"),
    [
        ("llama3:8b", ["q4_0"], "llama3:8b"),
        ("llama3", ["q4_0"], "llama3:latest"),
        ("llama3:8b-instruct", ["q4_0"], "llama3:8b-instruct-q4_0"),
        ("llama3:8b", ["q8_0", "q4_0"], "llama3:8b-instruct-q8_0"),
        ("llama3:8b", ["q6_K", "Q4_0"], "llama3:8b"),
        ("llama3:8b", ["q2_K"], None),
        ("llama3:8b", ["q6_K"], None),
        ("llama3:8b", ["q3_K"], None),
        ("llama3", ["q2_K"], "llama3:80b-q2_K"),
        ("llama3", ["IQ4_XS"], "llama3:70b-iq4_xs"),
        ("llama3:8b", ["fp16"], "llama3:8b-fp16"),
        ("llama3:8b", ["f16"], "llama3:8b-fp16"),
        ("host:5000/llama3", ["q6_k"], "host:5000/llama3:8b-q6_K"),
        ("qwen:7b", ["q5_k_m"], "Qwen:7B-Q5_K_M"),
        ("mistral", ["q4_0"], None),
        ("llama3", [], None),
    ],
)
def test_find_variant(name: str, levels: list[str], found: str | None) -> None:
    """Would catch a variant of another model, of a level that is not the preferred one, or none at all."""
    assert find_variant(name, levels, MODELS) == found
    assert find_variant(name, levels, dict(reversed(MODELS.items()))) == found


def test_find_variant_prefers_the_very_name() -> None:
    """Would catch another model than the one of this very name, when both are of the level."""
    assert find_variant("a:latest", ["q8_0"], {"a": "Q8_0", "a:latest": "Q8_0"}) == "a:latest"


def test_find_variant_leaves_out_what_is_denied() -> None:
    """Would catch a preference for a model that the user may not use."""
    denied = {"llama3:8b", "llama3:8b-instruct-q8_0"}
    assert find_variant("llama3:8b", ["q8_0"], MODELS, denied) == "llama3:8b-text-q8_0"
    assert find_variant("llama3:8b", ["q4_0"], MODELS, denied) == "llama3:8b-instruct-q4_0"


def test_find_variant_looks_up_only_its_own_models() -> None:
    """Would catch a round trip to Redis for each of hundreds of models, where there are several replicas."""
    looked_up: list[str] = []

    class Recording(UserDict[str, str]):
        def __getitem__(self, model: str) -> str:
            looked_up.append(model)
            return super().__getitem__(model)

    find_variant("llama3:8b", ["q8_0", "q4_0"], Recording(MODELS))
    assert sorted(looked_up) == sorted(
        model for model in MODELS if model == "llama3:8b" or model.startswith("llama3:8b-")
    )
