"""How a simulated node is built: its slots, memory and rates, and the row of text that says so."""

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import TypeAdapter

from harness.ollama_wire import DEFAULT_KEEP_ALIVE, Model, full_name

__all__ = ["INSTANT", "EngineWords", "NodeRow", "NodeShape", "model_of", "node_row"]

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
EngineWords = Literal["ollama", "vllm", "vllm-without-metrics"]
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_COUNTS = ("slots", "max_loaded", "max_queue", "prefixes", "answer_tokens")
_RATES = ("load_rate", "prompt_rate", "decode_rate", "speed")
_AMOUNTS = ("memory", "contention", "keep_alive", "answer_spread", "write_seconds")


@dataclass(frozen=True, slots=True)
class NodeShape:
    """What a node can hold and how fast it is. A model may have a pace of its own: see ``Model``.

    Seconds here are simulated ones, as are those of ``keep_alive`` in a request: each takes ``1 / speed``
    seconds on the wall. What the node *tells* is measured on the wall: durations in answers, ``expires_at``,
    records. So a client of a node with ``speed=10`` learns rates ten times as high, which are the right ones
    for it.

    Attributes:
        slots: requests that a runner works on at once (OLLAMA_NUM_PARALLEL). Each keeps a prompt of its own.
        max_loaded: runners in memory at once (OLLAMA_MAX_LOADED_MODELS).
        max_queue: requests that may wait for a load, besides the one that is loading (OLLAMA_MAX_QUEUE).
        memory: bytes for weights and contexts; 0 sets no limit. A first model is loaded though it does not
            fit.
        load_rate: bytes of weights a second.
        prompt_rate: tokens of prompt a second that are evaluated.
        decode_rate: tokens a second of one stream.
        contention: a stream that starts beside n others is ``1 + contention · n`` times as slow.
        prefixes: prompts that a runner remembers. With 1, as Ollama has it, the free slot with the longest
            common beginning is taken, and what it held of another prompt is lost. With more, the oldest goes.
        keep_alive: seconds that an idle model stays in memory unless a request says otherwise.
        answer_tokens: median length of an answer.
        answer_spread: sigma of the log-normal distribution of lengths; 0 makes all equal.
        write_seconds: least time on the wall between two writes of one stream. What came meanwhile goes
            together.
        speed: how many simulated seconds pass in a second.
        seed: nodes with the same one answer the same.
        lists_loads: /api/ps has a model that is being loaded. Ollama's llama engine lists it afterwards.
        echo: answer "You said: ..." instead of text of a drawn length.
    """

    slots: int = 1
    max_loaded: int = 3
    max_queue: int = 512
    memory: int = 0
    load_rate: float = 1.2e9
    prompt_rate: float = 700.0
    decode_rate: float = 50.0
    contention: float = 0.0
    prefixes: int = 1
    keep_alive: float = DEFAULT_KEEP_ALIVE.total_seconds()
    answer_tokens: int = 80
    answer_spread: float = 0.7
    write_seconds: float = 0.0
    speed: float = 1.0
    seed: int = 0
    lists_loads: bool = True
    echo: bool = False

    def __post_init__(self) -> None:
        """Refuse what no node can have.

        Raises:
            ValueError: names the field and its value.
        """
        for least, names in ((1, _COUNTS), (0, _AMOUNTS)):
            for name in names:
                if not getattr(self, name) >= least:
                    raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)!r}")
        for name in _RATES:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)!r}")

    def load_seconds(self, model: Model) -> float:
        """Return the seconds on the wall that loading takes."""
        seconds = model.size / self.load_rate if model.load_seconds is None else model.load_seconds
        return seconds / self.speed

    def prompt_seconds(self, model: Model, tokens: int) -> float:
        """Return the seconds on the wall that evaluating so many tokens of a prompt takes."""
        return tokens / (model.prompt_rate or self.prompt_rate) / self.speed

    def token_seconds(self, model: Model, others: int) -> float:
        """Return the seconds on the wall between two tokens of a stream that starts beside so many others."""
        rate = (model.decode_rate or self.decode_rate) / (1 + self.contention * others)
        return 1 / rate / self.speed


# What a scripted node is: everything at once, and each duration above zero, as Ollama's are.
INSTANT = NodeShape(
    slots=1000, max_loaded=1000, load_rate=math.inf, prompt_rate=20_000, decode_rate=math.inf, echo=True
)


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node that a command line asks for. Port 0 lets the system choose.

    Attributes:
        engine: what it speaks: Ollama's protocol, or OpenAI's as vLLM does, with or without `/metrics`.
    """

    name: str
    models: tuple[Model, ...]
    shape: NodeShape = field(default_factory=NodeShape)
    port: int = 0
    gpu: bool = True
    version: str = "0.17.4"
    engine: EngineWords = "ollama"


def node_row(text: str) -> NodeRow:
    """Read ``gpu0 models=llama3:8b;size=4.7GB;tools,small slots=2 decode_rate=40 speed=10``.

    Keys are the fields of ``NodeShape``, and ``models``, ``port``, ``gpu``, ``version`` and
    ``engine``.

    Raises:
        ValueError: a key that is unknown, missing or twice there, or a value of the wrong type.
    """
    name, *pairs = text.split() or [""]
    given = _given(pairs)
    if not name or "=" in name or "models" not in given:
        raise ValueError(f"{text!r}: expected NAME models=MODEL,… [key=value …]")
    models = [model_of(one) for one in given.pop("models").split(",")]
    own = {key: given.pop(key) for key in list(given) if key in ("port", "gpu", "version", "engine")}
    return _read(NodeRow, own, name=name, models=models, shape=_read(NodeShape, given))


def model_of(text: str) -> Model:
    """Read ``llama3:8b;size=4.7GB;tools;decode_rate=12``: a name, fields of ``Model``, and capabilities.

    Raises:
        ValueError: what is no name, an unknown field, or a value of the wrong type.
    """
    name, *parts = text.split(";")
    capabilities = ["completion", *(part for part in parts if "=" not in part)]
    model = _read(
        Model, _given([part for part in parts if "=" in part]), name=name, capabilities=capabilities
    )
    full_name(model.name)  # refuses what is none
    return model


def _given(pairs: list[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key in given:
            raise ValueError(f"{pair!r}: expected each key=value once")
        given[key] = str(_bytes(value)) if key in ("size", "memory") else value
    return given


def _bytes(text: str) -> int:
    unit = _UNITS.get(text[-2:].upper(), 0)
    return round(float(text[:-2]) * unit) if unit else int(text)


def _read(kind: type[T], given: dict[str, str], **known: object) -> T:
    if unknown := set(given) - {one.name for one in fields(kind)}:
        raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
    return TypeAdapter(kind).validate_python(given | known)
