"""Who wants no stream and leads: others read along, and his own answer is what it is without the cache."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from harness.chat_bodies import TOOL
from harness.events_target import eventually
from harness.fixtures_cache import DIRECT, CachedWebUI
from harness.ollama_node import Answer, ToolCall
from ollama_pack.engines.model_ids import ROUTER

Json = dict[str, Any]

ROUTED = f"{ROUTER}{DIRECT}"
WORDS = [f"word{number} " for number in range(100)]


def post(cached: CachedWebUI, model: str, text: str, *, through_cache: bool = True, **more: Any) -> Json:
    """A whole answer, and its status."""
    headers = {"Authorization": f"Bearer {cached.admin.key}"}
    answer = requests.post(
        f"{cached.webui.url}/api/chat/completions",
        json={"model": model, "messages": [{"role": "user", "content": text}], "stream": False, **more},
        headers=headers if through_cache else {**headers, "Cache-Control": "no-store"},
        timeout=60,
    )
    return {"status": answer.status_code, **answer.json()}


def comparable(answer: Any) -> Any:
    """An answer without what is another each time: ids, times, and why a node was chosen."""
    if isinstance(answer, dict):
        kept = {name: comparable(value) for name, value in answer.items() if name not in ("id", "created")}
        measured = [name for name in kept if "duration" in name or "/s" in name or "approximate" in name]
        return kept | dict.fromkeys([*measured, *({"reason"} & kept.keys())], "measured")
    return [comparable(item) for item in answer] if isinstance(answer, list) else answer


def test_a_follower_reads_along_with_a_leader_that_wants_no_stream(cached: CachedWebUI) -> None:
    """Would catch a follower who sees nothing until the answer of somebody else's script is complete."""
    cached.node.enqueue(Answer(WORDS, pause=0.05))
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(post, cached, "gpt-4", "tell")
        eventually(lambda: len(cached.generations()) == 1)
        follower = cached.stream(
            cached.admin, {"model": "gpt-4", "messages": [{"role": "user", "content": "tell"}]}
        )
        said = ""
        while "word0" not in said:
            chunk = next(follower)
            said += chunk["choices"][0]["delta"].get("content") or ""
        assert WORDS[-1] not in said
        for chunk in follower:
            said += chunk["choices"][0]["delta"].get("content") or ""
        whole = leader.result()["choices"][0]["message"]["content"]
    assert said == whole == "".join(WORDS)
    assert chunk["ollama_pack"]["cache"] == "follow"
    assert len(cached.generations()) == 1


@pytest.mark.parametrize("model", [ROUTED, DIRECT], ids=["router", "connection"])
@pytest.mark.parametrize(
    ("scripted", "asked"),
    [
        (Answer(["Hel", "lo ", "é猫"]), {}),
        (Answer(["so"], thinking=["hm, ", "well"]), {}),
        (Answer(["cut ", "off ", "here"]), {"max_tokens": 2}),
        (Answer([""], thinking=["only thoughts"]), {}),
        (
            Answer(tool_calls=[ToolCall("clock", {"zone": "UTC"}), ToolCall("clock", {})]),
            {"tools": [TOOL]},
        ),
        (Answer(["Hel", "lo"]), {"stream_options": {"include_usage": True}}),
    ],
    ids=["text", "thoughts", "cut off", "no text", "tool calls", "figures"],
)
def test_leader_gets_what_it_gets_without_the_cache(
    cached_file: CachedWebUI, model: str, scripted: Answer, asked: Json
) -> None:
    """Would catch anything that an answer loses, gains or changes because others may read along."""
    answers = []
    for through_cache in (False, True):
        cached_file.node.enqueue(scripted)
        answers.append(post(cached_file, model, "well?", through_cache=through_cache, **asked))
    assert answers[0]["status"] == 200
    assert json.dumps(comparable(answers[1])) == json.dumps(comparable(answers[0]))  # in the same order


@pytest.mark.parametrize("model", [ROUTED, DIRECT], ids=["router", "connection"])
@pytest.mark.parametrize(
    ("scripted", "sentence"),
    [
        (Answer(refusal=(400, "the prompt is too long")), "the prompt is too long"),
        (Answer(["half ", "an"], failure="out of memory"), "out of memory"),
    ],
    ids=["refused", "broken off"],
)
def test_leader_is_told_of_an_error(
    cached_file: CachedWebUI, model: str, scripted: Answer, sentence: str
) -> None:
    """Would catch half an answer that a script takes for a whole one, or an error that tells nothing."""
    cached_file.node.enqueue(scripted)
    answer = post(cached_file, model, "well?")
    assert answer["status"] >= 400
    assert sentence in answer["error"]["detail"]
    assert "choices" not in answer
