"""Budgets on a real Open WebUI: who is refused, what counts, and what a user sees of it."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest
import requests

from deploy.client import OpenWebUI
from deploy.errors import ServerError
from harness.events_target import eventually
from harness.fixtures_cache import DIRECT, CachedWebUI, SteppedWebUI, emptied
from harness.ollama_node import Answer, ToolCall

Json = dict[str, Any]

BUDGETS, DATABASE = "usage_budgets", "ollama_pack_budgets.sqlite3"


@pytest.fixture
def budgeted(cached_webui: CachedWebUI) -> Iterator[CachedWebUI]:
    """The server with an empty cache and nothing counted; afterwards without budgets again."""
    forget_use(cached_webui)
    yield emptied(cached_webui, "sqlite")
    set_budgets(cached_webui)


def forget_use(cached: CachedWebUI) -> None:
    """Begin with empty counters."""
    with closing(sqlite3.connect(cached.webui.log.parent / "data" / DATABASE)) as link, link:
        for table in ("counters", "reservations"):
            if link.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
                link.execute(f"DELETE FROM {table}")  # noqa: S608 - a literal


def set_budgets(cached: CachedWebUI, *rows: str, **valves: Any) -> None:
    cached.admin.post(f"/api/v1/functions/id/{BUDGETS}/valves/update", {"budgets": "\n".join(rows), **valves})


def post(api: OpenWebUI, path: str, body: Json, language: str = "en") -> requests.Response:
    headers = {"Authorization": f"Bearer {api.key}", "Accept-Language": language}
    return requests.post(f"{api.url}{path}", json=body, headers=headers, timeout=30)


def ask(api: OpenWebUI, text: str, model: str = "gpt-4", **more: Any) -> requests.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return post(api, "/api/chat/completions", body)


def usage(api: OpenWebUI) -> Json:
    found: Json = api.get("/ollama-pack/v1/usage")
    return found


def used(api: OpenWebUI, number: int = 0) -> float:
    """What counts so far, once it has been counted: that is after the answer has ended."""
    return float(usage(api)["budgets"][number]["used"])


def wait_until_used(api: OpenWebUI, amount: float, number: int = 0) -> None:
    eventually(lambda: used(api, number) == amount)


@pytest.mark.parametrize("model", ["gpt-4", DIRECT], ids=["router", "connection"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_requests_over_the_budget_get_429(budgeted: CachedWebUI, model: str, stream: bool) -> None:  # noqa: FBT001
    """Would catch a budget that is not counted, is refused with another status, or holds for an admin."""
    set_budgets(budgeted, "role=user 2 requests/day")
    for text in ("one", "two"):
        answer = ask(budgeted.student, f"{text} {model} {stream}", model, stream=stream)
        assert answer.status_code == 200, answer.text
    refused = ask(budgeted.student, "three", model, stream=stream)
    assert refused.status_code == 429
    assert 0 < int(refused.headers["Retry-After"]) <= 25 * 3600
    assert "You have used up your budget: 2 requests today." in refused.json()["error"]["message"]
    assert ask(budgeted.admin, "four", model, stream=stream).status_code == 200
    assert ask(budgeted.other, "five", model, stream=stream).status_code == 200


@pytest.mark.parametrize("path", ["/ollama-pack/v1/chat/completions", "/ollama/api/chat"])
def test_other_ways_in_are_no_way_around(budgeted: CachedWebUI, path: str) -> None:
    """Would catch a client that goes on through the gateway, or through the router without a filter."""
    set_budgets(budgeted, "role=user 1 requests/day")
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": f"by {path}"}], "stream": False}
    assert post(budgeted.student, path, body).status_code == 200
    wait_until_used(budgeted.student, 1)
    states: list[Any] = [{"ticket": "made up"}, {"ticket": []}, "made up"]
    for state in states:
        forged = {**body, "metadata": {"ollama_pack_budget": state, "task": "title_generation"}}
        refused = post(budgeted.student, path, forged)
        assert refused.status_code == 429, refused.text
        assert "You have used up" in refused.text


@pytest.mark.parametrize("model", ["gpt-4", DIRECT], ids=["router", "connection"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_gpu_time_is_what_the_node_says(budgeted: CachedWebUI, model: str, stream: bool) -> None:  # noqa: FBT001
    """Would catch wall time, a wait or a load that a user pays for, and an answer that counts twice."""
    rows = "everyone 100 gpu-seconds/day", "everyone 10000 tokens/day", "everyone 9 requests/day"
    set_budgets(budgeted, *rows)
    answer = ask(budgeted.student, "how long?", model, stream=stream)
    figures = usage_in(answer)
    seconds = (figures["prompt_eval_duration"] + figures["eval_duration"]) / 1e9
    wait_until_used(budgeted.student, 1, 2)
    assert used(budgeted.student, 0) == pytest.approx(seconds, abs=0.002)
    assert used(budgeted.student, 1) == figures["total_tokens"]
    again = ask(budgeted.student, "how long?", model, stream=stream)  # from the cache
    assert "hit" in again.text
    wait_until_used(budgeted.student, 2, 2)
    assert used(budgeted.student, 0) == pytest.approx(seconds, abs=0.002)
    assert used(budgeted.student, 1) == figures["total_tokens"]


def usage_in(answer: requests.Response) -> Json:
    if answer.headers["content-type"].startswith("application/json"):
        found: Json = answer.json()["usage"]
        return found
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    return next(chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage"))


@pytest.mark.parametrize(
    ("path", "counted"),
    [
        ("/v1/embeddings", lambda answer: answer["usage"]["prompt_tokens"]),
        ("/api/embed", lambda answer: answer["prompt_eval_count"]),
    ],
    ids=["openai", "ollama"],
)
def test_embeddings_count(budgeted: CachedWebUI, path: str, counted: Callable[[Json], int]) -> None:
    """Would catch embeddings that are free, pay for the load, or count though there were none."""
    rows = "everyone 100 gpu-seconds/day", "everyone 10000 tokens/day", "everyone 2 requests/day"
    set_budgets(budgeted, *rows)
    body = {"model": "text-embedding-3-small", "input": ["one", "two words"]}
    assert post(budgeted.student, f"/ollama-pack{path}", {**body, "model": "no-such"}).status_code == 404
    asked = [post(budgeted.student, f"/ollama-pack{path}", body) for _ in range(2)]
    assert [answer.status_code for answer in asked] == [200, 200]
    wait_until_used(budgeted.student, 2, 2)
    assert used(budgeted.student, 1) == sum(counted(answer.json()) for answer in asked) > 0
    embedded = [record for record in budgeted.node.records if record.path == "/api/embed" and record.ended]
    working = [(record.ended or 0) - record.came - record.load for record in embedded[-2:]]
    assert 0 < used(budgeted.student, 0) < sum(working) + 0.01
    refused = post(budgeted.student, f"/ollama-pack{path}", body)
    assert refused.status_code == 429
    assert 0 < int(refused.headers["Retry-After"]) <= 25 * 3600
    assert "You have used up your budget: 2 requests today." in refused.text


@pytest.mark.parametrize("model", ["gpt-4", DIRECT], ids=["router", "connection"])
def test_a_client_that_leaves_pays_what_was_used(budgeted: CachedWebUI, model: str) -> None:
    """Would catch long answers for nothing: start one, read it nearly to its end, leave."""
    set_budgets(budgeted, "everyone 100 gpu-seconds/day", "everyone 9 requests/day")
    budgeted.node.enqueue(Answer(["word "] * 400, pause=0.05))
    body = {"model": model, "messages": [{"role": "user", "content": "tell me much"}]}
    chunks = budgeted.stream(budgeted.student, body)
    began = time.monotonic()
    for _ in range(12):
        next(chunks)
    chunks.close()
    took = time.monotonic() - began
    wait_until_used(budgeted.student, 1, 1)
    assert 0.2 <= used(budgeted.student, 0) <= took + 2


def test_a_client_that_leaves_before_the_first_word_pays_what_was_used(budgeted: CachedWebUI) -> None:
    """Would catch long prompts for nothing: have one read, leave before its answer begins."""
    set_budgets(budgeted, "everyone 100 gpu-seconds/day", "everyone 9 requests/day")
    budgeted.node.enqueue(Answer(["late"], delay=20))
    body = {"model": DIRECT, "messages": [{"role": "user", "content": "a long story"}], "stream": True}
    headers = {"Authorization": f"Bearer {budgeted.student.key}"}
    url = f"{budgeted.student.url}/api/chat/completions"
    with pytest.raises(requests.ReadTimeout):
        requests.post(url, json=body, headers=headers, timeout=3)
    wait_until_used(budgeted.student, 1, 1)
    assert 1 <= used(budgeted.student, 0) <= 10


TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("path", ["/api/chat/completions", "/ollama-pack/v1/chat/completions"])
@pytest.mark.parametrize(
    "answer", [Answer(tool_calls=[ToolCall("look_up", {})]), Answer([""])], ids=["tool call", "no text"]
)
def test_whole_answers_without_text_count(budgeted: CachedWebUI, path: str, answer: Answer) -> None:
    """Would catch agents that ask for nothing: Open WebUI calls no outlet where an answer has no text."""
    rows = "everyone 100 gpu-seconds/day", "everyone 10000 tokens/day", "everyone 1 requests/day"
    set_budgets(budgeted, *rows)
    budgeted.node.enqueue(answer)
    body = {"model": DIRECT, "messages": [{"role": "user", "content": "look it up"}], "tools": [TOOL]}
    figures = usage_in(post(budgeted.student, path, {**body, "stream": False}))
    wait_until_used(budgeted.student, 1, 2)
    assert used(budgeted.student, 1) == figures["prompt_tokens"] + figures["completion_tokens"] > 0
    assert 0 < used(budgeted.student, 0) < 5
    assert post(budgeted.student, path, {**body, "stream": False}).status_code == 429


@pytest.mark.parametrize("path", ["/api/chat/completions", "/ollama-pack/v1/chat/completions"])
def test_a_whole_answer_that_failed_costs_nothing(budgeted: CachedWebUI, path: str) -> None:
    """Would catch users who pay for a node's error."""
    set_budgets(budgeted, "everyone 100 gpu-seconds/day", "everyone 9 requests/day")
    budgeted.node.enqueue(Answer(refusal=(500, "the node's own fault")))
    body = {"model": DIRECT, "messages": [{"role": "user", "content": "fail"}], "stream": False}
    assert post(budgeted.student, path, body).status_code >= 400
    wait_until_nothing_is_under_way(budgeted.student)
    assert (used(budgeted.student, 0), used(budgeted.student, 1)) == (0, 0)


def wait_until_nothing_is_under_way(api: OpenWebUI) -> None:
    eventually(lambda: not any(budget["under_way"] for budget in usage(api)["budgets"]))


def leave(api: OpenWebUI, model: str, seconds: float) -> None:
    """Ask the gateway for a whole answer, and hang up before it is there."""
    body = {"model": model, "messages": [{"role": "user", "content": "take your time"}], "stream": False}
    headers = {"Authorization": f"Bearer {api.key}"}
    with pytest.raises(requests.ReadTimeout):
        requests.post(
            f"{api.url}/ollama-pack/v1/chat/completions", json=body, headers=headers, timeout=seconds
        )


def test_a_client_that_leaves_the_gateway_pays_what_was_used(budgeted: CachedWebUI) -> None:
    """Would catch long answers for nothing: ask for whole ones, and hang up."""
    set_budgets(budgeted, "everyone 100 gpu-seconds/day", "everyone 9 requests/day")
    budgeted.node.enqueue(Answer(["late"], delay=20))
    leave(budgeted.student, DIRECT, 2)
    wait_until_used(budgeted.student, 1, 1)
    assert 1 <= used(budgeted.student, 0) <= 10


def test_a_page_s_chat_is_refused_with_a_sentence(budgeted: CachedWebUI) -> None:
    """Would catch a chat that shows nothing, or "400", when its user's budget is used up."""
    set_budgets(budgeted, "role=user 1 gpu-seconds/month shared", "everyone 1 requests/day")
    assert ask(budgeted.student, "one").status_code == 200
    wait_until_used(budgeted.student, 1)
    shown = page_chat(budgeted.student, "two")
    assert "You have used up your budget: 1 requests today." in str(shown.get("error"))


def page_chat(api: OpenWebUI, text: str, model: str = "gpt-4") -> Json:
    """A new chat as the page sends it; the answer's message as it is stored."""
    user, answer = str(uuid4()), str(uuid4())
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "stream": True,
        "parent_id": None,
        "session_id": "no socket",
        "id": answer,
        "user_message": {"id": user, "role": "user", "content": text, "parentId": None, "childrenIds": []},
        "background_tasks": {},
    }
    started = post(api, "/api/chat/completions", body).json()

    def stored() -> Json:
        chat = api.get(f"/api/v1/chats/{started['chat_id']}")["chat"]
        found: Json = chat["history"]["messages"].get(answer, {})
        return found

    # Open WebUI 0.11 leaves "done" out beside an error
    eventually(lambda: bool(stored().get("done") or stored().get("error")))
    return stored()


def test_a_used_up_budget_may_lead_to_another_model(budgeted: CachedWebUI) -> None:
    """Would catch a `then=` that opens a model which the user may not use, or that answers nobody."""
    set_budgets(budgeted, f"role=user 1 requests/day then={DIRECT}")
    assert "gpt-4" in ask(budgeted.student, "one").json()["model"]
    wait_until_used(budgeted.student, 1)
    assert DIRECT in ask(budgeted.student, "two").json()["model"]
    set_budgets(budgeted, "role=user 1 requests/day then=staff:1b")
    refused = ask(budgeted.student, "three")
    assert refused.status_code == 429
    assert "not open to you" in refused.text


@pytest.fixture
def one_slot(budgeted: CachedWebUI) -> Iterator[CachedWebUI]:
    """With a node that answers one chat at a time."""
    path = "/api/v1/functions/id/gpu_router/valves"
    valves = budgeted.admin.get(path)
    budgeted.admin.post(f"{path}/update", {**valves, "nodes": f"gpu0 {budgeted.node.url} slots=1"})
    yield budgeted
    budgeted.admin.post(f"{path}/update", valves)


def test_a_used_up_budget_may_lead_to_the_end_of_the_queue(one_slot: CachedWebUI) -> None:
    """Would catch a chat over its budget that takes a slot from somebody who came later."""
    student, admin = one_slot.student, one_slot.admin
    set_budgets(one_slot, "role=user 1 requests/day then=queue-last")
    assert ask(student, "within the budget").status_code == 200
    wait_until_used(student, 1)
    one_slot.node.enqueue(Answer(["word "] * 1000, pause=0.05))
    blocker = one_slot.stream(
        admin, {"model": "gpt-4", "messages": [{"role": "user", "content": "take the slot"}]}
    )
    next(blocker)
    with ThreadPoolExecutor(2) as pool:
        answers = []
        for number, (api, text) in enumerate(((student, "over the budget"), (admin, "came later")), start=1):
            answers.append(pool.submit(ask, api, text))
            wait_until_queued(admin, number)
        blocker.close()
        assert [answer.result().status_code for answer in answers] == [200, 200]
    asked = [chat["messages"][-1]["content"] for chat in one_slot.generations()]
    assert asked == ["within the budget", "take the slot", "came later", "over the budget"]


def test_a_client_that_leaves_while_it_waits_in_the_queue_pays_nothing(one_slot: CachedWebUI) -> None:
    """Would catch a wait that a user pays for."""
    set_budgets(one_slot, "role=user 100 gpu-seconds/day", "role=user 9 requests/day")
    one_slot.node.enqueue(Answer(["word "] * 1000, pause=0.05))
    blocker = one_slot.stream(
        one_slot.admin, {"model": "gpt-4", "messages": [{"role": "user", "content": "take the slot"}]}
    )
    next(blocker)
    leave(one_slot.student, "gpt-4", 2)
    wait_until_nothing_is_under_way(one_slot.student)
    blocker.close()
    assert (used(one_slot.student, 0), used(one_slot.student, 1)) == (0, 0)


@pytest.fixture
def titles(budgeted: CachedWebUI) -> Iterator[None]:
    """Open WebUI makes titles."""
    config = budgeted.admin.get("/api/v1/tasks/config")
    budgeted.admin.post("/api/v1/tasks/config/update", config | {"ENABLE_TITLE_GENERATION": True})
    yield
    budgeted.admin.post("/api/v1/tasks/config/update", config)


@pytest.mark.usefixtures("titles")
def test_a_title_under_way_takes_no_request(budgeted: CachedWebUI) -> None:
    """Would catch a user whose last chat is refused while the title of the one before is made."""
    set_budgets(budgeted, "role=user 1 requests/day")
    budgeted.node.enqueue(Answer(["a title"], delay=8))
    title = {"model": "gpt-4", "messages": [{"role": "user", "content": "hello"}]}
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(post, budgeted.student, "/api/v1/tasks/title/completions", title)
        eventually(lambda: len(budgeted.generations()) == 1)
        assert ask(budgeted.student, "the last one").status_code == 200
        assert not made.done()
        assert made.result().status_code == 200
    wait_until_used(budgeted.student, 1)
    wait_until_nothing_is_under_way(budgeted.student)
    assert used(budgeted.student) == 1


def wait_until_queued(admin: OpenWebUI, chats: int) -> None:
    eventually(lambda: bool(admin.get("/api/system/load")["nodes"][0]["queued"] == chats))


@pytest.fixture
def tomorrow(replica: SteppedWebUI) -> Iterator[None]:
    """The second server's clock is a day ahead."""
    replica.step(24 * 3600)
    yield
    replica.step(0)


def test_two_servers_share_the_budget_until_the_next_day(
    budgeted: CachedWebUI, replica: SteppedWebUI, request: pytest.FixtureRequest
) -> None:
    """Would catch a budget for each worker, and a day that never ends."""
    with budgeted.valkey.client() as client:
        client.flushall()
    set_budgets(budgeted, "role=user 2 requests/day", redis_url=budgeted.valkey.url)
    elsewhere = OpenWebUI(replica.webui.url, budgeted.student.key)
    elsewhere.models(refresh=True)
    for number, api in enumerate((budgeted.student, elsewhere), start=1):
        assert ask(api, f"hello {number}", DIRECT).status_code == 200
        wait_until_used(budgeted.student, number)
    for api in (budgeted.student, elsewhere):
        assert ask(api, "one more", DIRECT).status_code == 429
    request.getfixturevalue("tomorrow")
    assert ask(elsewhere, "a new day", DIRECT).status_code == 200
    elsewhere.close()


def test_who_sees_what_was_used(budgeted: CachedWebUI) -> None:
    """Would catch a user who sees what others use, and a file that an admin cannot read."""
    set_budgets(budgeted, "everyone 9 requests/day", "role=user 20 requests/week shared")
    assert ask(budgeted.student, "=1+1").status_code == 200
    wait_until_used(budgeted.student, 1)
    plain = usage(budgeted.student)
    assert [each["left"] for each in plain["budgets"]] == [8, 19]
    assert "all" not in plain
    everybody = {(each["whose"], each["period"]): each["used"] for each in usage(budgeted.admin)["all"]}
    assert everybody == {("student@example.org", "day"): 1, ("role=user", "week"): 1}
    url = f"{budgeted.webui.url}/ollama-pack/usage.csv"
    headers = [{"Authorization": f"Bearer {api.key}"} for api in (budgeted.student, budgeted.admin)]
    assert requests.get(url, headers=headers[0], timeout=30).status_code == 401
    table = requests.get(url, headers=headers[1], timeout=30).text.splitlines()
    assert "student@example.org,False,requests,day,1.0,0.0" in table


def test_a_table_that_cannot_be_used_is_refused(budgeted: CachedWebUI) -> None:
    """Would catch a typing error that switches all budgets off."""
    with pytest.raises(ServerError, match="400"):
        set_budgets(budgeted, "everyone 5 requests/day\nrole=boss 1 requests/day")
    log = budgeted.webui.log.read_text(errors="replace")
    assert "row 2 ('role=boss 1 requests/day'): role=boss is not a known role" in log


def test_clients_read_their_language(budgeted: CachedWebUI) -> None:
    """Would catch English for a client that accepts Chinese: a refusal, a reason, a fault."""
    set_budgets(budgeted, "role=user 1 requests/day")
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": "in Chinese"}]}
    student, admin = budgeted.student, budgeted.admin

    def said(api: OpenWebUI, path: str, **more: Any) -> Any:
        return post(api, path, body | more, "zh-CN").json()

    answered = said(student, "/api/chat/completions")
    assert answered["ollama_pack"]["reason"].startswith("未安装 mixtral:8x7b · 节点 ")
    wait_until_used(student, 1)
    for path in ("/api/chat/completions", "/ollama-pack/v1/chat/completions"):
        assert said(student, path)["error"]["message"].startswith("您的配额已用完：今天 1 次请求。")
    missing = said(admin, "/ollama-pack/v1/chat/completions", model="nobody")["error"]["message"]
    assert "不存在，或您无权使用" in missing
    fault = said(admin, "/ollama-pack/calibration", round=0)["fault"]
    assert fault == "`round` 必须是从 1 开始的数，而不是 0"


def test_without_a_table_nothing_is_stored(cached_webui: CachedWebUI, budgeted: CachedWebUI) -> None:
    set_budgets(budgeted)
    assert ask(budgeted.student, "free").status_code == 200
    assert usage(budgeted.student) == {"budgets": [], "fault": ""}
    folder = cached_webui.webui.log.parent / "data"
    with closing(sqlite3.connect(folder / DATABASE)) as link:
        assert link.execute("SELECT count(*) FROM counters").fetchone() == (0,)


def test_a_dead_store_breaks_no_chat(budgeted: CachedWebUI) -> None:
    """Would catch chats that fail, or hang, without Redis; and an admin who is not told."""
    set_budgets(budgeted, "everyone 1 requests/day", redis_url="redis://127.0.0.1:1/0")
    for text in ("one", "two", "three"):
        assert ask(budgeted.student, text).status_code == 200
    assert "Redis failed" in usage(budgeted.admin)["fault"]
    assert usage(budgeted.student)["fault"] == ""
    headers = {"Authorization": f"Bearer {budgeted.admin.key}"}
    table = requests.get(f"{budgeted.webui.url}/ollama-pack/usage.csv", headers=headers, timeout=30)
    assert (table.status_code, table.text[:24]) == (503, "Budgets are not counted:")  # no heading alone
    log = budgeted.webui.log.read_text(errors="replace")
    assert log.count("Budgets are not counted and do not hold") == 1


def on_the_dashboard(cached: CachedWebUI) -> Json:
    """What the dashboard is sent of budgets, which may be a few seconds old."""
    url, key = f"{cached.webui.url}/ollama-pack/stream", cached.admin.key
    with requests.get(url, headers={"Authorization": f"Bearer {key}"}, stream=True, timeout=30) as stream:
        event = next(line for line in stream.iter_lines() if line.startswith(b"data: "))
    found: Json = json.loads(event.removeprefix(b"data: "))["parts"]["budgets"]
    return found


def test_the_dashboard_shows_budgets_of_groups(budgeted: CachedWebUI) -> None:
    """Would catch a dashboard that says, of every table with a group in it, that nothing is counted."""
    set_budgets(budgeted, "group=students 9 requests/day", "everyone 5 requests/week")
    assert ask(budgeted.student, "how much is left?").status_code == 200
    wait_until_used(budgeted.student, 1)

    def shown() -> tuple[str, list[str]]:
        told = on_the_dashboard(budgeted)
        return told.get("fault", ""), [each["whose"] for each in told.get("most", ())]

    eventually(lambda: shown() == ("", ["student@example.org"]))


def test_a_row_of_a_group_that_was_renamed_is_told(budgeted: CachedWebUI) -> None:
    """Would catch a limit that holds for nobody while all seems to be well."""
    set_budgets(budgeted, "group=renamed 9 requests/day", "everyone 5 requests/week")
    assert "problems" not in usage(budgeted.student)
    eventually(lambda: "no group 'renamed'" in "".join(on_the_dashboard(budgeted).get("problems", ())))
