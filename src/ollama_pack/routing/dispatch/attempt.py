"""One request at one node: what was sent, when it was last heard of, and what it took."""

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from ollama_pack.base.messages import in_language, message
from ollama_pack.engines.errors import (
    ModelNotFoundError,
    NodeBusyError,
    NodeError,
    NodeFaultError,
    NodeGoneError,
    NodeTimeoutError,
    RetryableNodeError,
    WrongModelError,
)
from ollama_pack.engines.failures import without_quotes
from ollama_pack.engines.ollama.to_ollama import Thinking
from ollama_pack.engines.transport import NO_HEADERS
from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.dispatch.durations import Elapsed, spent_on
from ollama_pack.routing.dispatch.hang_delay import longest_load
from ollama_pack.routing.dispatch.pending_chat import PendingChat, RouterSettings
from ollama_pack.routing.dispatch.request import with_conversation, with_model
from ollama_pack.routing.probe.node_watch import NodeWatch
from ollama_pack.routing.state.estimates import Durations

_VARIABLE = re.compile(r"0x[0-9a-f]+|\d+(\.\d+)*")
_NODE_TROUBLE = re.compile(r"memory|cuda|rocm|timed out|loading model|runner process", re.IGNORECASE)
TAG = "ollama_pack"  # key of what we add to an answer
LIMITS_SECONDS = 1.0  # between two looks whether an answer is overdue
PENDING_LOOK_SECONDS = 5.0  # while an answer has not begun, what is known of its node is not older
ALIVE_SECONDS = 5.0  # a runner that has said something to anybody since then does not hang
SILENT_SECONDS = 15.0  # after which an answer has ended whose node takes no connection any more


class Attempt:
    """One request at one node. Lives on one event loop.

    Attributes:
        binding: why there.
        heard_at: when the last chunk came, on the loop's clock; None: it has not begun to answer.
    """

    def __init__(
        self, pending: PendingChat, binding: Assignment, watch: NodeWatch, settings: RouterSettings
    ) -> None:
        """Nothing is sent before `chunks`."""
        self.binding = binding
        self.heard_at: float | None = None
        self._pending_chat = pending
        self._watch = watch
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._first_at = self._began
        self._there_at = self._began  # when the model was last seen to be missing
        self._hang_limit: asyncio.Timeout | None = None
        self._suspicion: asyncio.TimerHandle | None = None
        self._limits: asyncio.TimerHandle | None = None
        self._longest_load = longest_load(binding, settings.load_seconds)
        self._given_up: RetryableNodeError | None = None
        self._figures: dict[str, Any] = {}

    @property
    def elapsed(self) -> float:
        """Seconds since it was sent."""
        return self._loop.time() - self._began

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """Send it, and hand on what comes. The chunk with the figures also says which node answered, and why.

        Raises:
            NodeError: as `NodeClient.complete`, or what `give_up` was told.
        """
        binding, watch, settings = self.binding, self._watch, self._settings
        body = with_model(self._pending_chat.body, binding.model, settings.keep_alive)
        if watch.row.placement == "own":
            body = with_conversation(body, self._pending_chat.request)
        chunks = watch.client.complete(
            body,
            self._pending_chat.head,
            first_byte=self._longest_load + self._first_token_limit + LIMITS_SECONDS,  # ours end before
            thinking=_known_thinking(watch, binding.model),
            names=watch.names_of(binding.model),
            headers=await self._pending_chat.headers(watch.row.way_in)
            if self._pending_chat.headers
            else NO_HEADERS,
        )
        try:
            async with aclosing(chunks):
                chunk: dict[str, Any] | None = await self._first(chunks)
                self._first_at = self._loop.time()
                while chunk is not None:
                    self.heard_at = self._loop.time()
                    yield self._noted(chunk)
                    chunk = await self._next(chunks)
        except NodeError as error:
            error.said = without_quotes(error.said, self._pending_chat.body.get("messages"))
            raise

    async def _first(self, chunks: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
        """The first chunk, unless somebody gives it up."""
        self._limits = self._loop.call_later(LIMITS_SECONDS, self._keep_limits)
        try:
            chunk = await self._next(chunks)
        finally:
            self._limits.cancel()
            if self._suspicion:
                self._suspicion.cancel()
        if chunk is None:
            raise self._fault(message("ended its answer before it began"))
        return chunk

    async def _next(self, chunks: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any] | None:
        """The next chunk, unless somebody gives it up; None at the end."""
        try:
            async with asyncio.timeout(None) as self._hang_limit:
                return await anext(chunks, None)
        except TimeoutError:
            raise self._given_up or self._fault(message("has stopped answering")) from None
        finally:
            self._hang_limit = None

    @property
    def _first_token_limit(self) -> float:
        return self._settings.first_token_seconds + self.binding.terms.predict_ttft

    @property
    def is_loading(self) -> bool:
        """Whether the node shows that the model is not in its memory yet."""
        return self._watch.is_loading(self.binding.model, self._began)

    def _keep_limits(self) -> None:
        """Look again and again. The time to the first token counts from when the model is there."""
        now = self._loop.time()
        if self.is_loading:
            self._there_at = now
            if self.elapsed > self._longest_load:
                self._give_up(NodeTimeoutError(self._watch.client.name, "load", round(self.elapsed)))
        elif now - self._there_at > self._first_token_limit:
            self.hangs()
        if now - self._watch.seen_at > PENDING_LOOK_SECONDS:
            self._watch.hurry.set()
        self._limits = self._loop.call_later(LIMITS_SECONDS, self._keep_limits)

    def _fault(self, reason: str) -> NodeFaultError:
        return NodeFaultError(self._watch.client.name, reason)

    def _noted(self, chunk: dict[str, Any]) -> dict[str, Any]:
        if "usage" in chunk:
            why = in_language(self._pending_chat.reason(self.binding), self._pending_chat.language)
            chunk[TAG] = {"model": self.binding.model, "node": self.binding.node, "reason": why}
            self._figures = chunk
        return chunk

    def suspect_after(self, seconds: float, suspect: Callable[[str, "Attempt"], None], identity: str) -> None:
        """Call `suspect` unless it has begun to answer by then."""
        if seconds < math.inf:
            self._suspicion = self._loop.call_later(seconds, suspect, identity, self)

    def is_gone(self) -> None:
        """Its node does not answer at all: an answer that has not begun is not waited for.

        One that has begun may pause, and a node that is very busy answers no look. But where nobody takes a
        connection, the machine has gone without a word, as one does that loses its power.
        """
        now = self._loop.time()
        if self.heard_at is None or (self._watch.is_down and now - self.heard_at > SILENT_SECONDS):
            self._give_up(NodeGoneError(self._watch.client.name))

    def hangs(self) -> None:
        """Its node takes longer than it honestly can, though it answers otherwise."""
        self._give_up(NodeTimeoutError(self._watch.client.name, "first byte", round(self.elapsed, 1)))

    def _give_up(self, error: RetryableNodeError) -> None:
        if self._hang_limit:
            self._given_up = error
            self._hang_limit.reschedule(self._loop.time())

    def spent(self) -> Durations:
        """How long it took the engine, once it is answered."""
        elapsed = Elapsed(self._first_at - self._began, self.elapsed)
        return spent_on(self._figures.get("usage"), self._figures.get("timings"), elapsed)

    def service(self, pieces: int) -> tuple[float, float]:
        """Seconds that it kept the engine at work, without a load, and tokens; as far as it has come.

        Args:
            pieces: chunks that have come: about as many tokens, where the engine has not counted them.
        """
        spent = self.spent()
        if self._figures.get("usage"):
            return spent.prompt + spent.decode, spent.prompt_count + spent.decode_count
        tokens = self._pending_chat.request.tokens + pieces
        if self.binding.loads:  # until the first token nobody can say when the load was over
            return (0.0 if self.heard_at is None else spent.decode), tokens
        return spent.total, tokens


class Attempts:
    """All that are under way, by the request's id."""

    def __init__(self) -> None:
        self._there: dict[str, Attempt] = {}

    def begin(self, identity: str, attempt: Attempt) -> None:
        """A request is sent to a node."""
        self._there[identity] = attempt

    def end(self, identity: str) -> None:
        """It is no longer there; one that never was is ignored."""
        self._there.pop(identity, None)

    def has(self, identity: str, attempt: Attempt) -> bool:
        """Whether this is the one that is under way for a request."""
        return self._there.get(identity) is attempt

    def at(self, node: str) -> int:
        """How many there are at a node."""
        return sum(attempt.binding.node == node for attempt in self._there.values())

    def is_gone(self, node: str) -> None:
        """A node does not answer at all: what has not begun to answer there goes elsewhere.

        To be called again and again, for answers that have begun.
        """
        for attempt in self._there.values():
            if attempt.binding.node == node:
                attempt.is_gone()

    def answers(self, binding: Assignment) -> bool:
        """Whether the model has just said something there to somebody: then a request waits for a slot."""
        since = asyncio.get_running_loop().time() - ALIVE_SECONDS
        return any(
            other.heard_at is not None and other.heard_at > since
            for other in self._there.values()
            if (other.binding.node, other.binding.model) == (binding.node, binding.model)
        )


def is_hang(error: NodeError) -> bool:
    """Whether it said nothing at all for as long as it could."""
    return isinstance(error, NodeTimeoutError) and error.stage in {"load", "first byte"}


def is_unexplained(error: RetryableNodeError) -> bool:
    """Whether the request may be the reason as well: the node is there, and says nothing of its own state.

    `format: "xml"` makes every node answer with status 500, for example.
    """
    its_own = NodeBusyError | ModelNotFoundError | NodeGoneError | WrongModelError
    if error.is_down or isinstance(error, its_own):
        return False
    return error.status is None or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR


def failure_kind(error: RetryableNodeError) -> str:
    """Equal for failures of the same kind, whatever numbers are in their words."""
    return _VARIABLE.sub("#", f"{error.status} {error.plain}").lower()


def is_about_request(error: RetryableNodeError) -> bool:
    """Whether the request is at fault where a second node says the same: not for want of memory, say."""
    speaks = error.status is not None or bool(error.said)
    return speaks and _NODE_TROUBLE.search(error.said) is None


def _known_thinking(watch: NodeWatch, name: str) -> Thinking | None:
    return next((model.thinking for model in watch.models if model.name == name), None)
