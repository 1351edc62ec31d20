"""A simulated node that speaks OpenAI's protocol instead of Ollama's, as vLLM does in front of its engine.

The same runner, slots, prefixes and rates as a simulated Ollama; only the words differ. Everything is in
memory from the start, and nothing is ever unloaded.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web

from harness.ollama_generation import Generation, json_response
from harness.ollama_state import NodeState
from harness.ollama_wire import JSON, RefusalError, dumps
from harness.sim_runner import Turn

CHAT = "/v1/chat/completions"
_HEAD = {"id": "chatcmpl-simulated", "created": 1}


class OpenAIGeneration(Generation):
    """A chat in OpenAI's form, over the body that Ollama would get."""

    content_type = "text/event-stream"

    def _verb_of(self, path: str) -> str:  # noqa: ARG002 - the base class asks by path
        return "chat"

    def _lines(self, pieces: list[JSON]) -> bytes:
        return b"".join(_event(self._chunk({"content": piece["content"]})) for piece in pieces)

    def _ending(self, turn: Turn, last: JSON) -> bytes:
        reason = last.get("done_reason", "stop")
        figures = {**self._chunk({}), "choices": [], "usage": _usage(turn, last)}
        return _event(self._chunk({}, reason)) + _event(figures) + b"data: [DONE]\n\n"

    def _whole_answer(self, turn: Turn, last: JSON, merged: JSON) -> JSON:
        choice = {
            "index": 0,
            "message": {"role": "assistant", **merged},
            "finish_reason": last.get("done_reason", "stop"),
        }
        head = {"object": "chat.completion", "model": self._body["model"], **_HEAD}
        return {**head, "choices": [choice], "usage": _usage(turn, last)}

    def _chunk(self, delta: JSON, reason: str | None = None) -> JSON:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return {"object": "chat.completion.chunk", "model": self._body["model"], **_HEAD, "choices": [choice]}


def _event(value: JSON) -> bytes:
    return f"data: {dumps(value)}\n\n".encode()


def _usage(turn: Turn, last: JSON) -> JSON:
    prompt, output = turn.prompt_tokens, last.get("eval_count", 0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": turn.hit_tokens},
    }


def ollama_body(body: JSON) -> JSON:
    """The body that Ollama would get for an OpenAI chat body.

    Raises:
        RefusalError: 400, there are no messages.
    """
    if not isinstance(body.get("messages"), list):
        raise RefusalError(400, "messages is required")
    options = {"num_predict": body["max_tokens"]} if body.get("max_tokens") else {}
    return {
        "model": body.get("model"),
        "messages": body["messages"],
        "stream": bool(body.get("stream")),
        "options": options,
    }


def openai_refusal(error: RefusalError) -> web.Response:
    """A refusal as OpenAI's clients expect it."""
    kind = "NotFoundError" if error.status == HTTPStatus.NOT_FOUND else "BadRequestError"
    told = {"message": error.message, "type": kind, "param": None, "code": error.status}
    return json_response({"error": told}, error.status)


def openai_routes(
    state: NodeState, chat: Callable[[web.Request], Any], *, metrics: bool
) -> list[web.RouteDef]:
    """The routes of such an engine.

    Args:
        state: of the node.
        chat: answers a chat.
        metrics: whether `/metrics` is there, with vLLM's names.
    """

    async def models(_request: web.Request) -> web.Response:
        data = [
            {"id": model.short_name.removesuffix(":latest"), "object": "model", "owned_by": "vllm"}
            for model in state.models.values()
        ]
        return json_response({"object": "list", "data": data})

    async def figures(_request: web.Request) -> web.Response:
        runners = list(state.scheduler.loaded.values())
        running = sum(runner.working for runner in runners)
        waiting = sum(runner.users for runner in runners) - running
        return web.Response(
            text=f'vllm:num_requests_running{{engine="0"}} {running}.0\n'
            f'vllm:num_requests_waiting{{engine="0"}} {waiting}.0\n'
        )

    async def health(_request: web.Request) -> web.Response:
        return web.Response(text="")

    told = [web.get("/metrics", figures)] if metrics else []
    return [web.post(CHAT, chat), web.get("/v1/models", models), web.get("/health", health), *told]
