"""What the running Open WebUI lends the cache to compare meanings. Imports `open_webui` when called."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ollama_pack.webui.calling import UNCOUNTED, ModelCall

_KEPT_STATE = ("token", "user", "auth_type")  # of a request: who asks
_BACKGROUND = "tags_generation"  # one of Open WebUI's own tasks that nobody waits for


async def embedder_of(request: Any) -> str:
    """The name of what makes vectors here; empty where nothing does."""
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


def judging(request: Any, user: Mapping[str, Any], model: str) -> Callable[[str], Awaitable[str]]:
    """Asks a model as nobody waits for it, with the rights of the user whose question it is about.

    It is no part of that user's chat, and counts on no budget.
    """

    async def judge(text: str) -> str:
        chat = request.scope.get("state", {}).get("metadata") or {}
        row = {"model": chat["model"]} if chat.get("model") else {}  # its settings: others would load it anew
        body = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
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
