"""What `gpu_router` gives a client that wants no stream."""

from typing import Any

from ollama_pack.engines.ollama.stream import completion_of


def whole_answer(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The completion that all chunks make up, with what they say of the node that answered."""
    made = completion_of(chunks)
    routed = next((chunk["ollama_pack"] for chunk in reversed(chunks) if "ollama_pack" in chunk), None)
    return made | ({"ollama_pack": routed} if routed else {})
