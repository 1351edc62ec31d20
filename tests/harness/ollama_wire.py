"""What an Ollama says, as values and pure functions: its models, its answers and its refusals.

Written after a running 0.17.4; tests/ollama/test_contract.py holds both against each other.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

JSON = dict[str, Any]

FOREVER = timedelta(days=365 * 290)  # Go's longest duration is about 292 years
DEFAULT_KEEP_ALIVE = timedelta(minutes=5)
NANOSECONDS = 1e9  # in a second; durations are in nanoseconds

_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)
_NAME = re.compile(r"(?:(?:[\w.:-]+/)?[\w.-]+/)?\w[\w.-]*(?::\w[\w.-]*)?", re.ASCII)
_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)"


def dumps(value: Any) -> str:
    """Return JSON as Go writes it: no spaces, no escapes but the needed ones."""
    return _ENCODER.encode(value)


class RefusalError(Exception):
    """A request that Ollama answers with a status and ``{"error": message}``."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Model:
    """An installed model. Names with the same ``blob`` (weights digest) share one runner.

    ``load_seconds``, ``prompt_rate`` and ``decode_rate`` (tokens a second) and ``answer_tokens`` (the median)
    are the node's unless they are set.
    """

    name: str
    digest: str = ""
    blob: str = ""
    size: int = 98_363_012
    capabilities: tuple[str, ...] = ("completion",)
    parameter_size: str = "134.52M"
    quantization_level: str = "Q4_1"
    family: str = "llama"
    context_length: int = 8192  # the most that it was trained for
    num_ctx: int = 4096  # what it is loaded with unless the request says otherwise
    embedding_length: int = 576
    load_seconds: float | None = None
    prompt_rate: float | None = None
    decode_rate: float | None = None
    answer_tokens: int | None = None
    info: JSON | None = field(default=None, compare=False)  # `model_info`; None: SmolLM2's

    def __post_init__(self) -> None:
        """Fill in the digests, which follow from the name when left out."""
        digest = self.digest or hashlib.sha256(self.name.encode()).hexdigest()
        object.__setattr__(self, "digest", digest)
        object.__setattr__(self, "blob", self.blob or hashlib.sha256(digest.encode()).hexdigest())

    @property
    def full_name(self) -> str:
        return full_name(self.name)

    @property
    def short_name(self) -> str:
        """As it is listed, upper and lower case as it was made."""
        return qualified(self.name).removeprefix("registry.ollama.ai/").removeprefix("library/")

    @property
    def details(self) -> JSON:
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.family,
            "families": [self.family],
            "parameter_size": self.parameter_size,
            "quantization_level": self.quantization_level,
        }


@dataclass(frozen=True)
class ToolCall:
    """A call that the scripted model makes; Ollama sends the arguments as an object, not as text."""

    name: str
    arguments: JSON


@dataclass(frozen=True)
class Answer:
    """What the node does with one chat or generate request. Every piece of text counts as one token.

    Seconds are those of the wall.

    Attributes:
        text: pieces of the answer, one line each when streamed.
        thinking: pieces of thinking, sent first.
        tool_calls: sent after the text, one line each.
        delay: seconds before anything is sent, headers included.
        pause: seconds between two lines; None: what the node's rate makes of it.
        refusal: (status, message) instead of an answer.
        failure: the message of an error line that ends the stream after the pieces.
        hangs_up: the connection is cut after the pieces, without an end.
        model: the name that the answer gives; empty: the one that was asked for.
    """

    text: Sequence[str] = ()
    thinking: Sequence[str] = ()
    tool_calls: Sequence[ToolCall] = ()
    delay: float = 0.0
    pause: float | None = 0.0
    refusal: tuple[int, str] | None = None
    failure: str | None = None
    hangs_up: bool = False
    model: str = ""

    def pieces(self) -> Iterator[JSON]:
        """Yield the parts of a message, in the order in which they are sent."""
        yield from ({"content": "", "thinking": piece} for piece in self.thinking)
        yield from ({"content": piece} for piece in self.text)
        for index, call in enumerate(self.tool_calls):
            function = {"index": index, "name": call.name, "arguments": call.arguments}
            identity = hashlib.sha256(json.dumps(function).encode()).hexdigest()[:8]
            yield {"content": "", "tool_calls": [{"id": f"call_{identity}", "function": function}]}


@dataclass(frozen=True)
class Usage:
    """The figures on the last line of an answer: tokens, and durations in seconds.

    ``total`` is all of the time. What the parts leave of it was spent waiting for a slot.
    """

    prompt_count: int
    count: int
    total: float
    load: float
    prompt: float
    decode: float

    def metrics(self) -> JSON:
        """Return them in nanoseconds; counts of zero are left out, as Go does, and no duration is zero."""
        parts = [max(1, round(part * NANOSECONDS)) for part in (self.load, self.prompt, self.decode)]
        figures = {
            "total_duration": max(round(self.total * NANOSECONDS), sum(parts)),
            "load_duration": parts[0],
            "prompt_eval_count": self.prompt_count,
            "prompt_eval_duration": parts[1],
            "eval_count": self.count,
            "eval_duration": parts[2],
        }
        return {key: value for key, value in figures.items() if value}


def full_name(name: str) -> str:
    """Return ``host/namespace/model:tag`` in lower case, the form in which Ollama compares names."""
    return qualified(name).lower()


def qualified(name: str) -> str:
    """Return ``host/namespace/model:tag`` with the parts that the name leaves out."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a model name: {name!r}")
    parts = name.split("/")
    whole = [*("registry.ollama.ai", "library")[: 3 - len(parts)], *parts]
    return "/".join(whole) + ("" if ":" in parts[-1] else ":latest")


def keep_alive_of(value: object) -> timedelta:
    """Read ``keep_alive``: seconds, or Go's "5m30s"; negative means for ever.

    Raises:
        RefusalError: 400, it is neither.
    """
    if value is None:
        return DEFAULT_KEEP_ALIVE
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RefusalError(400, f"Unsupported type: '{type(value).__name__}'")
    seconds = _go_seconds(value) if isinstance(value, str) else float(value)
    return FOREVER if seconds < 0 else timedelta(seconds=seconds)


def _go_seconds(text: str) -> float:
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if digits != "0" and not re.fullmatch(f"(?:{_DURATION_PART})+", digits):
        raise RefusalError(400, f"time: invalid duration {json.dumps(text)}")
    parts = re.findall(_DURATION_PART, digits)
    return sign * sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)


def timestamp(moment: datetime | None = None) -> str:
    return (moment or datetime.now(UTC)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def listed(model: Model, modified_at: datetime) -> JSON:
    """Return an entry of /api/tags."""
    return {
        "name": model.short_name,
        "model": model.short_name,
        "modified_at": timestamp(modified_at),
        "size": model.size,
        "digest": model.digest,
        "details": model.details,
    }


def resident(model: Model, context: int, size: int, expires_at: datetime, *, gpu: bool) -> JSON:
    """Return an entry of /api/ps."""
    return {
        "name": model.short_name,
        "model": model.short_name,
        "size": size,
        "digest": model.digest,
        "details": model.details,
        "expires_at": timestamp(expires_at),
        "size_vram": size if gpu else 0,
        "context_length": context,
    }


def shown(model: Model, modified_at: datetime) -> JSON:
    """Return the answer of /api/show; only the facts that a router reads are in ``model_info``."""
    template = "{{ range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}"
    return {
        "modelfile": f'# Modelfile generated by "ollama show"\n# FROM {model.short_name}\n\n'
        f"FROM /models/blobs/sha256-{model.blob}\nTEMPLATE {json.dumps(template)}\n"
        f"PARAMETER num_ctx {model.num_ctx}\n",
        "parameters": f"{'num_ctx':<30} {model.num_ctx}",
        "template": template,
        "details": model.details,
        "model_info": model.info
        or {
            "general.architecture": model.family,
            "general.parameter_count": 134_515_008,
            f"{model.family}.attention.head_count": 9,
            f"{model.family}.attention.head_count_kv": 3,
            f"{model.family}.block_count": 30,
            f"{model.family}.context_length": model.context_length,
            f"{model.family}.embedding_length": model.embedding_length,
        },
        "tensors": []
        if model.info
        else [{"name": "token_embd.weight", "type": "Q8_0", "shape": [model.embedding_length, 49152]}],
        "capabilities": list(model.capabilities),
        "modified_at": timestamp(modified_at),
    }


def embedding(text: str, length: int) -> list[float]:
    """Return a vector that follows from the text alone, with numbers between -1 and 1."""
    seed = hashlib.shake_256(text.encode()).digest(length)
    return [(byte - 127.5) / 127.5 for byte in seed]


def normalized(vector: Sequence[float]) -> list[float]:
    norm = sum(number * number for number in vector) ** 0.5
    return [number / norm for number in vector]
