"""One request on its way through the fleet, and what an admin may set for all of them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ollama_pack.base.messages import ENGLISH, Message, message
from ollama_pack.engines.errors import NodeError
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.engines.way_in import WayIn
from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.decide.view import FleetRequest
from ollama_pack.routing.dispatch.explain import Decision, reason
from ollama_pack.routing.state.estimates import Durations

# What made the choice smaller, given the model that answers: such as others that are not installed.
WhyModel = Callable[[str], Sequence[Message]]
# Called with the seconds that an answer took a node, and its tokens.
Served = Callable[[float, float], None]
# The headers for one user's chat at a node, besides those that every request there has.
NodeHeaders = Callable[[WayIn], Awaitable[Mapping[str, str]]]


class Tell(Protocol):
    """Called with status lines, and whether nothing goes on after it."""

    async def __call__(self, line: Message, *, done: bool) -> None:
        """Show a line."""


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """What an admin may set.

    Attributes:
        strategy: as `Scheduler` takes it.
        probe_seconds: between two looks at a node.
        first_token_seconds: how long a request waits for a node; and then, once the model is loaded, for the
            first token, on top of what was predicted.
        load_seconds: how long a model may take to load at most.
        max_queue: how many requests may wait.
        keep_alive: how long models stay in memory where a request does not say; empty: as the nodes have it.
        several_workers: others use the same nodes: those that are not heard agree by hashing on where a chat
            goes.
    """

    strategy: str = "predicted_ttft"
    probe_seconds: float = 5.0
    first_token_seconds: float = 120.0
    max_queue: int = 64
    keep_alive: str = ""
    several_workers: bool = False
    load_seconds: float = 7200.0


@dataclass(frozen=True, slots=True)
class UnexplainedFailure:
    """A failure before the first token that may be the node's fault or the request's.

    Attributes:
        node: the node.
        model: as the node lists it.
        hung: it said nothing for as long as it could.
        alike: equal for failures of the same kind.
    """

    node: str
    model: str
    hung: bool
    alike: str


@dataclass(slots=True)
class PendingChat:
    """One request on its way.

    Attributes:
        request: what the scheduler knows of it.
        body: OpenAI's.
        head: of the answer.
        tell: shows status lines.
        bound: set when it has a node.
        figures: its user may see figures about what others do: see `reason`.
        language: of the reason that its answer carries.
        waits_since: when it began to wait for one, on the loop's clock; None: it is at one.
        busy_since: when the first node was too busy for it, on the same clock; None: none was.
        tried: nodes that have failed it → what was wrong.
        unexplained: those of these failures that may have been its own fault.
        answering: its answer has begun.
        headers: for its request to a node; None: only those that every request has.
        place: the best place in the queue that was shown: what comes later and goes first is not shown.
        served: is told what the answer took, also where its user leaves before the end.
        shown: since when a status line is shown that is not done, on the loop's clock; None: none is.
        why_model: what made the choice of a model smaller.
        user: the id of its user; the scheduler knows them by a hash.
        came: when it came, on the loop's clock.
        began: when its answer began, on the same clock; None: it has not.
        decision: the last one about it.
        spent: what the engine reported at the end.
    """

    request: FleetRequest
    body: Mapping[str, Any]
    head: ReplyHead
    tell: Tell
    bound: asyncio.Future[Assignment]
    figures: bool = True
    language: str = ENGLISH
    waits_since: float | None = None
    busy_since: float | None = None
    tried: dict[str, NodeError] = field(default_factory=dict)
    unexplained: list[UnexplainedFailure] = field(default_factory=list)
    answering: bool = False
    headers: NodeHeaders | None = None
    served: Served | None = None
    place: int | None = None
    shown: float | None = None
    why_model: WhyModel = lambda _model: ()
    user: str = ""
    came: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    began: float | None = None
    decision: Decision | None = None
    spent: Durations | None = None

    @property
    def asked(self) -> str:
        """The name that was asked for."""
        return self.head.model

    def reason(self, binding: Assignment) -> Message:
        """Why this node and this model."""
        failed = [message("{node} failed", node=node) for node in self.tried]
        return reason(binding, [*self.why_model(binding.model), *failed], figures=self.figures)

    async def say(self, line: Message, *, done: bool) -> None:
        """Show a status line, and remember whether it looks as if something went on."""
        if done:
            self.shown = None
        elif self.shown is None:
            self.shown = asyncio.get_running_loop().time()
        await self.tell(line, done=done)

    def shown_for(self) -> float:
        """Seconds for which a line has been shown that is not done."""
        return 0.0 if self.shown is None else asyncio.get_running_loop().time() - self.shown
