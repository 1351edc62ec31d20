"""What a model is for, by what its engine lists of it: only models that chat are offered for chats."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from ollama_pack.engines.body import object_at

_CHAT_KINDS = frozenset(
    {
        *("chat", "chat_completion", "chat_completions", "completion", "completion_chat", "completions"),
        *("conversational", "generate", "generation", "image_text_to_text", "language", "llm"),
        *("text2text_generation", "text_generation", "vlm"),
    }
)
_OTHER_KINDS = frozenset(
    {
        *("audio_speech", "audio_transcription", "audio_transcriptions", "automatic_speech_recognition"),
        *("classification", "classifier", "classify", "decision", "embed", "embedding", "embeddings"),
        *("feature_extraction", "image", "image_edit", "image_generation", "image_generations"),
        *("image_to_image", "images_generations", "moderation", "moderations", "ocr", "rerank", "reranker"),
        *("reranking", "score", "scoring", "sentence_similarity", "speech", "speech2text", "speech_to_text"),
        *("stt", "text2speech", "text_classification", "text_embedding", "text_embeddings", "text_ranking"),
        *("text_to_image", "text_to_speech", "text_to_video", "transcribe", "transcription"),
        *("transcriptions", "tts", "video_generation", "whisper"),
    }
)
# Where they say what the model itself is; in a list of abilities these words are about what it can be shown.
_OTHER_TYPES = _OTHER_KINDS | {"audio", "video"}
# Xinference, Together, LM Studio, LiteLLM, Hugging Face's router, Lemonade, GPUStack, new-api and others.
_TYPE_FIELDS = ("type", "model_type", "mode", "task", "pipeline_tag")
_ABILITY_FIELDS = (
    *("capabilities", "model_ability", "categories", "labels", "tasks", "endpoints"),
    *("supported_endpoints", "supported_endpoint_types"),
)
# For engines that say nothing, as vLLM, TEI and LocalAI: words that are in no chat model's name.
_NAME_WORDS = frozenset(
    {
        *("bge", "colbert", "dall", "e5", "embed", "embedder", "embedding", "embeddings", "gte", "minilm"),
        *("moderation", "rerank", "reranker", "reranking", "tts", "whisper"),
    }
)
_NO_WORD = re.compile(r"[^a-z0-9]+")


def chats(capabilities: Collection[str]) -> bool:
    """Whether a model with these capabilities can chat, as far as they tell."""
    kinds = set(map(_kind_word, capabilities))
    return bool(kinds & _CHAT_KINDS) or not kinds & _OTHER_KINDS


def listed_for_chat(entry: Mapping[str, Any], name: str) -> bool:
    """Whether a model in an engine's list can chat, by what the engine says of it, else by its name.

    Args:
        entry: of `/v1/models`.
        name: its id.
    """
    outputs = _output_modalities(entry)
    if outputs and "text" not in outputs:
        return False
    kinds = {_kind_word(entry[field]) for field in _TYPE_FIELDS if isinstance(entry.get(field), str)}
    abilities, lacks = _abilities(entry)
    if (kinds | abilities) & _CHAT_KINDS:
        return True
    if kinds & _OTHER_TYPES or abilities & _OTHER_KINDS or lacks & _CHAT_KINDS:
        return False
    return named_for_chat(name)


def named_for_chat(name: str) -> bool:
    """Whether a model may be one that chats, by its name alone."""
    return not _NAME_WORDS.intersection(_NO_WORD.split(name.lower()))


def _kind_word(word: object) -> str:
    return _NO_WORD.sub("_", word.lower()).strip("_").removeprefix("v1_") if isinstance(word, str) else ""


def _abilities(entry: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """What it can, and what it cannot."""
    able: set[str] = set()
    unable: set[str] = {"chat"} if entry.get("supports_chat") is False else set()
    for field in _ABILITY_FIELDS:
        given = entry.get(field)
        if isinstance(given, Mapping):  # Mistral and Azure: a switch for each
            able |= {_kind_word(name) for name, value in given.items() if value is True}
            unable |= {_kind_word(name) for name, value in given.items() if value is False}
            able |= {_kind_word(given.get("type"))}
        elif isinstance(given, list):
            able |= set(map(_kind_word, given))
    return able - {""}, unable


def _output_modalities(entry: Mapping[str, Any]) -> list[str]:
    """What comes out of it, as OpenRouter and llama.cpp list it; empty where that is not told."""
    places = (object_at(entry, "architecture"), entry)
    found = (place.get("output_modalities") for place in places)
    given = next((outputs for outputs in found if isinstance(outputs, list)), [])
    return [output.lower() for output in given if isinstance(output, str)]
