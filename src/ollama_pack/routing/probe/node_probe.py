"""Looking at one node: what it has, and what is in its memory."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from ollama_pack.engines.errors import NodeError, RetryableNodeError
from ollama_pack.engines.model_kinds import chats
from ollama_pack.engines.ollama.client import NodeClient
from ollama_pack.engines.ollama.names import quantization_in
from ollama_pack.engines.ollama.values import ListedModel, LoadedModel, ShownModel
from ollama_pack.fit.memory import ModelShape
from ollama_pack.fit.shapes import level_bits, shape_of
from ollama_pack.routing.decide.view import InstalledModel
from ollama_pack.routing.probe.catalogue import NodeModel
from ollama_pack.routing.state.node_state import ResidentModel

SHOWN_AT_ONCE = 8  # models that one node is asked about at the same time
SHOW_SECONDS = 1.0  # that a look waits for what a node tells of its models, which may be hundreds
LOOK_APART_SECONDS = 0.2  # two looks in less time show no movement
MOST_PARAMETERS = 10**11  # of a vision encoder
SAME_PACE = 0.3  # by how much two times that pass may differ and still be the same
# What a gateway answers that does not pass `/api/show` on: it will not next time, either.
_NOT_THERE = frozenset({401, 403, 404, 405, 501})


@dataclass(frozen=True, slots=True)
class NodeLook:
    """What a node has told.

    Attributes:
        models: what it can chat with.
        residents: what is in its memory; None: it does not tell.
        others: models that do not chat, such as embedders.
        is_whole: no model is known by its name alone because the node has not told more of it yet.
    """

    models: tuple[NodeModel, ...]
    residents: tuple[ResidentModel, ...] | None
    others: tuple[NodeModel, ...] = ()
    is_whole: bool = True

    @property
    def installed(self) -> dict[str, InstalledModel]:
        """By name, as the scheduler takes it."""
        return {model.name: model.installed for model in self.models}


class NodeProbe:
    """Looks at one node. What `/api/show` tells of a model is asked once for each digest."""

    def __init__(self, client: NodeClient, *, fixed: bool = False) -> None:
        self._client = client
        self._fixed = fixed
        self._shown: dict[tuple[str, str], ShownModel] = {}
        self._asking: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._at_once = asyncio.Semaphore(SHOWN_AT_ONCE)
        self._shapes: dict[tuple[str, str], ModelShape] = {}
        self._seen_ahead: set[str] = set()
        self._expiries: dict[str, tuple[float, float, bool]] = {}  # name → seen at, unloaded at, loading

    async def look(self) -> NodeLook:
        """Ask the node.

        Raises:
            NodeError: it does not answer as it should.
        """
        listed, loaded = await asyncio.gather(self._client.tags(), self._client.ps())
        is_whole = await self._show(listed)
        self._shown = {key: self._shown[key] for key in map(_shown_key, listed) if key in self._shown}
        self._shapes = {key: shape for key, shape in self._shapes.items() if key in self._shown}
        shown = [(model, self._shown.get(_shown_key(model))) for model in listed]
        models = tuple(self._model(model, about) for model, about in shown if _can_chat(about))
        others = tuple(self._model(model, about) for model, about in shown if not _can_chat(about))
        if loaded is None:
            return NodeLook(models, None, others, is_whole)
        self._seen_ahead &= {model.name for model in loaded}
        self._expiries = {
            model.name: self._expiries[model.name] for model in loaded if model.name in self._expiries
        }
        residents = tuple(self._resident(model, datetime.now(UTC)) for model in loaded)
        return NodeLook(models, residents, others, is_whole)

    def stop(self) -> None:
        """Ask about no more models."""
        for task in self._asking.values():
            task.cancel()
        self._asking.clear()  # they are asked about again when somebody looks again

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
            loading=expires is not None and self._is_loading(loaded.name, expires.timestamp()),
            vram=min(loaded.size_vram, loaded.size),
        )

    def _is_loading(self, name: str, expires: float) -> bool:
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
                shown = await self._client.show(model.name)
                if shown.model_info:
                    shape = shape_of(shown.model_info, shown.tensors, model.size)
                    self._shapes[_shown_key(model)] = replace(shape, projector=_projector(shape, shown))
                self._shown[_shown_key(model)] = shown.model_copy(update={"tensors": ()})  # hundreds
            except RetryableNodeError as error:  # asked again at the next look, where that may help
                if error.status in _NOT_THERE:
                    self._shown[_shown_key(model)] = ShownModel()
            except NodeError:
                self._shown[_shown_key(model)] = ShownModel()

    def _model(self, listed: ListedModel, shown: ShownModel | None) -> NodeModel:
        blob = (shown.blob if shown else "") or listed.digest or listed.name
        told = shown is not None and bool(shown.capabilities)
        context = (shown.num_ctx if shown else None) or 0
        options = shown.runner_options if shown else ()
        return NodeModel(
            name=listed.name,
            installed=InstalledModel(
                blob,
                0 if listed.is_remote else listed.size,
                context=context,
                options=options,
                fixed=self._fixed or listed.is_remote,
                remote=listed.is_remote,
                shape=None if listed.is_remote or self._fixed else self._shapes.get(_shown_key(listed)),
                bits=level_bits(listed.details.quantization_level or quantization_in(listed.name)),
            ),
            digest=listed.digest,
            quantization=listed.details.quantization_level,
            capabilities=frozenset(shown.capabilities) if shown and told else None,
            thinking=shown.thinking if shown and told else None,
        )


def _shown_key(model: ListedModel) -> tuple[str, str]:
    return model.name, model.digest


def _projector(shape: ModelShape, shown: ShownModel) -> int:
    """Bytes of a vision encoder, which may be in a file of its own: those have 16 bits a weight."""
    parameters = shown.projector_info.get("general.parameter_count")
    apart = 2 * parameters if isinstance(parameters, int) and 0 < parameters < MOST_PARAMETERS else 0
    return shape.projector + apart


def _can_chat(shown: ShownModel | None) -> bool:
    """Whether a model is offered for chats. An Ollama too old for `capabilities` shows by the weights."""
    if shown is None:
        return True
    return chats(shown.capabilities) if shown.capabilities else not shown.is_embedder
