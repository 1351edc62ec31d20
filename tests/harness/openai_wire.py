"""How vLLM, SGLang and llama.cpp put things: lists of models, chunks, refusals and metrics.

llama.cpp's are from one that was seen running (xllamacpp 2026.10), the others as their sources have them.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

JSON = dict[str, Any]
EngineKind = Literal["vllm", "sglang", "llamacpp"]
MODEL = "served-model"

VLLM_MODELS: JSON = {
    "object": "list",
    "data": [
        {
            "id": MODEL,
            "object": "model",
            "created": 1_700_000_000,
            "owned_by": "vllm",
            "root": "org/Served-7B",
            "parent": None,
            "max_model_len": 8192,
            "permission": [{"id": "modelperm-1", "allow_sampling": True}],
        }
    ],
}
SGLANG_MODELS: JSON = {
    "object": "list",
    "data": [
        {"id": MODEL, "object": "model", "owned_by": "sglang", "root": MODEL, "max_model_len": 32768},
    ],
}
LLAMACPP_MODELS: JSON = {
    "models": [
        {
            "name": MODEL,
            "model": MODEL,
            "modified_at": "",
            "size": "",
            "digest": "",
            "type": "model",
            "capabilities": ["completion"],
            "details": {"format": "gguf", "family": "", "parameter_size": "", "quantization_level": ""},
        }
    ],
    "object": "list",
    "data": [
        {
            "id": MODEL,
            "aliases": [MODEL, "its-other-name"],
            "tags": [],
            "object": "model",
            "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
            "created": 1_795_389_350,
            "owned_by": "llamacpp",
            "meta": {
                "vocab_type": 2,
                "n_vocab": 49152,
                "n_ctx": 4096,
                "n_ctx_train": 8192,
                "n_embd": 576,
                "n_params": 134_515_008,
                "size": 96_576_768,
                "ftype": "Q4_1",
            },
        }
    ],
}
LLAMACPP_PROPS: JSON = {
    "default_generation_settings": {"n_ctx": 4096},
    "total_slots": 1,
    "model_alias": MODEL,
    "modalities": {"vision": False, "video": False, "audio": False},
    "chat_template_caps": {"supports_tools": False, "supports_tool_calls": False},
    "build_info": "b6900-1234567",
}
VLLM_METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="served-model"} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="served-model"} 2.0
# HELP vllm:gpu_cache_usage_perc GPU KV-cache usage. 1 means 100 percent usage. DEPRECATED.
# TYPE vllm:gpu_cache_usage_perc gauge
vllm:gpu_cache_usage_perc{engine="0",model_name="served-model"} 0.5
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="served-model"} 0.25
"""


@dataclass(frozen=True)
class EngineWire:
    """What one kind of engine says.

    Attributes:
        models: the answer of `/v1/models`.
        pages: other paths that it answers.
        not_found: what it answers for the rest, with 404.
        no_model: its refusal of a model.
        checks_names: it refuses models that it does not serve.
        first: the first delta, which says nothing.
        thought: the field for thoughts.
        figures_of: the figures in the last event, by the number of tokens generated.
        metrics: the answer of `/metrics`; None: it has none unless asked to.
    """

    models: JSON
    pages: Mapping[str, JSON]
    not_found: JSON
    no_model: Callable[[str], JSON]
    first: JSON
    thought: str
    figures_of: Callable[[int], JSON]
    checks_names: bool = True
    metrics: str | None = None
    _head: JSON = field(
        default_factory=lambda: {
            "id": "chatcmpl-engine",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": MODEL,
            "system_fingerprint": "b0",
        }
    )

    def deltas(
        self, thinking: Sequence[str], words: Sequence[str], calls: Sequence[list[JSON]]
    ) -> Iterator[JSON]:
        """The deltas of an answer."""
        yield self.first
        yield from ({self.thought: thought} for thought in thinking)
        yield from ({"content": word} for word in words)
        yield from ({"tool_calls": fragments} for fragments in calls)

    def event(self, delta: JSON, finish: str | None = None) -> bytes:
        """A chunk with one choice."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self.data({**self._head, "choices": [choice], "usage": None})

    def figures(self, body: Mapping[str, Any], tokens: int) -> Iterator[bytes]:
        """The chunk with the figures, where it was asked for."""
        if (body.get("stream_options") or {}).get("include_usage"):
            yield self.data({**self._head, "choices": [], **self.figures_of(tokens)})

    @staticmethod
    def data(value: JSON) -> bytes:
        """An event."""
        return f"data: {json.dumps(value)}\n\n".encode()


def _usage(tokens: int, cached: int | None = None) -> JSON:
    details = None if cached is None else {"cached_tokens": cached}
    return {
        "prompt_tokens": 34,
        "total_tokens": 34 + tokens,
        "completion_tokens": tokens,
        "prompt_tokens_details": details,
    }


def _openai_error(kind: str, code: int, message: str) -> JSON:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _llamacpp_figures(tokens: int) -> JSON:
    timings = {
        "cache_n": 33,
        "prompt_n": 1,
        "prompt_ms": 17.5,
        "prompt_per_token_ms": 17.5,
        "prompt_per_second": 57.142857,
        "predicted_n": tokens,
        "predicted_ms": 16.5 * tokens,
        "predicted_per_token_ms": 16.5,
        "predicted_per_second": 60.606060,
    }
    return {"usage": _usage(tokens, 33), "timings": timings}


_WIRES: dict[EngineKind, EngineWire] = {
    "vllm": EngineWire(
        models=VLLM_MODELS,
        pages={"/version": {"version": "0.11.0"}},
        not_found={"detail": "Not Found"},
        no_model=lambda model: _openai_error("NotFoundError", 404, f"The model `{model}` does not exist."),
        first={"role": "assistant", "content": ""},
        thought="reasoning",
        figures_of=lambda tokens: {"usage": _usage(tokens)},
        metrics=VLLM_METRICS,
    ),
    "sglang": EngineWire(
        models=SGLANG_MODELS,
        pages={"/server_info": {"version": "0.5.4", "model_path": MODEL}},
        not_found={"detail": "Not Found"},
        no_model=lambda model: {
            "object": "error",
            "message": f"The model '{model}' does not exist",
            "type": "NotFoundError",
            "param": None,
            "code": 404,
        },
        first={"role": "assistant", "content": "", "reasoning_content": None, "tool_calls": None},
        thought="reasoning_content",
        figures_of=lambda tokens: {"usage": _usage(tokens, 20)},
    ),
    "llamacpp": EngineWire(
        models=LLAMACPP_MODELS,
        pages={"/props": LLAMACPP_PROPS},
        not_found={"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}},
        no_model=lambda model: _openai_error("invalid_request_error", 400, f"model '{model}' not found"),
        first={"role": "assistant", "content": None},
        thought="reasoning_content",
        figures_of=_llamacpp_figures,
        checks_names=False,
    ),
}


def engine_wire(kind: EngineKind) -> EngineWire:
    """What an engine of this kind says."""
    return _WIRES[kind]
