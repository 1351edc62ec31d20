"""One node as the router holds it: its client, and what the last looks at it have shown."""

import asyncio
import math
import socket
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

import aiohttp

from ollama_pack.base.messages import message
from ollama_pack.engines.errors import NodeError, NodeUnreachableError
from ollama_pack.engines.ollama.client import NodeClient, OllamaClient
from ollama_pack.engines.openai.client import OpenAIClient
from ollama_pack.engines.openai.metrics import EngineActivity
from ollama_pack.routing.naming import auto_parts, fold_name
from ollama_pack.routing.nodes import NodeRow
from ollama_pack.routing.probe.catalogue import NodeModel
from ollama_pack.routing.probe.gpu_nvml import GpuReader
from ollama_pack.routing.probe.gpus import GpuReport, read_agent
from ollama_pack.routing.probe.listed_client import ListedClient
from ollama_pack.routing.probe.node_probe import NodeLook, NodeProbe

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
    """Looks at one node and remembers. `look` is told to the scheduler by whoever asks for it."""

    def __init__(self, row: NodeRow, client: NodeClient, clock: Callable[[], float]) -> None:
        """Take what is needed later; nothing is asked yet."""
        self.row = row
        self.client = client
        self.models: tuple[NodeModel, ...] = ()  # what it has, or had when it last answered
        self.others: tuple[NodeModel, ...] = ()  # models that do not chat, such as embedders
        self.answered_at: float | None = None  # the last time; None: never
        self.fault = ""  # what was wrong the last time; empty: nothing
        self.gpus = GpuReport(reason=message("not looked at yet"))
        self.looked = asyncio.Event()  # at least once, with or without an answer
        self.hurry = asyncio.Event()  # look again now
        self.is_whole = False  # it has told of all its models once
        self.leaving = False  # it gets no new requests, and is gone once it has answered those that it has
        self.seen_at = -math.inf  # when what is known of its memory was asked for
        self._probe = NodeProbe(client, fixed=row.kind != "ollama")
        self._loaded: frozenset[str] | None = frozenset()  # weights in its memory; None: it does not say
        self._clock = clock
        self._missed = 0

    async def look(self) -> NodeLook | None:
        """Ask the node; None when it does not answer. Whether it `is_gone` is another question."""
        asked_at = self._clock()
        try:
            look = await self._probe.look()
        except NodeError as error:
            self._missed = MISSES if isinstance(error, NodeUnreachableError) else self._missed + 1
            self.fault = self._fault(error)
            return None
        finally:
            self.looked.set()
        self._missed = 0
        self.is_whole = self.is_whole or look.is_whole
        if not self.is_whole:
            self.hurry.set()
        self.models, self.others = look.models, look.others
        self.answered_at, self.fault = self._clock(), ""
        self.seen_at = asked_at
        blobs = {fold_name(model.name): model.installed.blob for model in look.models}
        residents = look.residents
        self._loaded = None
        if residents is not None:
            names = (fold_name(resident.model) for resident in residents if not resident.loading)
            self._loaded = frozenset(blobs.get(name, name) for name in names)
        return look

    def is_loading(self, name: str, since: float) -> bool:
        """Whether a model that was asked for is not in the node's memory yet, as the last look has shown.

        A look from before `since`, when it was asked for, shows nothing.
        """
        model = next((model for model in self.models if model.name == name), None)
        if model is None or model.installed.fixed or self._loaded is None or self.seen_at < since:
            return False
        return model.installed.blob not in self._loaded

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
            self.gpus = await read_agent(self.row.agent, session, AGENT_SECONDS, self._agent_headers)
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
    def _agent_headers(self) -> dict[str, str]:
        """The node's own, where its agent is behind the same gateway and has no login of its own."""
        node, agent = urlsplit(self.row.url), urlsplit(self.row.agent)
        same = (node.scheme, node.netloc) == (agent.scheme, agent.netloc)
        return self.row.way_in.fixed_headers if same else {}

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
        return bool(self._loaded and self._loaded & {*blobs, fold_name(model)})

    def names_of(self, model: str) -> frozenset[str]:
        """The names by which the node lists these weights, such as those that `ollama cp` has made."""
        blobs = {known.name: known.installed.blob for known in self.models}
        return frozenset(name for name, blob in blobs.items() if blob == blobs.get(model))

    def stop(self) -> None:
        """Ask it nothing more."""
        self._probe.stop()

    async def rest(self, seconds: float) -> None:
        """Wait until it is time for the next look, or somebody is in a hurry."""
        try:
            async with asyncio.timeout(seconds):
                await self.hurry.wait()
        except TimeoutError:
            pass
        self.hurry.clear()
