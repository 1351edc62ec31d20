"""Routing as people meet it in the browser."""

import re
from contextlib import suppress
from threading import Thread

import pytest
from playwright.sync_api import Page, expect

from browser.conftest import Open, ask
from deploy.errors import ServerError
from harness.events_target import eventually
from harness.fixtures_routing import RoutedWebUI
from harness.ollama_node import Answer, OllamaNode

SLOW = 20_000  # milliseconds; the page itself may take long on a busy machine


@pytest.fixture
def page(open_routed: Open, routed: RoutedWebUI) -> Page:
    """A new chat of a plain user with gpt-4, which the router answers."""
    return open_routed(routed.account, "/?models=gpt-4")


def test_the_answer_and_who_gave_it(page: Page) -> None:
    """Would catch an answer without the line that names the model and the node, or without its reason."""
    ask(page, "hello from a browser")
    expect(page.get_by_text("You said: hello from a browser")).to_be_visible(timeout=SLOW)
    line = page.get_by_text(re.compile(r"^gpt-4 → llama3:8b · on gpu[01] · (in [\d.]+ s|at once)$"))
    expect(line).to_be_visible(timeout=SLOW)
    expect(page.locator(".shimmer")).to_have_count(0)
    line.click()
    why = r"^mixtral:8x7b is not installed · gpu[01] (has llama3:8b in memory|loads llama3:8b)$"
    expect(page.get_by_text(re.compile(why))).to_be_visible()


def test_the_line_is_in_the_user_s_language(open_routed: Open, routed: RoutedWebUI) -> None:
    """Would catch English above an answer, or as an error, for somebody who has set Open WebUI to Chinese."""
    page = open_routed(routed.account, "/")
    page.evaluate("localStorage.setItem('locale', 'zh-CN')")
    page.goto(f"{routed.webui.url}/?models=gpt-4")
    ask(page, "hello in Chinese")
    line = page.get_by_text(re.compile(r"^gpt-4 → llama3:8b · 节点 gpu[01] · (用时 [\d.]+ 秒|立即响应)$"))
    expect(line).to_be_visible(timeout=SLOW)
    line.click()
    expect(page.get_by_text(re.compile("^未安装 mixtral:8x7b · 节点 gpu[01] "))).to_be_visible()
    for node in routed.nodes:
        node.enqueue(*[Answer(refusal=(400, "the prompt is too long"))] * 4)
    ask(page, "hello again")
    try:
        expect(page.get_by_text("该模型无法回答此请求：the prompt is too long").first).to_be_visible(
            timeout=SLOW
        )
    finally:
        for node in routed.nodes:
            node._server.state.answers.clear()  # noqa: SLF001 - the node offers no way to take answers back


def test_an_error_is_one_sentence(page: Page, routed: RoutedWebUI) -> None:
    """Would catch an error that the page shows as JSON, as a number, or not at all."""
    for node in routed.nodes:
        node.enqueue(*[Answer(refusal=(400, "the prompt is too long"))] * 4)
    ask(page, "hello")
    sentence = re.compile(
        r"(node gpu[01] refuses the|The model cannot answer this) request: the prompt is too long"
    )
    try:
        expect(page.get_by_text(sentence).first).to_be_visible(timeout=SLOW)
    finally:
        for node in routed.nodes:
            node._server.state.answers.clear()  # noqa: SLF001 - the node offers no way to take answers back


def test_the_line_of_a_chat_that_waits_ends_with_its_error(page: Page, routed: RoutedWebUI) -> None:
    """Would catch "waiting for a GPU" that goes on shimmering above the error."""
    slow = Answer([f"word{number} " for number in range(120)], pause=0.1)
    refused = Answer(refusal=(400, "the prompt is too long"))
    for node in routed.nodes:
        node.enqueue(*[slow] * 4)
    slot_holders = [Thread(target=ask_api, args=(routed, f"hold {number}")) for number in range(4)]
    for holder in slot_holders:
        holder.start()
    try:
        eventually(lambda: sum(map(at_work, routed.nodes)) == len(slot_holders), SLOW / 1000)
        ask(page, "hello")
        expect(page.locator(".shimmer", has_text="waiting for a GPU")).to_be_visible(timeout=SLOW)
        for node in routed.nodes:
            node._server.state.answers.clear()  # noqa: SLF001 - see above
            node.enqueue(*[refused] * 8)
        expect(page.get_by_text(re.compile("request: the prompt is too long")).first).to_be_visible(
            timeout=SLOW
        )
        expect(page.locator(".shimmer")).to_have_count(0)
    finally:
        for holder in slot_holders:
            holder.join()
        for node in routed.nodes:
            node._server.state.answers.clear()  # noqa: SLF001 - see above


def at_work(node: OllamaNode) -> int:
    """How many chats a node answers."""
    return sum(record.path == "/api/chat" and record.ended is None for record in node.records)


def ask_api(routed: RoutedWebUI, text: str) -> None:
    """A chat of somebody else, answered or not."""
    messages = [{"role": "user", "content": text}]
    with suppress(ServerError):
        routed.admin.post("/api/chat/completions", {"model": "gpt-4", "messages": messages})


def test_the_stop_button_stops_the_node(page: Page, routed: RoutedWebUI) -> None:
    """Would catch a GPU that works on for minutes after the user pressed stop."""
    for node in routed.nodes:
        node.enqueue(Answer([f"word{number} " for number in range(5000)], pause=0.05))
    before = [len(node.requests) for node in routed.nodes]
    ask(page, "count")
    expect(page.get_by_text("word3")).to_be_visible(timeout=SLOW)
    (node, asked), *_ = [
        (node, node.requests[count])
        for node, count in zip(routed.nodes, before, strict=True)
        if len(node.requests) > count
    ]
    page.get_by_role("button", name="Stop").click()
    assert asked.left.wait(10)
    for node in routed.nodes:
        node._server.state.answers.clear()  # noqa: SLF001 - see above
