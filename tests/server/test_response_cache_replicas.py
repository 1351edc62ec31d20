"""Two Open WebUIs on one database and one store: what one generates, the other gives too."""

from collections.abc import Iterator

import pytest

from deploy.client import OpenWebUI
from harness.fixtures_cache import DIRECT, CachedWebUI, Json, SteppedWebUI
from harness.ollama_node import Answer

WORDS = [f"word{number} " for number in range(60)]


@pytest.fixture
def elsewhere(cached: CachedWebUI, replica: SteppedWebUI) -> Iterator[OpenWebUI]:
    """The same user on the second server."""
    api = OpenWebUI(replica.webui.url, cached.student.key)
    api.models(refresh=True)
    yield api
    api.close()


def chat(text: str) -> Json:
    return {"model": DIRECT, "messages": [{"role": "user", "content": text}]}


def said(chunks: list[Json]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def test_answer_of_one_replica_is_given_by_the_other(cached: CachedWebUI, elsewhere: OpenWebUI) -> None:
    """Would catch replicas that each generate what the other has."""
    elsewhere.post("/api/chat/completions", chat("first"))  # its connection to the store may take longer
    cached.student.post("/api/chat/completions", chat("hello"))
    answer = elsewhere.post("/api/chat/completions", chat("hello"))
    assert answer["choices"][0]["message"]["content"] == "You said: hello"
    assert answer["ollama_pack"]["cache"] == "hit"
    cached.admin.post("/ollama-pack/cache/flush")
    assert "ollama_pack" not in elsewhere.post("/api/chat/completions", chat("hello"))


def test_asker_on_another_replica_follows(cached: CachedWebUI, elsewhere: OpenWebUI) -> None:
    """Would catch a generation for each replica, or a stop button of one that ends the other too."""
    cached.node.enqueue(Answer(WORDS, pause=0.1))
    leader = cached.stream(cached.student, chat("tell"))
    next(leader)
    follower = cached.stream(elsewhere, chat("tell"))
    begun = next(follower)
    leader.close()
    chunks = [begun, *follower]
    assert said(chunks) == "".join(WORDS)
    assert chunks[-1]["ollama_pack"] == {"cache": "follow", "age_seconds": 0}
    assert len(cached.generations()) == 1
