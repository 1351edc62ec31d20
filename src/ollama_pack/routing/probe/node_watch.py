"""One node as the router holds it: its client, what the last looks have shown, and when it counts as gone."""

import asyncio
import math
import socket
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime
from urllib.parse import urlsplit

import aiohttp

from ollama_pack.base.messages import message
from ollama_pack.engines.errors import NodeError, NodeUnreachableError, RetryableNodeError
from ollama_pack.engines.model_kinds import chats
from ollama_pack.engines.ollama.client import NodeClient, OllamaClient
from ollama_pack.engines.ollama.names import level_of
from ollama_pack.engines.ollama.values import ListedModel, LoadedModel, ShownModel
from ollama_pack.engines.openai.client import OpenAIClient
from ollama_pack.engines.openai.metrics import EngineActivity
from ollama_pack.fit.memory import ModelShape
from ollama_pack.fit.shapes import level_bits
from ollama_pack.routing.decide.view import InstalledModel
from ollama_pack.routing.naming import auto_parts, fold_name
from ollama_pack.routing.nodes import NodeRow
from ollama_pack.routing.probe.catalogue import NodeModel
from ollama_pack.routing.probe.gpu_nvml import GpuReader
from ollama_pack.routing.probe.gpus import GpuReport, read_agent
from ollama_pack.routing.probe.listed_client import ListedClient
from ollama_pack.routing.state.node_state import ResidentModel

SHOWN_AT_ONCE = 8  # models that one node is asked about at the same time
SHOW_SECONDS = 1.0  # that a look waits for what a node tells of its models, which may be hundreds
LOOK_APART_SECONDS = 0.2  # two looks in less time show no movement
SAME_PACE = 0.3  # by how much two times that pass may differ and still be the same
# What a gateway answers that does not pass `/api/show` on: it will not next time, either.
_NOT_THERE = frozenset({401, 403, 404, 405, 501})
GRACE_SECONDS = 600.0  # a node that restarts does not make its models vanish from everybody's list
AGENT_SECONDS = 2.0
METRICS_SECONDS = 2.0
_NOT_SIGNED_IN = frozenset({401, 403, 407})
MISSES = 2  # looks in a row that run out of time before a node counts as gone: it may just be busy


def node_client(row: NodeRow, session: aiohttp.ClientSession) -> NodeClient:
    """The client for a node of its kind."""
    headers = row.way_in.fixed_headers
    client: NodeClient
    if row.kind == "openai":
        client = OpenAIClient(row.url, session, headers=headers, serves=row.models)
    else:
        client = OllamaClient(row.url, session, headers=headers)
    return ListedClient(client, row.listings) if row.listings else client


class NodeWatch:
    """Looks at one node and remembers. `look` is told to the scheduler by whoever asks for it.

    What `/api/show` tells of a model is asked once for each digest.
    """

    def __init__(self, row: NodeRow, client: NodeClient, clock: Callable[[], float]) -> None:
        """Take what is needed later; nothing is asked yet."""
        self.row = row
        self.client = client
        self.models: tuple[NodeModel, ...] = ()  # what it has, or had when it last answered
        self.others: tuple[NodeModel, ...] = ()  # models that do not chat, such as embedders
        self.residents: tuple[ResidentModel, ...] | None = ()  # what is in its memory; None: it does not tell
        self.answered_at: float | None = None  # the last time; None: never
        self.fault = ""  # what was wrong the last time; empty: nothing
        self.is_down = False  # it took no connection the last time
        self.gpus = GpuReport(reason=message("not looked at yet"))
        self.looked = asyncio.Event()  # at least once, with or without an answer
        self.hurry = asyncio.Event()  # look again now
        self.is_whole = False  # it has told of all its models once
        self.leaving = False  # it gets no new requests, and is gone once it has answered those that it has
        self.seen_at = -math.inf  # when what is known of its memory was asked for
        self._clock = clock
        self._missed = 0
        self._shown: dict[tuple[str, str], ShownModel] = {}
        self._shapes: dict[tuple[str, str], ModelShape] = {}
        self._asking: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._at_once = asyncio.Semaphore(SHOWN_AT_ONCE)
        self._seen_ahead: set[str] = set()
        self._expiries: dict[str, tuple[float, float, bool]] = {}  # name → seen at, unloaded at, loading

    async def look(self) -> bool:
        """Ask the node; whether it answers. Whether it `is_gone` is another question."""
        asked_at = self._clock()
        try:
            listed, loaded = await asyncio.gather(self.client.tags(), self.client.ps())
            is_whole = await self._show(listed)
        except NodeError as error:
            self._missed = MISSES if isinstance(error, NodeUnreachableError) else self._missed + 1
            self.fault, self.is_down = self._fault(error), error.is_down
            return False
        finally:
            self.looked.set()
        self._missed = 0
        self.is_whole = self.is_whole or is_whole
        if not self.is_whole:
            self.hurry.set()
        self._keep_models(listed)
        self.residents = None if loaded is None else self._residents(loaded)
        self.answered_at, self.fault, self.is_down = self._clock(), "", False
        self.seen_at = asked_at
        return True

    def is_loading(self, name: str, since: float) -> bool:
        """Whether a model that was asked for is not in the node's memory yet, as the last look has shown.

        A look from before `since`, when it was asked for, shows nothing.
        """
        model = next((model for model in self.models if model.name == name), None)
        loaded = self._loaded
        if model is None or model.installed.fixed or loaded is None or self.seen_at < since:
            return False
        return model.installed.blob not in loaded

    async def activity(self) -> EngineActivity | None:
        """What its engine does for all clients; None where it does not tell, or not in time."""
        if not isinstance(self.client, OpenAIClient):
            return None
        try:
            async with asyncio.timeout(METRICS_SECONDS):
                return await self.client.activity()
        except (NodeError, TimeoutError):
            return None

    async def look_at_gpus(self, here: GpuReader, session: aiohttp.ClientSession) -> None:
        """Ask the node's agent, or the driver of this machine where the node runs on it."""
        if self.row.agent:
            way = self.row.agent_way_in
            self.gpus = await read_agent(way.url, session, AGENT_SECONDS, way.fixed_headers)
        elif self.is_here:
            self.gpus = await here.read()
        else:
            self.gpus = GpuReport(reason=message("another machine: start gpu_agent.py there and add agent=…"))

    def _fault(self, error: NodeError) -> str:
        """What is wrong, and why it is where the connection signs in with a token that no look has."""
        if error.status not in _NOT_SIGNED_IN or not self.row.way_in.needs_user:
            return error.plain
        return message(
            "{plain} (its connection signs in by {auth}, with a token of the user who asks: let "
            "the gateway list models without one, or use bearer)",
            plain=error.plain,
            auth=self.row.auth,
        )

    @property
    def is_here(self) -> bool:
        """Whether the node runs on this machine."""
        return urlsplit(self.row.url).hostname in {"localhost", "127.0.0.1", "::1", socket.gethostname()}

    @property
    def gpu_source(self) -> str:
        """Who tells of the GPUs: nodes that have it in common have the GPUs in common."""
        return self.row.agent or ("" if self.is_here else self.row.name)

    @property
    def utilization(self) -> float | None:
        """Percent of its busiest GPU; None where nobody tells."""
        return max((gpu.utilization for gpu in self.gpus.gpus if gpu.utilization is not None), default=None)

    @property
    def _loaded(self) -> frozenset[str] | None:
        """Weights in its memory; None: it does not tell."""
        if self.residents is None:
            return None
        blobs = {fold_name(model.name): model.installed.blob for model in self.models}
        names = (fold_name(resident.model) for resident in self.residents if not resident.loading)
        return frozenset(blobs.get(name, name) for name in names)

    @property
    def is_gone(self) -> bool:
        """Nothing is to be expected from it: no connection, or no answer several times."""
        return self._missed >= MISSES or self.answered_at is None

    @property
    def is_listed(self) -> bool:
        """Whether its models are offered: it answers, or did a short while ago."""
        at = self.answered_at
        return not self.leaving and at is not None and self._clock() - at < GRACE_SECONDS

    def has_any(self, models: Iterable[str]) -> bool:
        """Whether it has one of these, by whatever name it lists it, or had when it last answered."""
        names = {fold_name(name) for model in models for name in auto_parts(model)[0]}
        return any(fold_name(model.name) in names for model in self.models)

    def holds(self, model: str) -> bool:
        """Whether a model is in its memory, by the name that the node lists."""
        everything = (*self.models, *self.others)
        blobs = {known.installed.blob for known in everything if known.name == model}
        return bool((self._loaded or frozenset()) & {*blobs, fold_name(model)})

    def names_of(self, model: str) -> frozenset[str]:
        """The names by which the node lists these weights, such as those that `ollama cp` has made."""
        blobs = {known.name: known.installed.blob for known in self.models}
        return frozenset(name for name, blob in blobs.items() if blob == blobs.get(model))

    def stop(self) -> None:
        """Ask it nothing more."""
        for task in self._asking.values():
            task.cancel()
        self._asking.clear()  # its models are asked about again when somebody looks again

    async def rest(self, seconds: float) -> None:
        """Wait until it is time for the next look, or somebody is in a hurry."""
        try:
            async with asyncio.timeout(seconds):
                await self.hurry.wait()
        except TimeoutError:
            pass
        self.hurry.clear()

    async def _show(self, listed: Iterable[ListedModel]) -> bool:
        """Ask about the models that are new. One that cannot be shown is known by its name alone.

        Returns:
            False: not all answers are there yet; the next look has them.
        """
        loop = asyncio.get_running_loop()
        for model in listed:
            key = _shown_key(model)
            if key not in self._shown and key not in self._asking:
                self._asking[key] = loop.create_task(self._ask_about(model))
        if self._asking:
            await asyncio.wait(self._asking.values(), timeout=SHOW_SECONDS)
        ended = [key for key, task in self._asking.items() if task.done()]
        for task in [self._asking.pop(key) for key in ended]:
            task.result()
        return not self._asking

    async def _ask_about(self, model: ListedModel) -> None:
        async with self._at_once:
            try:
                shown = await self.client.show(model.name)
                if shown.model_info:
                    self._shapes[_shown_key(model)] = shown.shape(model.size)
                self._shown[_shown_key(model)] = shown.model_copy(update={"tensors": ()})  # hundreds
            except RetryableNodeError as error:  # asked again at the next look, where that may help
                if error.status in _NOT_THERE:
                    self._shown[_shown_key(model)] = ShownModel()
            except NodeError:
                self._shown[_shown_key(model)] = ShownModel()

    def _keep_models(self, listed: Iterable[ListedModel]) -> None:
        self._shown = {key: self._shown[key] for key in map(_shown_key, listed) if key in self._shown}
        self._shapes = {key: shape for key, shape in self._shapes.items() if key in self._shown}
        shown = [(model, self._shown.get(_shown_key(model))) for model in listed]
        self.models = tuple(self._model(model, about) for model, about in shown if _can_chat(about))
        self.others = tuple(self._model(model, about) for model, about in shown if not _can_chat(about))

    def _residents(self, loaded: Collection[LoadedModel]) -> tuple[ResidentModel, ...]:
        names = {model.name for model in loaded}
        self._seen_ahead &= names
        self._expiries = {name: seen for name, seen in self._expiries.items() if name in names}
        now = datetime.now(UTC)
        return tuple(self._resident(model, now) for model in loaded)

    def _resident(self, loaded: LoadedModel, now: datetime) -> ResidentModel:
        """A model in memory. It is busy when the moment of its unloading has passed and it is still listed.

        Where that moment was never in the future, the node's clock is slow, and tells nothing.
        """
        expires = loaded.expires_at
        if expires is not None and expires >= now:
            self._seen_ahead.add(loaded.name)
        return ResidentModel(
            model=loaded.name,
            size=loaded.size,
            context=loaded.context_length,
            expires_at=expires.timestamp() if expires else 0.0,
            busy=expires is not None and expires < now and loaded.name in self._seen_ahead,
            loading=expires is not None and self._seems_loading(loaded.name, expires.timestamp()),
            vram=min(loaded.size_vram, loaded.size),
        )

    def _seems_loading(self, name: str, expires: float) -> bool:
        """Whether a listed model is not loaded yet: until then Ollama moves `expires_at` along with time.

        Afterwards that stands still, or moves when a request ends. One look shows nothing: it may be loading.
        """
        now = asyncio.get_running_loop().time()
        then, before, loading = self._expiries.get(name, (now, expires, True))
        passed = now - then
        if passed >= LOOK_APART_SECONDS:
            loading = abs(expires - before - passed) < SAME_PACE * passed
        if passed >= LOOK_APART_SECONDS or name not in self._expiries:
            self._expiries[name] = now, expires, loading
        return loading

    def _model(self, listed: ListedModel, shown: ShownModel | None) -> NodeModel:
        blob = (shown.blob if shown else "") or listed.digest or listed.name
        told = shown is not None and bool(shown.capabilities)
        context = (shown.num_ctx if shown else None) or 0
        options = shown.runner_options if shown else ()
        fixed = self.row.kind != "ollama"
        return NodeModel(
            name=listed.name,
            installed=InstalledModel(
                blob,
                0 if listed.is_remote else listed.size,
                context=context,
                options=options,
                fixed=fixed or listed.is_remote,
                remote=listed.is_remote,
                shape=None if listed.is_remote or fixed else self._shapes.get(_shown_key(listed)),
                bits=level_bits(level_of(listed.details.quantization_level, listed.name)),
            ),
            digest=listed.digest,
            quantization=listed.details.quantization_level,
            capabilities=frozenset(shown.capabilities) if shown and told else None,
            thinking=shown.thinking if shown and told else None,
        )


def _shown_key(model: ListedModel) -> tuple[str, str]:
    return model.name, model.digest


def _can_chat(shown: ShownModel | None) -> bool:
    """Whether a model is offered for chats. An Ollama too old for `capabilities` shows by the weights."""
    if shown is None:
        return True
    return chats(shown.capabilities) if shown.capabilities else not shown.is_embedder
