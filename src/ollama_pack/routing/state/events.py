"""What happens to a request at a node, as workers tell each other. Times are in seconds from the telling."""

from collections.abc import Callable
from dataclasses import dataclass

from ollama_pack.routing.decide.view import PromptBlock, RunnerOptions
from ollama_pack.routing.state.model_stats import Lesson


@dataclass(frozen=True, slots=True)
class BoundEvent:
    """A request goes to a node, or is still there.

    Attributes:
        request_id: the request.
        node: key of the node, see `node_key`.
        model: as the node lists it.
        blob: the weights.
        loads: it makes the node load them.
        victims: weights that are unloaded first.
        context: that the runner is asked for, in tokens; 0: the node's default.
        options: what else it is asked for.
        ready: when it is loaded.
        left: when the request is predicted to end.
        blocks: its prompt.
        user: whom fairness counts it for, as a hash; empty: nobody, as for a load that nobody waits for.
        background: as in `FleetRequest`.
    """

    request_id: str
    node: str
    model: str
    blob: str
    loads: bool
    victims: tuple[str, ...]
    context: int
    options: RunnerOptions
    ready: float
    left: float
    blocks: tuple[PromptBlock, ...]
    user: str = ""
    background: bool = False


@dataclass(frozen=True, slots=True)
class WaitingEvent:
    """A request waits: no node could begin it at once. The fields are those of `FleetRequest`.

    Attributes:
        waited: seconds since it came.
    """

    request_id: str
    user: str
    models: tuple[str, ...]
    blocks: tuple[PromptBlock, ...]
    max_output: int
    context: int
    options: RunnerOptions
    background: bool
    waited: float


@dataclass(frozen=True, slots=True)
class BegunEvent:
    """Its first token came; `left` is when it is predicted to end."""

    request_id: str
    left: float


@dataclass(frozen=True, slots=True)
class FinishedEvent:
    """It was answered, and this is what it teaches of the node with these weights."""

    request_id: str
    node: str
    blob: str
    lesson: Lesson


@dataclass(frozen=True, slots=True)
class EndedEvent:
    """It ended and tells nothing: cancelled or refused, at a node or while it waited."""

    request_id: str


@dataclass(frozen=True, slots=True)
class BlamedEvent:
    """A node failed a request that another one answered: the fault was the node's.

    Attributes:
        request_id: the request.
        node: key of the node, see `node_key`.
        model: as the node lists it.
        hung: it said nothing for as long as it could.
    """

    request_id: str
    node: str
    model: str
    hung: bool


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """The node failed it: for its own sake, or for one model's, perhaps by saying nothing at all."""

    request_id: str
    node_down: bool
    hung: bool = False


FleetEvent = WaitingEvent | BoundEvent | BegunEvent | FinishedEvent | EndedEvent | FailedEvent | BlamedEvent
Listener = Callable[[FleetEvent], None]


def tell_nobody(event: FleetEvent) -> None:
    """For a worker that is alone."""
