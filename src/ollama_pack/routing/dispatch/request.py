"""What the scheduler needs to know of an OpenAI chat body."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from ollama_pack.engines.body import objects_in
from ollama_pack.engines.ollama.options import RUNNER_OPTIONS, flat_settings, ollama_options
from ollama_pack.engines.openai.request import CACHE_KEY
from ollama_pack.routing.decide.prefix import prompt_blocks
from ollama_pack.routing.decide.view import FleetRequest
from ollama_pack.routing.naming import auto_name, auto_parts, is_auto


def fleet_request(  # noqa: PLR0913 - each is a fact of its own
    body: Mapping[str, Any],
    models: Sequence[str],
    *,
    request_id: str,
    user: str,
    chat: str = "",
    background: bool = False,
    last: bool = False,
    key: bytes = b"",
) -> FleetRequest:
    """Read an OpenAI chat body.

    Args:
        body: whether or not Ollama's own fields are mixed in.
        models: names of the models that may answer, the preferred one first.
        request_id: unique among the requests that wait or run.
        user: whom fairness counts it for.
        chat: the conversation; empty: none.
        background: nobody looks at the answer as it is written.
        last: it comes behind all others.
        key: of the hashes that other workers see instead of the user, the conversation and the prompt.

    Raises:
        ChatBodyError: something in the body cannot be put into Ollama's form.
    """
    options = ollama_options(body)
    context = max(0, options.get("num_ctx", 0))
    return FleetRequest(
        id=request_id,
        user=_hashed(user, key),
        chat=_hashed(f"{user}\0{chat}") if chat else "",
        models=tuple(
            auto_name(auto_parts(model)[0], context) if is_auto(model) else model for model in models
        ),
        blocks=prompt_blocks(
            objects_in(body.get("messages"), "messages"), objects_in(body.get("tools"), "tools"), key=key
        ),
        max_output=max(0, options.get("num_predict", 0)),
        context=context,
        options=tuple((name, options[name]) for name in RUNNER_OPTIONS if name in options),
        background=background,
        last=last,
    )


def load_options(request: FleetRequest) -> dict[str, Any]:
    """The options of a load for requests like this one, so that none of them makes the node load again."""
    context = {"num_ctx": request.context} if request.context else {}
    return {**dict(request.options), **context}


def with_model(body: Mapping[str, Any], model: str, keep_alive: str) -> dict[str, Any]:
    """The body for one node. Its options are those of this chat, whatever the node has in memory for others.

    Args:
        body: as it came.
        model: the node's name of the model.
        keep_alive: how long the model stays in memory where the body does not say; empty: as the node has it.
    """
    made = {**body, "model": model}
    if keep_alive and flat_settings(body).get("keep_alive") is None:
        made["keep_alive"] = keep_alive
    return made


def with_conversation(body: Mapping[str, Any], request: FleetRequest) -> dict[str, Any]:
    """The body for a gateway that places requests itself, with OpenAI's `prompt_cache_key`.

    The key is the same for all turns of a conversation. It is a hash of ids, so it names neither the user nor
    the conversation. A body that has a key keeps its own; a request without a conversation gets none.
    """
    if not request.chat or body.get(CACHE_KEY):
        return dict(body)
    return {**body, CACHE_KEY: request.chat}


def _hashed(name: str, key: bytes = b"") -> str:
    return blake2b(name.encode(errors="replace"), digest_size=16, key=key).hexdigest()
