"""Which of the models that engines list can chat, and under which ids they are offered."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.aliases.table import parse_table
from ollama_pack.engines.model_ids import ModelIds, usable_id
from ollama_pack.engines.model_kinds import chats, listed_for_chat

# Entries of `/v1/models`, reduced to what tells the kind; the engine is named where it is not plain.
NO_CHAT: list[dict[str, Any]] = [
    {"id": "text-embedding-nomic-embed-text-v1.5"},  # LM Studio
    {"id": "m", "type": "embeddings"},  # LM Studio's own API
    {"id": "BAAI/bge-small-en-v1.5", "capabilities": ["embed"]},  # Infinity
    {"id": "m", "capabilities": ["rerank"]},
    {"id": "m", "capabilities": ["classify"]},
    {"id": "m", "model_type": "rerank"},  # Xinference
    {"id": "m", "model_type": "image", "model_ability": ["text2image"]},
    {"id": "m", "model_type": "audio"},
    {"id": "m", "type": "moderation"},  # Together
    {"id": "m", "mode": "image_generation"},  # LiteLLM
    {"id": "m", "task": "text-ranking"},
    {"id": "m", "capabilities": {"completion_chat": False, "vision": False}},  # Mistral
    {"id": "m", "capabilities": {"type": "embeddings"}},  # GitHub
    {"id": "m", "labels": ["reranking"]},  # Lemonade
    {"id": "m", "categories": ["embedding"]},  # GPUStack
    {"id": "m", "supports_chat": False},  # Fireworks
    {"id": "m", "architecture": {"output_modalities": ["embeddings"]}},  # OpenRouter
    {"id": "m", "architecture": {"input_modalities": ["text"], "output_modalities": ["image"]}},
    {"id": "intfloat/multilingual-e5-large"},  # vLLM, TEI, LocalAI: nothing but the name
    {"id": "bge-reranker-v2-m3"},
    {"id": "whisper-1"},
    {"id": "nomic-embed-text:latest"},
]
CHAT: list[dict[str, Any]] = [
    {"id": "meta-llama/Llama-3.1-8B-Instruct", "owned_by": "vllm", "max_model_len": 4096},
    {"id": "m", "type": "llm"},
    {"id": "m", "type": "vlm"},
    {"id": "m", "type": "model"},
    {"id": "m", "model_type": "LLM", "model_ability": ["chat", "vision"]},
    {"id": "m", "type": "chat"},
    {"id": "m", "capabilities": {"completion_chat": True, "classification": False}},
    {"id": "m", "capabilities": ["completion", "embedding"]},
    {"id": "m", "labels": ["vision", "reasoning"]},
    {"id": "m", "architecture": {"output_modalities": ["text", "image"]}},
    {"id": "chat-whisperer", "type": "chat"},
    {"id": "whisper-writer", "type": "chat"},
    {"id": "gemma3:4b", "capabilities": None, "architecture": 5, "type": ["odd"]},
]


@pytest.mark.parametrize("entry", NO_CHAT, ids=str)
def test_what_cannot_chat(entry: dict[str, Any]) -> None:
    """Would catch an embedder or the like in everybody's picker, which answers 400."""
    assert not listed_for_chat(entry, entry["id"])


@pytest.mark.parametrize("entry", CHAT, ids=str)
def test_what_can_chat(entry: dict[str, Any]) -> None:
    """Would catch a chat model that is kept from users for a word."""
    assert listed_for_chat(entry, entry["id"])


@pytest.mark.parametrize(
    ("capabilities", "able"),
    [
        ((), True),
        (("completion",), True),
        (("completion", "vision", "tools", "thinking"), True),
        (("tools",), True),
        (("completion", "embedding"), True),
        (("embedding",), False),
        (("image",), False),
        (("image", "vision"), False),
        (("decision",), False),
    ],
)
def test_ollamas_capabilities(capabilities: tuple[str, ...], *, able: bool) -> None:
    """Would catch Ollama's image and decision models offered for chats."""
    assert chats(capabilities) == able


@pytest.mark.parametrize(
    ("name", "fit"),
    [
        ("llama3:8b", "llama3:8b"),
        ("hf.co/bartowski/Llama-3.2-1B-GGUF:Q4_K_M", "hf.co/bartowski/Llama-3.2-1B-GGUF:Q4_K_M"),
        ("My Model v1.gguf", "My-Model-v1.gguf"),
        ("a, b = c [d] #e", "a-b-c-d-e"),
        ("模型 一", "模型-一"),
        ("tab\tand\nline", "tab-and-line"),
    ],
)
def test_usable_ids(name: str, fit: str) -> None:
    """Would catch an id that no alias table and no address can hold, or one that changes without need."""
    assert usable_id(name) == fit


@given(st.text(min_size=1))
def test_any_name_has_an_id_that_an_alias_can_name(name: str) -> None:
    """Would catch a name for which there is no row of an alias table."""
    fit = usable_id(name)
    (row,) = parse_table(f"alias = {fit}").rows
    assert row.candidates == (fit,)
    assert usable_id(fit) == fit


def test_ids_lead_back_to_the_names() -> None:
    """Would catch a model that is asked for by its id, which its engine does not know, or two with one id."""
    ids = ModelIds()
    names = ["a b", "a-b", "a  b", "c"]
    ids.learn(names)
    assert [ids.real(ids.offered(name)) for name in names] == names
    assert ids.offered("a-b") == "a-b"
    assert ids.real("unknown") == "unknown"
