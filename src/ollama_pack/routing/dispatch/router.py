"""The fleet at work: requests wait where they can still change their mind, then go to nodes over HTTP.

All decisions are `fleet.scheduler`'s. What is here tells it what happens, and does what it decides.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from random import Random
from typing import Any
from uuid import uuid4

import aiohttp

from ollama_pack.base.messages import ENGLISH, Message
from ollama_pack.engines.errors import (
    ModelNotFoundError,
    NodeBusyError,
    NodeError,
    NodeUnreachableError,
    RequestRefusedError,
    RetryableNodeError,
)
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.engines.openai.metrics import EngineActivity
from ollama_pack.routing.decide.assignment import Assignment
from ollama_pack.routing.decide.policy import RoutingPolicy
from ollama_pack.routing.decide.view import FleetRequest
from ollama_pack.routing.dispatch.attempt import (
    ALIVE_SECONDS,
    Attempt,
    Attempts,
    failure_kind,
    is_about_request,
    is_hang,
    is_unexplained,
)
from ollama_pack.routing.dispatch.counts import RouterCounts
from ollama_pack.routing.dispatch.explain import (
    Decision,
    answered_line,
    explained,
    loading_line,
    waited_line,
    waiting_line,
)
from ollama_pack.routing.dispatch.hang_delay import honest_silence, longest_load
from ollama_pack.routing.dispatch.pending_chat import (
    NodeHeaders,
    PendingChat,
    RouterSettings,
    Served,
    Tell,
    UnexplainedFailure,
    WhyModel,
)
from ollama_pack.routing.dispatch.record import NoteChat, chat_record, note_nowhere, running_record
from ollama_pack.routing.dispatch.request import fleet_request, load_options
from ollama_pack.routing.dispatch.upkeep import STAY_SECONDS, Upkeep
from ollama_pack.routing.errors import (
    AnswerBrokenError,
    NoAnswerError,
    NodesDownError,
    NoNodeError,
    QueueFullError,
    RequestFailsError,
    WaitedTooLongError,
)
from ollama_pack.routing.naming import auto_parts, fold_name
from ollama_pack.routing.nodes import NodeRow
from ollama_pack.routing.peers.share import Connect, FleetShare, Sharing, chain_key
from ollama_pack.routing.probe.catalogue import Catalogue
from ollama_pack.routing.probe.node_watch import NodeWatch, node_client
from ollama_pack.routing.probe.poller import FIRST_LOOK_SECONDS, NodePoller
from ollama_pack.routing.state.estimates import Durations
from ollama_pack.routing.state.scheduler import Scheduler

router_log = logging.getLogger(__name__)

DOWN_SECONDS = 10.0  # that a request waits for nodes which have just stopped answering
LOAD_TOLD_SECONDS = 10.0  # until a load is shown to go on; then each time twice as long
PLACE_SECONDS = 1.0  # between two looks at a waiting request's place
DECISIONS_SHOWN = RUNNING_SHOWN = 64
PROLONG_SECONDS = 60.0  # for a request that only keeps a model in memory


async def _tell_nobody(line: Message, *, done: bool) -> None:
    pass


def _nothing(_model: str) -> tuple[Message, ...]:
    return ()


class Router:
    """Gives chats to nodes. Lives on one event loop."""

    def __init__(  # noqa: PLR0913 - each is a fact of its own
        self,
        rows: Iterable[NodeRow],
        session: aiohttp.ClientSession,
        settings: RouterSettings | None = None,
        dice: Random | None = None,
        policy: RoutingPolicy | None = None,
        *,
        connect: Connect | None = None,
        secret: str = "",
        note: NoteChat = note_nowhere,
    ) -> None:
        """Take what is needed; nodes are looked at from the first use on.

        Args:
            rows: the nodes.
            session: holds the connections; the router closes it. A limit on its connections limits the fleet.
            settings: what an admin may set.
            dice: breaks ties.
            policy: weights and bounds of decisions; nobody has to set them.
            connect: connects it with other workers on the same nodes; None: it is alone.
            secret: the same for all of them, and known to nobody else: what they tell each other of prompts
                are hashes with this key.
            note: is given a record of each chat that has ended, as `chat_record` makes it.
        """
        self.note = note
        self.settings = settings or RouterSettings()
        self._loop = asyncio.get_running_loop()
        self._session = session
        dice = dice or Random()  # noqa: S311 - breaks ties
        self.nodes = {row.name: self._watch(row) for row in rows}
        self.scheduler = Scheduler(
            [watch.row for watch in self.nodes.values()],
            self._loop.time,
            dice,
            max_queue=self.settings.max_queue,
            policy=policy or RoutingPolicy(unsynced_peers=self.settings.several_workers),
            strategy=self.settings.strategy,
        )
        self.decisions: deque[Decision] = deque(maxlen=DECISIONS_SHOWN)
        self.counts = RouterCounts()
        self._chats: dict[str, PendingChat] = {}
        self._attempts = Attempts()
        self._decided: dict[str, Decision] = {}
        self._failures: dict[tuple[str, str], str] = {}  # node and model → why it failed the last request
        self._poller = NodePoller(self.nodes, session, self.settings.probe_seconds, self)
        self._key = chain_key(secret)
        self._sharing: Sharing | None = None
        self._share = FleetShare(self.scheduler, uuid4().hex, self._loop.time) if connect else None
        if connect and self._share:
            self._sharing = connect(self._share, self._decide)
        self._idle = asyncio.Event()
        self._idle.set()
        self._holders = 0
        self._wake: asyncio.TimerHandle | None = None
        self._loads: set[asyncio.Task[None]] = set()  # that nobody waits for
        self.upkeep = Upkeep(self)
        if self._share:
            self.upkeep.peers, self._share.upkeep = self._share, self.upkeep

    # --- the nodes ---

    def _watch(self, row: NodeRow) -> NodeWatch:
        return NodeWatch(row, node_client(row, self._session), self._loop.time)

    def follow(self, rows: Sequence[NodeRow]) -> None:
        """Go on with other nodes, and keep what is known of those that stay.

        A node that has gone from the rows gets no new requests. It answers those that it has, then it is
        forgotten. A row of the same name must be the same row.
        """
        names = {row.name for row in rows}
        for row in rows:
            if row.name not in self.nodes:
                self.nodes[row.name] = self._watch(row)
                self.scheduler.cluster.add(row)
        for name, watch in self.nodes.items():
            watch.leaving = name not in names
        self.upkeep.apply()
        self._drop_idle()
        self._decide()

    def _drop_idle(self) -> None:
        """Forget the nodes that have gone and have answered all that they had."""
        for name, watch in list(self.nodes.items()):
            if watch.leaving and self.scheduler.is_idle(name) and not self._attempts.at(name):
                self._poller.leave(name)
                self.scheduler.cluster.remove(name)
                del self.nodes[name]
                self._failures = {key: why for key, why in self._failures.items() if key[0] != name}

    def looked(self, watch: NodeWatch, *, answers: bool) -> None:
        """Told by the poller, as are the two below."""
        name = watch.row.name
        if answers:
            installed = {model.name: model.installed for model in watch.models}
            self.scheduler.cluster.probed(name, installed, watch.residents, watch.seen_at)
        elif watch.is_gone:
            self.scheduler.cluster.unreachable(name)
            self._attempts.is_gone(name)
        self._decide()

    def counted(self, watch: NodeWatch, activity: EngineActivity, asked_at: float) -> None:
        """Its engine tells what it does for all clients."""
        self.scheduler.cluster.activity(watch.row.name, activity.running, activity.waiting, asked_at)
        self._decide()

    def gpus_read(self, watch: NodeWatch) -> None:
        """Its GPUs were looked at. Those that another node has, too, may be at work for that one."""
        sources = [other.gpu_source for other in self.nodes.values()]
        alone = sources.count(watch.gpu_source) == 1
        sizes = [gpu.memory_total for gpu in watch.gpus.gpus if gpu.memory_total]
        if alone and sizes:
            used = sum(gpu.memory_used or 0 for gpu in watch.gpus.gpus)
            self.scheduler.cluster.gpu_memory(watch.row.name, sum(sizes), used, len(sizes))
        if watch.utilization is not None and alone:
            self.scheduler.cluster.gpu_busy(watch.row.name, watch.utilization)
            self._decide()

    def answering(self, models: Sequence[str]) -> str:
        """Of the models that may answer, the preferred one first, the one that would now."""
        return next((model for model in models if self.scheduler.cluster.can_answer((model,))), models[0])

    def catalogue(self) -> Catalogue:
        """The models of all nodes that answer, or did a short while ago."""
        return self._poller.catalogue()

    async def ready(self, seconds: float = FIRST_LOOK_SECONDS) -> None:
        """Wait until every node has been looked at once, but no longer than this."""
        if self._sharing:
            self._sharing.start()
        await self._poller.ready(seconds)

    @property
    def has_seen_all(self) -> bool:
        """Whether every node has been looked at once, so that the catalogue is whole."""
        return self._poller.is_complete

    def in_flight(self, node: str) -> int:
        """How many requests are at a node, those of other workers that are heard included."""
        return self._attempts.at(node) + self.scheduler.cluster.remote.at(node)

    def own_in_flight(self, node: str) -> int:
        """How many of this worker's requests are at a node."""
        return self._attempts.at(node)

    def queued(self, node: str) -> int:
        """How many of this worker's requests that wait this node could answer; other nodes may, too."""
        watch = self.nodes[node]
        waiting = (pending.request for pending in self._chats.values() if not pending.bound.done())
        return sum(watch.has_any(request.models) for request in waiting)

    def is_healthy(self, node: str) -> bool:
        """Whether it answers, and has not just failed a request. One that is drained does."""
        breaker = self.scheduler.cluster.nodes[node].breaker
        return not self.nodes[node].is_gone and breaker.state(self._loop.time()) == "closed"

    def running(self) -> list[dict[str, Any]]:
        """Records of the chats that have not ended, the newest first, see `running_record`."""
        newest = islice(reversed(self._chats.values()), RUNNING_SHOWN)
        return [running_record(pending, self._loop.time()) for pending in newest]

    @property
    def sharing_fault(self) -> str:
        """Why other workers cannot be heard; empty: they can, or there is nothing to hear them by."""
        return self._sharing.fault if self._sharing else ""

    @property
    def peers(self) -> int:
        """How many other workers are heard."""
        return self._share.peers if self._share else 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """For whoever is about to ask something of it: `close` waits until nobody holds it."""
        self._holders += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._holders -= 1
            self._rest()

    def _rest(self) -> None:
        if not self._chats and not self._holders:
            self._idle.set()

    async def close(self) -> None:
        """Let the requests that are under way end, then leave the nodes alone."""
        while not self._idle.is_set():  # somebody may come before this goes on
            await self._idle.wait()
        self.upkeep.close()
        for load in self._loads:
            load.cancel()
        await asyncio.gather(*self._loads, return_exceptions=True)
        if self._sharing:
            await self._sharing.close()
        await self._poller.close()
        if self._wake:
            self._wake.cancel()
        await self._session.close()

    # --- requests ---

    async def answer(  # noqa: PLR0913 - each is a fact of its own
        self,
        body: Mapping[str, Any],
        models: Sequence[str],
        head: ReplyHead,
        *,
        user: str,
        chat: str = "",
        background: bool = False,
        tell: Tell = _tell_nobody,
        figures: bool = True,
        language: str = ENGLISH,
        headers: NodeHeaders | None = None,
        last: bool = False,
        served: Served | None = None,
        why_model: WhyModel = _nothing,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of an answer to an OpenAI chat body. Closing the iterator ends the generation.

        The chunk that carries the figures also says which node answered, and why that one:
        `"ollama_pack": {"model": "llama3:8b", "node": "gpu1", "reason": "gpu1 has llama3:8b in memory"}`.

        Args:
            body: whether or not it asks for a stream.
            models: names of the models that may answer, the preferred one first.
            head: what the chunks have in common. Its model is the name that was asked for.
            user: whom fairness counts it for.
            chat: the conversation; empty: none.
            background: nobody looks at the answer as it is written.
            tell: shows status lines.
            figures: whether the user may see what the nodes hold of others: see `explain.reason`.
            language: of whoever reads the reason.
            headers: for its request to a node; None: only those that every request has.
            last: it comes behind all others.
            served: is told what the answer took, also where its user leaves before the end.
            why_model: what made the choice of a model smaller, for the status line.

        Raises:
            ChatBodyError: something in the body cannot be put into Ollama's form.
            RoutingError: no node can answer, or none in time.
            RequestRefusedError: the request has to change.
        """
        await self.ready()
        identity = uuid4().hex
        request = fleet_request(
            body,
            models,
            request_id=identity,
            user=user,
            chat=chat,
            background=background,
            last=last,
            key=self._key,
        )
        bound = self._loop.create_future()
        made = PendingChat(
            request,
            body,
            head,
            tell,
            bound,
            figures,
            language=language,
            headers=headers,
            served=served,
            user=user,
            why_model=why_model,
        )
        async with self._noted(made), self._taken_in(made) as pending:
            while True:
                binding = await self._wait_for_node(pending)
                if not await self._may_send(pending, binding):
                    continue
                try:
                    async with aclosing(self._ask(pending, binding)) as chunks:
                        async for chunk in chunks:
                            yield chunk
                except RequestRefusedError as error:
                    self.scheduler.refused(identity)
                    raise RequestRefusedError(binding.node, error.status, error.said) from error
                except RetryableNodeError as error:
                    self._go_on(pending, binding, error)
                else:
                    return

    @asynccontextmanager
    async def _noted(self, pending: PendingChat) -> AsyncIterator[None]:
        """Write down how a chat ends, however it does."""
        error: BaseException | None = None
        try:
            yield
        except BaseException as caught:
            error = caught
            raise
        finally:
            try:
                self.note(chat_record(pending, error, self._loop.time()))
            except Exception:  # noqa: BLE001 - no chat fails for its record
                router_log.exception("A chat is missing in the history")

    @asynccontextmanager
    async def _taken_in(self, pending: PendingChat) -> AsyncIterator[PendingChat]:
        """A request that the scheduler knows of, for as long as anybody wants its answer."""
        identity = pending.request.id
        try:
            displaced = self.scheduler.submit(pending.request)
        except NoNodeError as error:
            raise self.no_node(error.models) from None
        if displaced:
            self._displace(displaced)
        self._chats[identity] = pending
        self._idle.clear()
        try:
            yield pending
        finally:
            self.scheduler.cancel(identity)  # nothing to do for one that has ended
            del self._chats[identity]
            self._attempts.end(identity)
            self._decided.pop(identity, None)
            self._drop_idle()
            self._decide()
            self._rest()
            if pending.shown is not None:  # also when its user has left: the line is kept with the chat
                line = waited_line(pending.asked, pending.shown_for())
                last = self._loop.create_task(pending.say(line, done=True))
                await asyncio.shield(last)

    def _displace(self, request: FleetRequest) -> None:
        """Refuse a request that waits: its user has the most places, and another user needs this one."""
        own = self.scheduler.places_of(request.user) + 1
        bound = self._chats[request.id].bound
        bound.set_exception(QueueFullError(self.settings.max_queue, self.scheduler.waiting, own))
        bound.exception()  # has been seen, should its client leave at this moment

    def no_node(self, models: Sequence[str]) -> NoNodeError:
        """The error that says why no node can have these models."""
        silent = {name: watch.fault for name, watch in self.nodes.items() if watch.fault}
        return NoNodeError(tuple(models), tuple(self.nodes), silent)

    def _decide(self) -> None:
        """Let the scheduler decide, and tell the requests that have a node now."""
        for binding in self.scheduler.decide():
            decision = explained(binding, time.time())
            self.decisions.append(decision)
            self._decided[binding.request.id] = decision
            self._chats[binding.request.id].bound.set_result(binding)
        for binding in self.scheduler.load_ahead():
            self.load_now(binding, self.settings.keep_alive or None)
        if self._wake:
            self._wake.cancel()
        due = self.scheduler.wake_at
        self._wake = self._loop.call_at(due, self._decide) if due is not None else None

    def load_now(self, binding: Assignment, keep_alive: str | float | None) -> None:
        """Let a node load a model that nobody waits for yet."""
        self._beside(self._load_ahead(binding, keep_alive), "load a model ahead of need")

    def prolong(self, node: str, model: str, seconds: float, options: Mapping[str, Any]) -> None:
        """Let a model stay in a node's memory, with the options that it has there: others load it again."""
        self._beside(self._prolong(node, model, seconds, options), "keep a model in memory")

    def _beside(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do something that no chat waits for."""
        task = self._loop.create_task(work, name=name)
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)

    async def _prolong(self, node: str, model: str, seconds: float, options: Mapping[str, Any]) -> None:
        client = self.nodes[node].client
        try:
            await client.load(model, seconds=PROLONG_SECONDS, keep_alive=seconds, options=options)
        except NodeError as error:
            router_log.warning("%s could not keep %s in memory: %s", node, model, error)

    async def _load_ahead(self, binding: Assignment, keep_alive: str | float | None) -> None:
        identity, node, began = binding.request.id, binding.node, self._loop.time()
        if self._sharing and not await self._sharing.claim(binding):
            return
        try:
            await self.nodes[node].client.load(
                binding.model,
                seconds=longest_load(binding, self.settings.load_seconds),
                keep_alive=keep_alive,
                options=load_options(binding.request),
            )
        except NodeError as error:
            router_log.warning("%s could not load %s ahead of need: %s", node, binding.model, error)
            is_passing = error.is_down or isinstance(error, NodeBusyError)
            self.scheduler.load_failed(identity, lasts=not is_passing)
        else:
            seconds = self._loop.time() - began
            self.scheduler.finished(identity, Durations(seconds, load=seconds))
        finally:
            self.scheduler.cancel(identity)  # nothing to do for one that has ended
            self._drop_idle()
        self._decide()

    async def _wait_for_node(self, pending: PendingChat) -> Assignment:
        """Until the request has a node; meanwhile its place is told."""
        told = ""
        if pending.waits_since is None:
            pending.waits_since = self._loop.time()
        self._decide()
        while not pending.bound.done():
            ahead = self.scheduler.ahead(pending.request.id) or 0
            pending.place = ahead if pending.place is None else min(pending.place, ahead)
            line = waiting_line(
                pending.asked,
                pending.place,
                self.scheduler.expected_wait(pending.request.id),
                loading=self._is_loading(pending.request.models),
            )
            if line != told and not pending.request.background:
                told = line
                await pending.say(line, done=False)
            await asyncio.wait([pending.bound], timeout=PLACE_SECONDS)
            await self.ready()  # somebody waits: nodes are looked at
            if self._may_wait_longer(pending.request):
                pending.waits_since = self._loop.time()
            self._refuse_hopeless(pending, self._loop.time() - pending.waits_since)
        return pending.bound.result()

    def _may_wait_longer(self, request: FleetRequest) -> bool:
        """Whether the limit does not count: a model is being loaded, or one user's answers hold the slots."""
        return self._is_loading(request.models) or self.scheduler.is_held_up(request.id)

    def _is_loading(self, models: Iterable[str]) -> bool:
        """Whether a node that has one of these models shows that it loads one."""
        loads = self.scheduler.loads(models)
        return any(self.nodes[node].is_loading(model, since) for node, model, since in loads)

    async def _may_send(self, pending: PendingChat, binding: Assignment) -> bool:
        """Whether no other worker was faster. If one was, the request waits on, as before."""
        if self._sharing is None or await self._sharing.claim(binding):
            return True
        undone = self._decided.pop(pending.request.id)
        with suppress(ValueError):  # so many were made meanwhile that it is not shown any more
            self.decisions.remove(undone)
        pending.bound = self._loop.create_future()
        return False

    def _refuse_hopeless(self, pending: PendingChat, waited: float) -> None:
        """Say so when nobody will answer, instead of waiting for ever."""
        if pending.bound.done():
            return
        if waited > self.settings.first_token_seconds:
            raise WaitedTooLongError(self.settings.first_token_seconds, self.scheduler.waiting)
        if waited > DOWN_SECONDS:
            models = pending.request.models
            if not any(watch.has_any(models) for watch in self.nodes.values()):  # it was deleted meanwhile
                raise self.no_node(models)
            faults = self._faults(pending)
            if faults:
                raise NodesDownError(models, faults)

    def _faults(self, pending: PendingChat) -> dict[str, str]:
        """What is wrong with each node that has the model; empty when one of them may answer."""
        models = pending.request.models
        if self.scheduler.cluster.can_answer(models):
            return {}
        return {
            name: watch.fault or self._failure(name, models)
            for name, watch in self.nodes.items()
            if watch.has_any(models)
        }

    def _failure(self, node: str, models: Sequence[str]) -> str:
        """Why a node that answers probes is given no request; empty where none has failed since."""
        names = {fold_name(name) for model in models for name in auto_parts(model)[0]}
        found = (why for (name, model), why in self._failures.items() if name == node and model in names)
        return next(found, "")

    async def _ask(self, pending: PendingChat, binding: Assignment) -> AsyncGenerator[dict[str, Any], None]:
        """Send the request to its node, and tell the scheduler how it goes."""
        identity = pending.request.id
        pending.waits_since = None
        pending.decision = self._decided.get(identity)
        self.counts.sent(binding)
        attempt = Attempt(pending, binding, self.nodes[binding.node], self._settings_for(binding.model))
        self._attempts.begin(identity, attempt)
        telling = None if pending.request.background else await self._tell_node(pending, attempt)
        if not pending.tried:
            attempt.suspect_after(honest_silence(binding), self._suspect, identity)
        pieces, failed = 0, False
        try:
            async with aclosing(attempt.chunks()) as chunks:
                async for chunk in chunks:
                    pieces += 1
                    if not pending.answering:
                        self._has_begun(pending, binding, attempt.elapsed)
                        if telling:
                            telling.cancel()
                        if not pending.request.background:
                            waited = self._loop.time() - pending.came
                            await pending.say(answered_line(pending.asked, binding, waited), done=True)
                    yield chunk
        except NodeError:
            failed = True
            raise
        finally:
            if telling:
                telling.cancel()
            if pending.served and not failed:
                pending.served(*attempt.service(pieces))
        spent = pending.spent = attempt.spent()
        self.counts.finished(binding, spent)
        self.scheduler.finished(identity, spent)

    def _settings_for(self, model: str) -> RouterSettings:
        """The settings of a chat: a model that is kept at this hour stays at least until its end."""
        left = self.upkeep.stays(model)
        return replace(self.settings, keep_alive=f"{left:.0f}s") if left > STAY_SECONDS else self.settings

    async def _tell_node(self, pending: PendingChat, attempt: Attempt) -> asyncio.Task[None] | None:
        """Show why this node. A load is shown until the answer begins, by a task that is returned."""
        binding = attempt.binding
        await pending.say(pending.reason(binding), done=False)
        if not binding.loads:
            return None
        await pending.say(loading_line(pending.asked, binding, 0.0), done=False)
        return self._loop.create_task(_tell_load(pending, attempt), name="tell of a load")

    def _suspect(self, identity: str, attempt: Attempt) -> None:
        """A node is silent for longer than it honestly can be: another one is asked, where there is one."""
        if not self._attempts.has(identity, attempt):
            return
        waits = attempt.is_loading or self._attempts.answers(attempt.binding)
        if waits or not self.scheduler.has_another(identity):
            attempt.suspect_after(ALIVE_SECONDS, self._suspect, identity)
        else:
            attempt.hangs()

    def _has_begun(self, pending: PendingChat, binding: Assignment, elapsed: float) -> None:
        pending.answering = True
        pending.began = self._loop.time()
        self.counts.began(binding, elapsed)
        self._blame(pending)
        self.scheduler.first_token(pending.request.id)
        self._failures.pop((binding.node, fold_name(binding.model)), None)
        if decision := self._decided.get(pending.request.id):
            decision.actual = elapsed
        self._decide()

    def _blame(self, pending: PendingChat) -> None:
        """An answer has begun: nodes that failed the same request with the same model were at fault."""
        decision = self._decided.get(pending.request.id)
        for failure in pending.unexplained:
            if decision and fold_name(failure.model) == fold_name(decision.model):
                self.scheduler.blame(pending.request.id, failure.node, failure.model, hung=failure.hung)
        pending.unexplained.clear()

    def _go_on(self, pending: PendingChat, binding: Assignment, error: RetryableNodeError) -> None:
        """After a failure: wait for another node where that is possible.

        Raises:
            AnswerBrokenError: the answer had begun.
            NoAnswerError: there is no other node.
            RequestFailsError: another node has failed in the same way.
        """
        node = binding.node
        router_log.warning("%s failed a request for %s: %s", node, binding.model, error)
        pending.tried[node] = error
        self.counts.failed(binding)
        self._failures[node, fold_name(binding.model)] = error.plain
        self._attempts.end(pending.request.id)
        unexplained, kind = is_unexplained(error), failure_kind(error)
        if isinstance(error, NodeBusyError):
            again = self._was_busy(pending, error)
        else:
            again = self.scheduler.failed(
                pending.request.id,
                node_down=error.is_down,
                hung=is_hang(error),
                blamed=not unexplained,
            )
        if isinstance(error, (ModelNotFoundError, NodeUnreachableError)):
            self.nodes[node].hurry.set()
        if pending.answering:
            raise AnswerBrokenError(node, error.plain) from error
        same = unexplained and any(failure.alike == kind for failure in pending.unexplained)
        if same and is_about_request(error):
            raise RequestFailsError(pending.tried) from error
        if not again:
            raise NoAnswerError(pending.tried) from error
        if unexplained:
            pending.unexplained.append(UnexplainedFailure(node, binding.model, is_hang(error), kind))
        self.counts.failed_over(binding)
        pending.bound = self._loop.create_future()

    def _was_busy(self, pending: PendingChat, error: NodeBusyError) -> bool:
        """Whether it waits now: for another node, or for the same one if that says that it is free soon."""
        now, pause = self._loop.time(), error.retry_after
        pending.busy_since = now if pending.busy_since is None else pending.busy_since
        soon = pause is not None and now + pause - pending.busy_since < DOWN_SECONDS
        return self.scheduler.was_busy(pending.request.id, pause=pause, waits=soon)


async def _tell_load(pending: PendingChat, attempt: Attempt) -> None:
    """Show now and then that a load goes on, for as long as it may take."""
    pause = LOAD_TOLD_SECONDS
    while True:
        await asyncio.sleep(pause)
        await pending.say(loading_line(pending.asked, attempt.binding, attempt.elapsed), done=False)
        pause = attempt.elapsed
