"""The response cache in saved chats, what admins do to it, and what happens when its Redis fails."""

from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
import requests

from deploy.client import OpenWebUI
from harness.events_target import eventually
from harness.fixtures_cache import DIRECT, FILTER, CachedWebUI
from harness.ollama_node import Answer
from harness.valkey import Valkey

Json = dict[str, Any]


class Chat:
    """A saved chat of one question, asked as the page asks.

    Attributes:
        id: of the chat.
        question: id of the message of the user.
    """

    def __init__(self, cached: CachedWebUI, api: OpenWebUI, text: str, model: str = DIRECT) -> None:
        self._cached = cached
        self._api = api
        self.text = text
        self._model = model
        self.question = str(uuid4())
        known = {chat["id"] for chat in api.get("/api/v1/chats/")}
        self.answers = [str(uuid4())]
        self.first = self._ask(parent_id=None)
        (self.id,) = {chat["id"] for chat in api.get("/api/v1/chats/")} - known

    def regenerate(self) -> str:
        """Press the button; the new answer."""
        self.answers.append(str(uuid4()))
        return self._ask(chat_id=self.id, parent_id=None)

    def continue_(self) -> str:
        """Press the button below the last answer; what is added to it."""
        return self._ask(chat_id=self.id, parent_id=None, assistant_message_id=self.answers[-1])

    def _ask(self, **more: Any) -> str:
        message = {"id": self.question, "parentId": None, "role": "user", "content": self.text}
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": self.text}],
            "id": self.answers[-1],
            "user_message": {**message, "childrenIds": self.answers, "timestamp": 1, "models": [self._model]},
            **more,
        }
        answer: Json = self._api.post("/api/chat/completions", body)
        content: str = answer["choices"][0]["message"]["content"]
        return content


def test_same_question_in_a_new_chat_is_answered_from_the_cache(cached: CachedWebUI) -> None:
    """Would catch a key that holds something of the chat it was asked in."""
    assert Chat(cached, cached.student, "hello").first == "You said: hello"
    assert Chat(cached, cached.student, "hello").first == "You said: hello"
    assert len(cached.generations()) == 1


@pytest.mark.parametrize("model", [DIRECT, "private:1b", "gpt-4"], ids=["connection", "alias", "router"])
def test_regenerate_gives_a_new_answer_and_keeps_it(cached: CachedWebUI, model: str) -> None:
    """Would catch a button that gives the same answer for an hour, or a new answer that is lost at once."""
    chat = Chat(cached, cached.student, "hello", model)
    for number in range(2):
        cached.node.enqueue(Answer([f"new {number}"]))
        assert chat.regenerate() == f"new {number}"
    assert Chat(cached, cached.student, "hello", model).first == "new 1"
    assert len(cached.generations()) == 3


def test_same_model_side_by_side_answers_twice(cached_file: CachedWebUI) -> None:
    """Would catch two columns of one model that show one answer, where a user wants to compare."""
    ids = [{"model_id": DIRECT, "message_id": str(uuid4()), "modelIdx": number} for number in range(2)]
    children = [each["message_id"] for each in ids]
    message = {"id": str(uuid4()), "parentId": None, "role": "user", "content": "twice", "timestamp": 1}
    body = {
        "model": DIRECT,
        "messages": [{"role": "user", "content": "twice"}],
        "session_id": "a-session",
        "message_ids": ids,
        "parent_id": None,
        "stream": True,
        "user_message": {**message, "childrenIds": children, "models": [DIRECT, DIRECT]},
    }
    cached_file.student.post("/api/chat/completions", body)
    eventually(lambda: len(cached_file.generations()) == 2)


@pytest.mark.parametrize("model", [DIRECT, "private:1b", "gpt-4"], ids=["connection", "alias", "router"])
def test_continuing_asks_the_model_and_leaves_what_is_kept(cached: CachedWebUI, model: str) -> None:
    """Would catch the first part given again as the second, or a second part that is kept."""
    cached.node.enqueue(Answer(["Once upon"]))
    chats = [Chat(cached, cached.student, "a tale", model) for _ in range(2)]
    assert [chat.first for chat in chats] == ["Once upon"] * 2  # the second from the cache
    for chat, part in zip(chats, (" a time", " a midnight dreary"), strict=True):
        cached.node.enqueue(Answer([part]))
        assert chat.continue_() == part
        sent = cached.generations()[-1]["messages"]
        assert [message["content"] for message in sent] == ["a tale", "Once upon"]
    assert Chat(cached, cached.student, "a tale", model).first == "Once upon"
    assert len(cached.generations()) == 3


@pytest.mark.parametrize("gone", ["chat", "all chats", "folder", "thumbs down"])
def test_what_is_deleted_or_disliked_is_asked_again(cached: CachedWebUI, gone: str) -> None:
    """Would catch answers that outlive their chat, or a bad one that is given again and again."""
    chat = Chat(cached, cached.student, "hello")
    later = Chat(cached, cached.student, "hello")
    assert len(cached.generations()) == 1
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {cached.student.key}"
    if gone == "thumbs down":  # on the answer that came from the cache
        rating = {"rating": -1, "model_id": DIRECT}
        form = {
            "type": "rating",
            "data": rating,
            "meta": {"message_id": later.answers[0], "chat_id": later.id},
        }
        cached.student.post("/api/v1/evaluations/feedback", form)
    else:
        path = f"/api/v1/chats/{chat.id}" if gone == "chat" else "/api/v1/chats/"
        if gone == "folder":
            folder = cached.student.post("/api/v1/folders/", {"name": uuid4().hex})["id"]
            cached.student.post(f"/api/v1/chats/{chat.id}/folder", {"folder_id": folder})
            path = f"/api/v1/folders/{folder}?delete_contents=true"
        session.delete(cached.webui.url + path, timeout=30).raise_for_status()
    Chat(cached, cached.student, "hello")
    assert len(cached.generations()) == 2


@pytest.mark.parametrize("how", ["thumbs down", "regenerate"])
def test_similar_answer_that_is_not_wanted_counts_as_wrong(cached_file: CachedWebUI, how: str) -> None:
    """Would catch a thumbs-down, or a button, from which the similar cache learns nothing."""
    cached_file.set_valves(secret=uuid4().hex, similar="normalised")
    Chat(cached_file, cached_file.student, "What is the capital of France?")
    eventually(lambda: not cached_file.counts().get("similar/rejected"))  # the new secret's cache begins at 0
    shown: list[Chat] = []

    def is_served() -> bool:  # it is entered after its end
        hits = cached_file.counts().get("similar/normalised", 0)
        shown.append(
            Chat(cached_file, cached_file.student, f"Hi, what is the capital of France{'?' * len(shown)}")
        )
        return cached_file.counts().get("similar/normalised", 0) > hits

    eventually(is_served)
    if how == "regenerate":
        shown[-1].regenerate()
    else:
        meta = {"message_id": shown[-1].answers[0], "chat_id": shown[-1].id}
        form = {"type": "rating", "data": {"rating": -1, "model_id": DIRECT}, "meta": meta}
        cached_file.student.post("/api/v1/evaluations/feedback", form)
    eventually(lambda: cached_file.counts().get("similar/rejected") == 1)


def test_thumbs_up_keeps_the_answer(cached_file: CachedWebUI) -> None:
    """Would catch a cache that forgets what people like."""
    chat = Chat(cached_file, cached_file.student, "hello")
    meta = {"message_id": chat.answers[0], "chat_id": chat.id}
    form = {"type": "rating", "data": {"rating": 1, "model_id": DIRECT}, "meta": meta}
    cached_file.student.post("/api/v1/evaluations/feedback", form)
    Chat(cached_file, cached_file.student, "hello")
    assert len(cached_file.generations()) == 1


def ask(api: OpenWebUI, model: str = DIRECT) -> Json:
    messages = [{"role": "user", "content": "hello"}]
    answer: Json = api.post("/api/chat/completions", {"model": model, "messages": messages})
    return answer


def is_cached(answer: Json) -> bool:
    return "cache" in answer.get("ollama_pack", {})


def test_admin_flushes_the_cache(cached: CachedWebUI) -> None:
    """Would catch a flush that leaves answers, or one that anybody may do."""
    ask(cached.student)
    with pytest.raises(Exception, match="401"):
        cached.student.post("/ollama-pack/cache/flush")
    assert is_cached(ask(cached.student))
    assert cached.admin.post("/ollama-pack/cache/flush") == {"fault": ""}
    assert not is_cached(ask(cached.student))


def test_figures_are_told(cached: CachedWebUI) -> None:
    """Would catch counters that count nothing, or not for all workers together."""
    for _ in range(3):
        ask(cached.student)
    eventually(lambda: cached.counts().get("hits") == 2)  # what it shows is up to a second old
    told = cached.admin.get("/ollama-pack/data")["cache"]
    assert told["worker"]["misses/absent"] == 1
    assert told["worker"]["hits"] == 2
    assert told["worker"]["tokens_saved"] == 6
    assert sum(value for name, value in told["worker"].items() if name.startswith("lookups_ms/")) == 3
    assert told["all"]["hits"] >= 2


@pytest.mark.parametrize("model", [DIRECT, "gpt-4"], ids=["connection", "router"])
def test_pulled_model_answers_anew(cached: CachedWebUI, model: str) -> None:
    """Would catch answers of the old weights under the new model's name."""
    installed = cached.node.models
    name = "llama3:8b" if model == "gpt-4" else DIRECT
    (key,) = [key for key, one in installed.items() if one.short_name == name]
    ask(cached.student, model)
    installed[key] = replace(installed[key], digest=uuid4().hex * 2, blob="")
    assert until_new(cached, model)
    assert is_cached(ask(cached.student, model))


def until_new(cached: CachedWebUI, model: str) -> bool:
    """Ask until the model answers itself, as it must within seconds."""
    return any(not is_cached(ask(cached.student, model)) for _ in range(400))


def until_cached(cached: CachedWebUI, model: str) -> bool:
    return any(is_cached(ask(cached.student, model)) for _ in range(400))


def test_system_prompt_of_the_row_is_given_once_and_is_in_the_key(cached: CachedWebUI) -> None:
    """Would catch a prompt that is put before the chat twice, or not at all, or does not count."""
    row = {"id": "pirate", "name": "pirate", "base_model_id": DIRECT, "meta": {}}
    share = [{"principal_type": "user", "principal_id": "*", "permission": "read"}]
    form = {**row, "params": {"system": "Talk like a pirate, {{USER_NAME}}."}, "access_grants": share}
    cached.admin.post("/api/v1/models/create", form)
    cached.admin.models(refresh=True)
    try:
        assert not is_cached(ask(cached.student, "pirate"))
        (sent,) = cached.generations()
        assert [message["role"] for message in sent["messages"]] == ["system", "user"]
        assert sent["messages"][0]["content"] == "Talk like a pirate, student."
        assert is_cached(ask(cached.student, "pirate"))
        update = {**form, "params": {"system": "Talk like a judge."}}
        cached.admin.post("/api/v1/models/model/update", update, id="pirate")
        assert not is_cached(ask(cached.student, "pirate"))
    finally:
        cached.admin.post("/api/v1/models/model/delete", {"id": "pirate"})


def test_chats_go_on_when_redis_dies(cached_webui: CachedWebUI, tmp_path: Any) -> None:
    """Would catch a cache without which nobody can chat, or one that never comes back."""
    with Valkey(tmp_path) as valkey:
        cached_webui.set_valves(secret="r" * 32, redis_url=valkey.url)
        ask(cached_webui.student)
        assert is_cached(ask(cached_webui.student))
        valkey.kill()
        assert [is_cached(ask(cached_webui.student)) for _ in range(5)] == [False] * 5
        valkey.start()
        assert until_cached(cached_webui, DIRECT)


def test_slow_redis_costs_a_chat_little(cached_webui: CachedWebUI, tmp_path: Any) -> None:
    """Would catch chats that hang because Redis does; the breaker soon asks it no more."""
    with Valkey(tmp_path) as valkey:
        cached_webui.set_valves(secret="s" * 32, redis_url=valkey.url)
        ask(cached_webui.student)
        valkey.pause()
        for _ in range(40):  # what happens while this machine is held up says nothing of Redis, nor counts
            assert not is_cached(ask(cached_webui.student))
            if cached_webui.counts().get("misses/store open"):
                break
        counts = cached_webui.counts()
        assert counts["misses/store slow"] >= 1
        assert counts["misses/store open"] >= 1
        valkey.resume()
        assert until_cached(cached_webui, DIRECT)


def test_wrong_settings_are_refused_when_they_are_saved(cached_file: CachedWebUI) -> None:
    """Would catch a mistyped URL, or a short secret, that is found out in a chat."""
    for wrong in ({"redis_url": "http://x"}, {"secret": "short"}, {"ttl_seconds": 0}):
        with pytest.raises(Exception, match="400"):
            cached_file.set_valves(**wrong)
    assert cached_file.admin.valves("functions", FILTER).get("redis_url") in (None, "")


def test_model_that_is_not_there_is_told_as_without_the_cache(cached_file: CachedWebUI) -> None:
    """Would catch an error of the cache where the model's own is to be seen."""
    with pytest.raises(Exception, match="Model not found"):
        ask(cached_file.student, "no-such-model")


CHOOSER = """
class Filter:
    def inlet(self, body):
        if body["messages"][-1]["content"] == "hello":
            body["model"] = "staff:1b"
        return body
"""


def test_model_that_another_filter_chose_is_not_given_to_who_may_not_use_it(cached_file: CachedWebUI) -> None:
    """Would catch a kept answer that gets round Open WebUI's check of who may use a model."""
    cached_file.set_valves(secret="a" * 32, scope="global")
    admin, path = cached_file.admin, "/api/v1/functions/id/chooser"
    form = {"id": "chooser", "name": "chooser", "content": CHOOSER, "meta": {"description": ""}}
    admin.post("/api/v1/functions/create", form)
    try:
        admin.post(f"{path}/toggle")
        admin.post(f"{path}/toggle/global")
        ask(admin)
        assert is_cached(ask(admin))
        with pytest.raises(Exception, match="Model not found"):
            ask(cached_file.student)
    finally:
        requests.delete(
            f"{cached_file.webui.url}{path}/delete",
            headers={"Authorization": f"Bearer {admin.key}"},
            timeout=30,
        ).raise_for_status()
