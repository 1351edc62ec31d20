"""What the running Open WebUI lends the cache to compare meanings. Imports `open_webui` when called."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ollama_pack.engines.model_ids import ROUTER
from ollama_pack.webui.calling import UNCOUNTED, ModelCall
from ollama_pack.webui.contact import ROUTER_ID
from ollama_pack.webui.embedding import embedded
from ollama_pack.webui.functions import function_state, live_function

log = logging.getLogger(__name__)

_LOAD_SECONDS = 120.0  # that the model may take to make its first vector
_RETRY_SECONDS = 30.0  # between two tries to find out which model makes the vectors

_KEPT_STATE = ("token", "user", "auth_type")  # of a request: who asks
_BACKGROUND = "tags_generation"  # one of Open WebUI's own tasks that nobody waits for


async def embedder_of(request: Any) -> str:
    """The name of what makes vectors in Open WebUI; empty where nothing does."""
    from open_webui.models.config import Config  # noqa: PLC0415 - see the top of this module

    if getattr(request.app.state, "EMBEDDING_FUNCTION", None) is None:
        return ""
    found = await Config.get_many("rag.embedding_engine", "rag.embedding_model")
    return f"{found.get('rag.embedding_engine')}/{found.get('rag.embedding_model')}"


def embedding(request: Any, user: Mapping[str, Any]) -> Callable[[str], Awaitable[Sequence[float]]]:
    """Makes vectors as Open WebUI does for its own knowledge."""

    async def embed(text: str) -> Sequence[float]:
        from open_webui.models.users import UserModel  # noqa: PLC0415 - see the top of this module

        asking = UserModel.model_validate({name: value for name, value in user.items() if name != "valves"})
        vector: Sequence[float] = await request.app.state.EMBEDDING_FUNCTION(text, user=asking)
        return vector

    return embed


class NodeEmbeddings:
    """Vectors of a model that an admin has named: the router's, or of one of Open WebUI's connections.

    An alias may lead to another model tomorrow, whose vectors cannot be compared with today's. So the model
    that answered is part of the name, and a vector of another one is none.
    """

    def __init__(self) -> None:
        self._models: dict[str, str] = {}
        self._next_try = 0.0
        self._trying: asyncio.Task[None] | None = None

    def embedder(self, name: str, request: Any, user: Mapping[str, Any]) -> str:
        """The name of what makes the vectors; empty until it is known which model that is.

        No chat waits for it: the model may have to be loaded first, or may not be there.
        """
        if name in self._models:
            return f"{name}/{self._models[name]}"
        now = time.monotonic()
        if now >= self._next_try:
            self._next_try = now + _RETRY_SECONDS
            self._trying = asyncio.get_running_loop().create_task(self._find_out(name, request, user))
        return ""

    async def _find_out(self, name: str, request: Any, user: Mapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(_LOAD_SECONDS):
                self._models[name] = (await _embedded(name, "a", request, user))[0]
        except Exception as error:  # noqa: BLE001 - the cache goes on without
            log.warning("similar_embedder: no vectors of %r: %s", name, error)

    def embedding(
        self, name: str, request: Any, user: Mapping[str, Any]
    ) -> Callable[[str], Awaitable[Sequence[float]]]:
        """Makes vectors, as long as the model answers that answers for the name now."""
        known = self._models.get(name)

        async def embed(text: str) -> Sequence[float]:
            model, vector = await _embedded(name, text, request, user)
            if model != known:  # it may be long ago, and others may have found out the new one
                if self._models.get(name) == known:
                    self._models.pop(name, None)
                raise LookupError(f"{name} is {model} now")
            return vector

        return embed


async def _embedded(
    name: str, text: str, request: Any, user: Mapping[str, Any]
) -> tuple[str, Sequence[float]]:
    """The model that answers for a name, and its vector of a text."""
    from open_webui.models.users import UserModel  # noqa: PLC0415 - see the top of this module

    who = {field: value for field, value in user.items() if field != "valves"}
    state = await function_state(ROUTER_ID)
    if state.active:
        router = await live_function(request.app, ROUTER_ID, state)
        made = await router.embed({"model": name.removeprefix(ROUTER), "input": [text]}, who)
        return str(made["model"]), list(made["vectors"][0])
    vectors, _ = await embedded(_apart(request), name, [text], 0, UserModel.model_validate(who))
    return name, vectors[0]


async def somebody_chats(request: Any) -> bool:
    """Whether a chat of a browser is being answered, in any worker of this Open WebUI."""
    from open_webui.tasks import list_tasks  # noqa: PLC0415 - see the top of this module

    return bool(await list_tasks(getattr(request.app.state, "redis", None)))


def judging(
    request: Any, user: Mapping[str, Any], model: str
) -> Callable[[tuple[list[dict[str, str]], dict[str, Any]]], Awaitable[str]]:
    """Asks a model as nobody waits for it, with the rights of the user whose question it is about.

    It is given messages and the form of the answer. It is no part of the chat, and counts on no budget.
    """

    async def judge(task: tuple[list[dict[str, str]], dict[str, Any]]) -> str:
        messages, response_format = task
        chat = request.scope.get("state", {}).get("metadata") or {}
        row = {"model": chat["model"]} if chat.get("model") else {}  # its settings: others would load it anew
        body = {
            "model": model,
            "messages": messages,
            "response_format": response_format,
            "stream": False,
            "temperature": 0,
            "metadata": {"task": _BACKGROUND, "user_id": user.get("id"), UNCOUNTED: True, **row},
        }
        asking = {name: value for name, value in user.items() if name != "valves"}
        answer = await ModelCall(_apart(request), body, asking, has_system=True).completion()
        said = answer["choices"][0]["message"].get("content")
        return said if isinstance(said, str) else ""

    return judge


def _apart(request: Any) -> Any:
    """The request without what Open WebUI has noted of its chat, and would add to any call made with it."""
    state = {name: value for name, value in request.scope.get("state", {}).items() if name in _KEPT_STATE}
    return type(request)({**request.scope, "state": state}, request.receive)
