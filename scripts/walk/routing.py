"""Routing: chats over simulated nodes, one of which is killed, and the load endpoint."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import requests

from deploy.shown import message
from local.simulation import SimulatedNodes
from local.webui import Account, RunningWebUI
from walk.steps import QUESTION, DemoError, Walk, openai_client

CHATS = 6


def show_routing(walk: Walk, webui: RunningWebUI, student: Account, nodes: SimulatedNodes) -> None:
    """Chats over the simulated nodes, one of which is switched off before it has begun to answer."""
    walk.step(message("gpt-4o-mini, over two nodes"), lambda: _routed(webui, student))
    walk.step(
        message("{count} chats at once, and a node is killed under them", count=CHATS),
        lambda: _outlive(webui, student, nodes),
    )
    walk.step(message("GET /api/system/load, as a plain user"), lambda: _load(webui, student))


def _routed(webui: RunningWebUI, account: Account) -> str:
    """Who answered, and why that one."""
    with openai_client(webui, account) as client:
        answer = client.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": QUESTION}], max_tokens=20
        )
    told = (answer.model_extra or {}).get("ollama_pack")
    if not told:
        raise DemoError(message("the answer does not say which node gave it"))
    return message("{node} answers: {reason}", node=told["node"], reason=told["reason"])


def _outlive(webui: RunningWebUI, account: Account, nodes: SimulatedNodes) -> str:
    """Kill a node while it loads the model that chats wait for, and see every one of them answered."""
    with ThreadPoolExecutor(CHATS) as pool:
        chats = [
            pool.submit(_answered_by, webui, account, f"Tell me story {number}.") for number in range(CHATS)
        ]
        victim = _loading(nodes)
        nodes.kill(victim)
        answered = Counter(chat.result() for chat in chats)
    nodes.start(victim)
    shares = ", ".join(
        message("{count} by {node}", count=count, node=node) for node, count in sorted(answered.items())
    )
    if victim in answered or answered.total() != CHATS:
        raise DemoError(
            message("{victim} was killed, and the answers came {shares}", victim=victim, shares=shares)
        )
    return message("{victim} was killed, and nobody noticed: {shares}", victim=victim, shares=shares)


def _loading(nodes: SimulatedNodes) -> str:
    """A node where chats wait for their first token, once there is one."""
    for _ in range(200):
        for name in nodes.urls:
            if any(request["ended"] is None for request in nodes.stats(name, last=CHATS)["requests"]):
                return name
        time.sleep(0.05)
    raise DemoError(message("no chat reached a node within ten seconds"))


def _answered_by(webui: RunningWebUI, account: Account, question: str) -> str:
    """The node that gave a whole streamed answer."""
    node = ""
    with openai_client(webui, account) as client:
        for chunk in client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": question}], max_tokens=20, stream=True
        ):
            node = ((chunk.model_extra or {}).get("ollama_pack") or {}).get("node", node)
    if not node:
        raise DemoError(message("{question!r} was not answered to the end", question=question))
    return str(node)


def _load(webui: RunningWebUI, account: Account) -> str:
    """The load endpoint's answer, in which a plain user sees no addresses."""
    headers = {"Authorization": f"Bearer {account.token}"}
    answer = requests.get(f"{webui.url}/api/system/load", headers=headers, timeout=10)
    if not answer.ok or "url" in answer.text:
        raise DemoError(message("answers {status}: {text}", status=answer.status_code, text=answer.text))
    return answer.text
