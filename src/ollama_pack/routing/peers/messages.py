"""What workers write to each other: events as JSON, with hashes instead of prompts.

A message that a worker does not understand, of another version of the pack perhaps, is passed over.
"""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ollama_pack.routing.decide.prefix import MatchDepth
from ollama_pack.routing.decide.view import PromptBlock, RunnerOptions
from ollama_pack.routing.state.estimates import Durations
from ollama_pack.routing.state.events import (
    BegunEvent,
    BlamedEvent,
    BoundEvent,
    EndedEvent,
    FailedEvent,
    FinishedEvent,
    FleetEvent,
    WaitingEvent,
)
from ollama_pack.routing.state.model_stats import Lesson

MAX_MESSAGE = 256 * 1024  # bytes; a prompt of the most blocks takes a tenth of it


@dataclass(frozen=True, slots=True)
class HelloMessage:
    """A worker has come and asks what there is."""

    worker: str


@dataclass(frozen=True, slots=True)
class AliveMessage:
    """A worker is there, and so are these requests of its own, at nodes or waiting."""

    worker: str
    requests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ByeMessage:
    """A worker goes, and its requests have ended."""

    worker: str


@dataclass(frozen=True, slots=True)
class EventMessage:
    """Something happened to a request of a worker."""

    worker: str
    event: FleetEvent


PullWord = Literal["waiting", "draining", "pulling", "done", "failed", "stopped"]
ENDED_PULLS = frozenset({"done", "failed", "stopped"})


@dataclass(slots=True)
class PullState:
    """The pull of a model at one node, with percent of its current layer and why it failed."""

    node: str
    model: str
    state: PullWord = "waiting"
    percent: float = 0.0
    fault: str = ""

    @property
    def is_under_way(self) -> bool:
        return self.state not in ENDED_PULLS


@dataclass(frozen=True, slots=True)
class UpkeepMessage:
    """A worker pulls models: keys of the nodes that get nothing new meanwhile, and how far it is."""

    worker: str
    drained: tuple[str, ...] = ()
    pulls: tuple[PullState, ...] = ()


@dataclass(frozen=True, slots=True)
class StopPullMessage:
    """A worker's admin wants the pull to stop, whichever worker does it."""

    worker: str


FleetMessage = HelloMessage | AliveMessage | ByeMessage | EventMessage | UpkeepMessage | StopPullMessage

_EVENTS: dict[str, type[FleetEvent]] = {
    "waiting": WaitingEvent,
    "bound": BoundEvent,
    "begun": BegunEvent,
    "finished": FinishedEvent,
    "ended": EndedEvent,
    "failed": FailedEvent,
    "blamed": BlamedEvent,
}
_NAMES = {kind: name for name, kind in _EVENTS.items()}


def encode_message(message: FleetMessage) -> bytes:
    """As JSON in UTF-8."""
    match message:
        case HelloMessage(worker):
            written: dict[str, Any] = {"t": "hello", "w": worker}
        case AliveMessage(worker, requests):
            written = {"t": "alive", "w": worker, "r": requests}
        case ByeMessage(worker):
            written = {"t": "bye", "w": worker}
        case UpkeepMessage(worker, drained, pulls):
            written = {"t": "upkeep", "w": worker, "d": drained, "p": [asdict(one) for one in pulls]}
        case StopPullMessage(worker):
            written = {"t": "stop", "w": worker}
        case EventMessage(worker, event):
            written = {"t": _NAMES[type(event)], "w": worker, "e": _event_fields(event)}
    return json.dumps(written, separators=(",", ":"), default=str).encode()


def _event_fields(event: FleetEvent) -> dict[str, Any]:
    fields = asdict(event)
    if isinstance(event, BoundEvent | WaitingEvent):
        fields["blocks"] = [(block.chain, block.upto, int(block.answer)) for block in event.blocks]
    return fields


def decode_message(payload: bytes) -> FleetMessage | None:
    """Read a message; None when it is none that this version knows."""
    if len(payload) > MAX_MESSAGE:
        return None
    try:
        written = json.loads(payload, parse_constant=_refuse_constant)
        kind, worker = str(written["t"]), str(written["w"])
        return _of_worker(kind, worker, written) or EventMessage(worker, _fleet_event(kind, written["e"]))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _of_worker(kind: str, worker: str, written: dict[str, Any]) -> FleetMessage | None:
    """A message about a worker itself; None: it is about a request."""
    match kind:
        case "hello":
            return HelloMessage(worker)
        case "alive":
            return AliveMessage(worker, _strings(written["r"]))
        case "bye":
            return ByeMessage(worker)
        case "upkeep":
            return UpkeepMessage(worker, _strings(written["d"]), tuple(map(pull_state, written["p"])))
        case "stop":
            return StopPullMessage(worker)
    return None


def _fleet_event(kind: str, fields: dict[str, Any]) -> FleetEvent:
    request_id = str(fields["request_id"])
    match kind:
        case "waiting" | "bound":
            return (_waiting_event if kind == "waiting" else _bound_event)(request_id, fields)
        case "begun":
            return BegunEvent(request_id, _seconds(fields["left"]))
        case "finished":
            lesson = _lesson(fields["lesson"])
            return FinishedEvent(request_id, str(fields["node"]), str(fields["blob"]), lesson)
        case "ended":
            return EndedEvent(request_id)
        case "failed":
            return FailedEvent(request_id, bool(fields["node_down"]), bool(fields["hung"]))
        case "blamed":
            return BlamedEvent(request_id, str(fields["node"]), str(fields["model"]), bool(fields["hung"]))
    raise ValueError(kind)


def _bound_event(request_id: str, fields: dict[str, Any]) -> BoundEvent:
    return BoundEvent(
        request_id=request_id,
        node=str(fields["node"]),
        model=str(fields["model"]),
        blob=str(fields["blob"]),
        loads=bool(fields["loads"]),
        victims=_strings(fields["victims"]),
        context=int(fields["context"]),
        options=_options(fields["options"]),
        ready=_seconds(fields["ready"]),
        left=_seconds(fields["left"]),
        blocks=_blocks(fields["blocks"]),
        user=str(fields.get("user", "")),
        background=bool(fields.get("background")),
    )


def _waiting_event(request_id: str, fields: dict[str, Any]) -> WaitingEvent:
    return WaitingEvent(
        request_id=request_id,
        user=str(fields["user"]),
        models=_strings(fields["models"]),
        blocks=_blocks(fields["blocks"]),
        max_output=int(fields["max_output"]),
        context=int(fields["context"]),
        options=_options(fields["options"]),
        background=bool(fields["background"]),
        waited=_seconds(fields["waited"]),
    )


def pull_state(written: Mapping[str, Any]) -> PullState:
    """What `asdict` has made of a pull.

    Raises:
        ValueError, KeyError, TypeError: it is none that this version knows.
    """
    state = written["state"]
    if state not in get_args(PullWord):
        raise ValueError(state)
    percent = _seconds(written["percent"])
    return PullState(str(written["node"]), str(written["model"]), state, percent, str(written["fault"]))


def _options(written: Collection[Any]) -> RunnerOptions:
    return tuple((str(name), value) for name, value in written)


def _blocks(written: Collection[Any]) -> tuple[PromptBlock, ...]:
    return tuple(PromptBlock(int(chain), int(upto), bool(answer)) for chain, upto, answer in written)


def _lesson(fields: dict[str, Any]) -> Lesson:
    spent, match = fields["spent"], fields["match"]
    durations = Durations(
        total=_seconds(spent["total"]),
        load=_seconds(spent["load"]),
        prompt=_seconds(spent["prompt"]),
        prompt_count=int(spent["prompt_count"]),
        decode=_seconds(spent["decode"]),
        decode_count=int(spent["decode_count"]),
        hit=None if spent["hit"] is None else int(spent["hit"]),
    )
    return Lesson(
        spent=durations,
        match=MatchDepth(
            depth=int(match["depth"]),
            tokens=int(match["tokens"]),
            between=int(match["between"]),
            held=bool(match["held"]),
        ),
        beside=int(fields["beside"]),
        background=bool(fields["background"]),
        loaded=bool(fields["loaded"]),
    )


def _seconds(written: Any) -> float:
    """Seconds that can be reckoned with: `1e999` in JSON is infinite, and the text "nan" is a float, too."""
    seconds = float(written)
    if not math.isfinite(seconds):
        raise ValueError(f"{written!r} is no number of seconds")
    return seconds


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number to reckon with")


def _strings(values: Collection[Any]) -> tuple[str, ...]:
    return tuple(map(str, values))
