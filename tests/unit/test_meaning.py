"""What the judge of similar answers is asked with."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.requests import Request

from ollama_pack.cache.judge import Answered, judge_task
from ollama_pack.webui import meaning
from ollama_pack.webui.calling import UNCOUNTED, ModelCall
from ollama_pack.webui.meaning import NodeEmbeddings, judging


def test_the_judge_is_asked_apart_from_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a judge's call that counts on the user's budget, or changes the chat's own state."""
    row = {"id": "m", "info": {"params": {"num_ctx": 9}}}
    chat = {"chat_id": "c", "ollama_pack_budget": {"ticket": "t"}, "model": row}
    state = {"token": "k", "metadata": chat, "bypass_system_prompt": False}
    request = Request({"type": "http", "headers": [], "state": state})
    asked: list[ModelCall] = []
    task = judge_task(Answered("a", "b"), Answered("c", "d"))

    async def completion(call: ModelCall) -> Mapping[str, Any]:
        asked.append(call)
        call.request.state.bypass_system_prompt = True
        return {"choices": [{"message": {"content": "yes"}}]}

    monkeypatch.setattr(ModelCall, "completion", completion)

    async def judge() -> str:
        return await judging(request, {"id": "u", "valves": None}, "m")(task)

    assert asyncio.run(judge()) == "yes"
    assert asked[0].body["response_format"]["json_schema"]["schema"]["required"] == ["verdict"]
    metadata = asked[0].body["metadata"]
    assert metadata == {"task": "tags_generation", "user_id": "u", UNCOUNTED: True, "model": row}
    assert asked[0].request.state.token == "k"
    assert not hasattr(asked[0].request.state, "metadata")
    assert request.state.bypass_system_prompt is False


def test_vectors_are_of_the_model_that_they_were_promised_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a vector of an alias's new model among those of the one that it led to before."""
    answers = "one"

    async def made(_name: str, _text: str, *_more: Any) -> tuple[str, list[float]]:
        return answers, [1.0]

    monkeypatch.setattr(meaning, "_embedded", made)

    async def test() -> None:
        nonlocal answers
        embeddings, user = NodeEmbeddings(), {"id": "u"}
        assert embeddings.embedder("alias", None, user) == ""
        assert embeddings._trying  # noqa: SLF001 - nobody waits for it
        await embeddings._trying  # noqa: SLF001 - see above
        assert embeddings.embedder("alias", None, user) == "alias/one"
        early = embeddings.embedding("alias", None, user)
        assert await early("a question") == [1.0]
        answers = "two"
        embeddings._models["alias"] = "two"  # noqa: SLF001 - another request has found out
        with pytest.raises(LookupError):
            await early("a question")
        assert embeddings.embedder("alias", None, user) == "alias/two"

    asyncio.run(test())
