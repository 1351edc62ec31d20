"""The gateway: OpenAI's, Anthropic's and Ollama's APIs for every name of the alias tables.

A request goes through these steps: its body becomes an OpenAI chat body; its name leads to a model that this
user may use; then Open WebUI's own route answers, with every filter and tool (`full`), or the pack's chain
alone (`direct`); the answer takes the form that the client speaks.
"""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

from ollama_pack.aliases.facts import request_facts
from ollama_pack.base.messages import message
from ollama_pack.base.single_flight import SingleFlight
from ollama_pack.cache.replay import completion_chunks, completion_from
from ollama_pack.engines.body import object_at
from ollama_pack.engines.errors import ChatBodyError
from ollama_pack.engines.ollama.client_request import asks_nothing, fitted_settings
from ollama_pack.engines.ollama.to_openai import ReplyHead
from ollama_pack.engines.refusals import ApiForm, Refusal
from ollama_pack.services.answers import passed_refusal
from ollama_pack.services.client_forms import (
    ANTHROPIC,
    OLLAMA_CHAT,
    OLLAMA_GENERATE,
    OPENAI_CHAT,
    OPENAI_PROMPT,
    ClientForm,
    loaded_answer,
)
from ollama_pack.services.gateway_direct import DirectCall, DirectChain
from ollama_pack.services.gateway_limits import limit_headers
from ollama_pack.services.gateway_names import model_for, offered_names, shown, stored_tables, wildcards
from ollama_pack.services.gateway_vectors import (
    Embedded,
    TextsAsked,
    ollama_vector,
    ollama_vectors,
    openai_vectors,
    text_asked,
    texts_asked,
    vectors_for,
)
from ollama_pack.webui.calling import BAD_GATEWAY, ModelCall, refusal_in
from ollama_pack.webui.early_errors import note_answer, noted_refusal
from ollama_pack.webui.errors import ClientLeftError, ModelClosedError, ModelRefusedError
from ollama_pack.webui.gateway_request import (
    answer_headers,
    body_of,
    refused_by_server,
    refused_response,
    while_connected,
)
from ollama_pack.webui.ollama_models import created_at, own_ollama_models, tags_entry
from ollama_pack.webui.routes import RouteSpec, json_answer
from ollama_pack.webui.server import event_stream
from ollama_pack.webui.users import accepted_language

TABLE_SECONDS = 5.0  # that alias tables are kept, where no event says that they have changed
OLLAMA_API = "0.17.4"  # the version of Ollama whose API the gateway speaks
PREFIX = "/ollama-pack"
MODE_HEADER = "x-ollama-pack-mode"  # which way an answer went
CLIENT_LEFT = 499  # nginx's status for it; nobody reads it
NOT_FOUND = "Model not found"  # Open WebUI's words for a model that is not there or not granted
# Of Open WebUI's own page: a client of the gateway has no chat there, and names no model of a browser's own.
_PAGE_FIELDS = frozenset(
    {
        *(
            "assistant_message_id",
            "automation_id",
            "background_tasks",
            "chat_id",
            "chat_variables",
            "folder_id",
        ),
        *("id", "message_ids", "metadata", "model_item", "new_chat", "parent_id", "parent_message"),
        *("regeneration_message_id", "session_id", "tool_servers", "user_message"),
    }
)

Body = dict[str, Any]
Chunks = AsyncGenerator[Body, None]


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """One request on its way.

    Attributes:
        request: FastAPI's.
        user: Open WebUI's.
        form: what the client speaks.
        chat: OpenAI's chat body, with the name that was asked for.
        headers: of the answer.
    """

    request: Any
    user: Any
    form: ClientForm
    chat: Body
    headers: dict[str, str]

    @property
    def name(self) -> str:
        """The name that was asked for."""
        return str(self.chat["model"])


class Gateway:
    """The routes. One for each process."""

    def __init__(self, app: Any, mode: Callable[[], str]) -> None:
        """Ask nothing yet.

        Args:
            app: Open WebUI's.
            mode: gives `full` or `direct`, as an admin has it now.
        """
        self._mode = mode
        self._chain = DirectChain(app)
        self._tables = SingleFlight(stored_tables, TABLE_SECONDS, ahead=True)
        self.specs = (
            self._chat_route("/v1/chat/completions", OPENAI_CHAT),
            self._chat_route("/v1/completions", OPENAI_PROMPT),
            self._chat_route("/v1/messages", ANTHROPIC),
            _route("POST", "/v1/messages/count_tokens", "anthropic", self._count_tokens),
            self._chat_route("/api/chat", OLLAMA_CHAT),
            self._chat_route("/api/generate", OLLAMA_GENERATE),
            _route("GET", "/v1/models", "openai", self._models),
            _route("GET", "/v1/models/{model:path}", "openai", self._model),
            self._vectors_route("/v1/embeddings", "openai", texts_asked, openai_vectors),
            self._vectors_route("/api/embed", "ollama", texts_asked, ollama_vectors),
            self._vectors_route("/api/embeddings", "ollama", text_asked, ollama_vector),
            _route("POST", "/api/show", "ollama", self._show),
            _route("GET", "/api/tags", "ollama", self._tags),
            _route("GET", "/api/version", "ollama", self._version),
        )

    def forget(self) -> None:
        """Something has changed that answers depend on: nothing is remembered."""
        self._tables.forget()
        self._chain.forget()

    def _chat_route(self, path: str, form: ClientForm) -> RouteSpec:
        spec = _route("POST", path, form.api, partial(self._chat, form))
        return replace(spec, user_of=self._user_of, is_chat=True)

    def _user_of(self, request: Any) -> Any:
        return self._chain.user_of(request) if self._mode() == "direct" else None

    async def _chat(self, form: ClientForm, request: Any, user: Any) -> Any:
        self._chain.remember(request, user)

        async def answer() -> Any:
            body = await body_of(request)
            chat = _named(form.asked(body))
            headers = answer_headers(request, form.api)
            asked = ClientRequest(request, user, form, chat, headers)
            call = await self._call(asked)
            headers |= limit_headers(await self._chain.budgets_of(user), form.api, datetime.now(UTC))
            headers[MODE_HEADER] = "direct" if isinstance(call, DirectCall) else "full"
            if form.api == "ollama" and asks_nothing(body):
                return json_answer(loaded_answer(form, body), headers=headers)
            if chat["stream"]:
                texts = _written(asked, await _begun(request, call))
                return event_stream(texts, form.media_type, headers)
            async with while_connected(request):
                completion = await _whole(call, asked.name)
            note_answer(request.scope.get("state") or {}, completion)
            return json_answer(await form.whole(completion, asked.name), headers=headers)

        return await _answered(request, user, form.api, answer)

    async def _call(self, asked: ClientRequest) -> ModelCall | DirectCall:
        """What answers: the pack's chain alone where it can and shall, else Open WebUI's own route."""
        user = asked.user.model_dump()
        tables = await self._tables.get()
        body = {name: value for name, value in asked.chat.items() if name not in _PAGE_FIELDS}
        if self._mode() == "direct":
            direct = await self._chain.call(asked.request, user, body, tables.router)
            if direct is not None:
                return direct
        model = await model_for(asked.request, tables.in_use, body, user)
        owner = _owner(asked.request.app.state.MODELS[model])
        if owner is not None:
            body = fitted_settings(body, owner)
        return ModelCall(asked.request, {**body, "model": model}, user, is_new=True)

    async def _count_tokens(self, request: Any, user: Any) -> Any:
        """How long a prompt is, for Anthropic's clients: estimated, as for aliases."""

        async def answer() -> Any:
            chat = _named(ANTHROPIC.asked(await body_of(request)))
            await model_for(request, (await self._tables.get()).in_use, chat, user.model_dump())
            count = {"input_tokens": request_facts(chat, chat["model"]).tokens}
            return json_answer(count, headers=answer_headers(request, "anthropic"))

        return await _answered(request, user, "anthropic", answer)

    async def _models(self, request: Any, user: Any) -> Any:
        tables = await self._tables.get()
        entries = [_model_entry(offered) for offered in await offered_names(request, tables.in_use, user)]
        ids = [entry["id"] for entry in entries]
        ends = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None, "has_more": False}
        answer = {
            "object": "list",
            "data": entries,
            **ends,
            "ollama_pack": {"wildcards": await wildcards(request, tables.in_use, user)},
        }
        return json_answer(answer, headers=answer_headers(request, "openai"))

    def _vectors_route(
        self,
        path: str,
        api: ApiForm,
        read: Callable[[Body], TextsAsked],
        form: Callable[[TextsAsked, Embedded], Body],
    ) -> RouteSpec:
        return _route("POST", path, api, partial(self._vectors, api, read, form))

    async def _vectors(
        self,
        api: ApiForm,
        read: Callable[[Body], TextsAsked],
        form: Callable[[TextsAsked, Embedded], Body],
        request: Any,
        user: Any,
    ) -> Any:
        async def answer() -> Any:
            asked = read(await body_of(request))
            tables, router = await self._tables.get(), await self._chain.router()
            began, who = time.monotonic(), user.model_dump()
            async with self._chain.budgets.counting(request.app, who, {}, asked.name) as (served, _last):
                headers = answer_headers(request, api)
                headers |= limit_headers(await self._chain.budgets_of(user), api, datetime.now(UTC))
                try:
                    async with while_connected(request):
                        made = await vectors_for(request, user, asked, tables, router)
                except ClientLeftError:
                    if served:
                        served(time.monotonic() - began, 0)
                    raise
                if served:
                    served(made.seconds or time.monotonic() - began, made.tokens)
            return json_answer(form(asked, made), headers=headers)

        return await _answered(request, user, api, answer)

    async def _show(self, request: Any, user: Any) -> Any:
        async def answer() -> Any:
            body = await body_of(request)
            name = body.get("model") or body.get("name")
            if not isinstance(name, str) or not name:
                raise ChatBodyError("model", message("is missing: name one of GET /ollama-pack/api/tags"))
            tables, router = await self._tables.get(), await self._chain.router()
            told = await shown(request, user, name, tables, router)
            return json_answer(told, headers=answer_headers(request, "ollama"))

        return await _answered(request, user, "ollama", answer)

    async def _tags(self, request: Any, user: Any) -> Any:
        own = own_ollama_models(request)
        offered = await offered_names(request, (await self._tables.get()).in_use, user)
        models = [tags_entry(one.name, one.about, own) for one in offered]
        return json_answer({"models": models}, headers=answer_headers(request, "ollama"))

    async def _version(self, request: Any, _user: Any) -> Any:
        return json_answer({"version": OLLAMA_API}, headers=answer_headers(request, "ollama"))

    async def _model(self, request: Any, user: Any) -> Any:
        name = request.path_params["model"]
        names = await offered_names(request, (await self._tables.get()).in_use, user)
        found = next((offered for offered in names if offered.name == name), None)
        if found is None:
            return refused_response(request, "openai", _not_found(name))
        return json_answer(_model_entry(found), headers=answer_headers(request, "openai"))


def _route(method: str, path: str, api: ApiForm, answer: Callable[[Any, Any], Any]) -> RouteSpec:
    refused = partial(_refused_route, api)
    return RouteSpec(method, PREFIX + path, "user", answer, refused=refused)


async def _answered(request: Any, user: Any, api: ApiForm, answer: Callable[[], Awaitable[Any]]) -> Any:
    """The answer, or the error in the form that the client's API has for it."""
    try:
        return await answer()
    except ClientLeftError:
        return json_answer({}, CLIENT_LEFT)
    except Exception as error:  # noqa: BLE001 - the boundary to the client, which is promised its form
        return refused_response(request, api, _refusal(request, user, error))


def _named(chat: Body) -> Body:
    if not isinstance(chat.get("model"), str) or not chat["model"]:
        raise ChatBodyError("model", message("is missing: name one of GET /ollama-pack/v1/models"))
    return chat


def _refused_route(api: ApiForm, request: Any, error: Any) -> Any:
    return refused_by_server(request, api, error)


def _model_entry(offered: Any) -> Body:
    """A model as OpenAI's and Anthropic's clients read it: both look at the same list."""
    created = created_at(offered.about)
    entry: Body = {
        "id": offered.name,
        "object": "model",
        "created": created,
        "owned_by": str(offered.about.get("owned_by") or "open-webui"),
        "type": "model",
        "display_name": str(offered.about.get("name") or offered.name),
        "created_at": _iso(created),
    }
    if offered.stands_for:
        entry["ollama_pack"] = {"stands_for": list(offered.stands_for)}
    return entry


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _owner(model: Mapping[str, Any]) -> str | None:
    """What kind of Open WebUI's own connections a model is asked over; None: it is a function's."""
    if model.get("pipe") or model.get("arena"):
        return None
    return "ollama" if model.get("owned_by") == "ollama" else "openai"


async def _whole(call: ModelCall | DirectCall, name: str) -> Body:
    """The answer to a client that wants no stream: the row of its model may have Open WebUI send one."""
    if isinstance(call, DirectCall):
        return await call.completion()
    answer = await call.answer()
    if isinstance(answer, dict):
        return answer
    head = ReplyHead(f"chatcmpl-{uuid4().hex}", int(time.time()), name)
    made = await completion_from(_answer_alone(answer), head)
    return {name: value for name, value in made.items() if value is not None}  # a stream may tell no usage


async def _begun(request: Any, call: ModelCall | DirectCall) -> Chunks:
    """The chunks of an answer that has begun: an error before the first still has a status.

    Raises:
        ModelRefusedError: there is none.
    """
    chunks = _answer_alone(call.chunks())
    try:
        async with while_connected(request):
            first = await anext(chunks)
    except StopAsyncIteration:
        raise ModelRefusedError(Refusal(BAD_GATEWAY, message("The model said nothing. Try again."))) from None
    return _with_first(first, chunks)


async def _answer_alone(chunks: Chunks) -> Chunks:
    """The chunks of the answer, without what Open WebUI sends besides for its own page.

    Raises:
        ModelRefusedError: one of them is an error.
    """
    async with aclosing(chunks):
        async for chunk in chunks:
            if chunk.get("error"):
                raise ModelRefusedError(refusal_in(chunk, BAD_GATEWAY))
            if isinstance(choices := chunk.get("choices"), list):
                for part in completion_chunks(chunk) if _is_whole(choices) else (chunk,):
                    yield part


def _is_whole(choices: list[Any]) -> bool:
    """Whether it is a whole answer: the row of its model may say that it does not stream."""
    return any("message" in choice and "delta" not in choice for choice in map(object_at, choices))


async def _with_first(first: Body, chunks: Chunks) -> Chunks:
    async with aclosing(chunks):
        yield first
        async for chunk in chunks:
            yield chunk


async def _written(asked: ClientRequest, chunks: Chunks) -> AsyncGenerator[str, None]:
    """A stream as the client reads it. An error is its last word."""
    async with aclosing(chunks), aclosing(asked.form.streamed(chunks, asked.name)) as texts:
        try:
            async for text in texts:
                yield text
        except Exception as error:  # noqa: BLE001 - as in `_answered`
            refusal = _refusal(asked.request, asked.user, error)
            yield asked.form.broken(refusal.translated(accepted_language(asked.request)))


def _refusal(request: Any, user: Any, error: Exception) -> Refusal:
    """What a client gets for an error."""
    if noted := noted_refusal(request.scope.get("state") or {}):
        return noted
    if isinstance(error, ModelClosedError):
        return _not_found(error.model)
    refusal = passed_refusal(error, for_admin=user.role == "admin")
    return _not_found("") if refusal.message == NOT_FOUND else refusal


def _not_found(name: str) -> Refusal:
    named = message("The model {name!r}", name=name) if name else message("This model")
    sentence = message(
        "{named} does not exist, or you may not use it. GET /ollama-pack/v1/models lists yours.", named=named
    )
    return Refusal(404, sentence, "model_not_found", "model")
