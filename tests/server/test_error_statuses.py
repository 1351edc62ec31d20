"""What the SDKs of clients make of a failure: on each API of Open WebUI, with each set of plugins."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import count
from typing import Any, Literal

import anthropic
import openai
import pytest
import requests

from deploy.client import OpenWebUI
from harness.fixtures_cache import share
from harness.fixtures_routing import NO_BACKGROUND
from harness.fixtures_webui import upload
from harness.ollama_node import Answer, Fault, Model, OllamaNode
from local.webui import Account, RunningWebUI, connections, open_webui

Json = dict[str, Any]
Api = Literal["openai", "openai v1", "anthropic"]

OLDEST = "0.11.2"
DIRECT = "qwen2.5:32b"  # on Open WebUI's own connection
ROUTED = "llama3:8b"  # on the router's nodes
PLUGINS = {
    "alias": ["model_alias_filter"],
    "cache": ["response_cache_filter", "response_cache_replay"],
    "router": ["gpu_router"],
}
PACK = """\
plugins: [model_alias_filter, response_cache_filter, response_cache_replay, gpu_router]
model_provider:
  endpoints:
    - {{name: gpu0, url: "{gpu0}", slots: 1}}
    - {{name: gpu1, url: "{gpu1}", slots: 1}}
  models:
    - {{name: gpt-4, local_name: "llama3:8b"}}
router: {{probe_seconds: 0.5, first_token_timeout: 20}}
"""
SETS = [
    frozenset(name for name, is_on in zip(PLUGINS, bits, strict=True) if is_on)
    for bits in [(a, c, r) for a in (True, False) for c in (True, False) for r in (True, False)]
]


@dataclass
class Failing:
    """Open WebUI with the pack, and what can fail behind it.

    Attributes:
        webui: the server.
        nodes: gpu0 and gpu1 of the router.
        direct: the node of Open WebUI's own connection.
        admin: the API as the admin.
        account: a plain user.
        installed: the plugins that are switched on.
    """

    webui: RunningWebUI
    nodes: tuple[OllamaNode, OllamaNode]
    direct: OllamaNode
    admin: OpenWebUI
    account: Account
    installed: frozenset[str] = frozenset(PLUGINS)
    _numbers: Iterator[int] = field(default_factory=lambda: count(10))

    def switch(self, wanted: frozenset[str]) -> None:
        """Have these sets of plugins switched on, and no others."""
        for name in self.installed ^ wanted:
            for plugin in PLUGINS[name]:
                self.admin.post(f"/api/v1/functions/id/{plugin}/toggle")
        if self.installed != wanted:
            self.admin.models(refresh=True)
        self.installed = wanted

    def set_router(self, **valves: Any) -> None:
        """Other valves: the router begins anew, and has learned nothing of its nodes."""
        stored, number = self.admin.valves("functions", "gpu_router"), next(self._numbers)
        other = {"max_queue": number, "first_token_timeout_seconds": 20 + number / 1000}
        new = {**stored, **other, **valves}
        self.admin.post("/api/v1/functions/id/gpu_router/valves/update", new)

    @property
    def model(self) -> str:
        """A name that the plugins which are switched on lead to an answer."""
        if "router" in self.installed:
            return "quick" if "alias" in self.installed else "gpt-4"
        return "fast" if "alias" in self.installed else DIRECT

    def line_up(self, *answers: Answer) -> None:
        """What the nodes that may be asked answer next: each of the router's gets one of these."""
        targets = self.nodes if "router" in self.installed else (self.direct,)
        for node, answer in zip(targets, answers, strict=False):
            node.enqueue(answer)


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Failing]:
    """The server, started once."""
    folder = tmp_path_factory.mktemp("failing")
    with (
        OllamaNode([Model(ROUTED)]) as gpu0,
        OllamaNode([Model(ROUTED)]) as gpu1,
        OllamaNode([Model(DIRECT)]) as direct,
        open_webui(folder, environment=connections(ollama=(direct.url,)) | NO_BACKGROUND) as webui,
    ):
        config = folder / "pack.yaml"
        config.write_text(PACK.format(gpu0=gpu0.url, gpu1=gpu1.url))
        done = upload(webui, str(config))
        assert done.returncode == 0, done.stdout + done.stderr
        admin = webui.as_admin()
        for model in (DIRECT, f"gpu_router.{ROUTED}"):
            share(admin, model)
        share(admin, "fast", base_model_id=DIRECT)
        share(admin, "quick", base_model_id=DIRECT)
        aliases = {"aliases": f"fast = {DIRECT}\nquick = {ROUTED}\ngone = missing:1b"}
        admin.post("/api/v1/functions/id/model_alias_filter/valves/update", aliases)
        share(admin, "gone", base_model_id=DIRECT)
        admin.models(refresh=True)
        yield Failing(webui, (gpu0, gpu1), direct, admin, webui.add_user("student", "student-password"))
        admin.close()


@pytest.fixture(autouse=True)
def fresh(failing: Failing) -> Iterator[None]:
    """Nodes without answers that another test has lined up."""
    yield
    for node in (*failing.nodes, failing.direct):
        node._server.state.answers.clear()  # noqa: SLF001 - the node offers no way to take answers back
        node.clear_faults()


@pytest.fixture(params=SETS, ids=lambda names: "+".join(sorted(names)) or "nothing")
def plugins(request: pytest.FixtureRequest, failing: Failing) -> frozenset[str]:
    """Each set of plugins, one after the other."""
    failing.switch(request.param)
    if "router" in request.param:
        failing.set_router()
    wanted: frozenset[str] = request.param
    return wanted


QUESTIONS = count()


def ask(failing: Failing, api: Api, *, stream: bool, model: str = "", token: str = "") -> str:
    """What the model answers, by way of the SDK; each time another question.

    Raises:
        Exception: what the SDK makes of a failure.
    """
    messages: Any = [{"role": "user", "content": f"question {next(QUESTIONS)}"}]
    name, key = model or failing.model, token or failing.account.token
    if api == "anthropic":
        client = anthropic.Anthropic(base_url=f"{failing.webui.url}/api", auth_token=key, max_retries=0)
        asked: Any = {"model": name, "max_tokens": 100, "messages": messages}
        with client:
            if not stream:
                made = client.messages.create(**asked)
                return "".join(block.text for block in made.content if block.type == "text")
            with client.messages.stream(**asked) as events:
                return "".join(events.text_stream)
    base = f"{failing.webui.url}/api" + ("/v1" if api == "openai v1" else "")
    with openai.OpenAI(base_url=base, api_key=key, max_retries=0) as client:
        if not stream:
            whole = client.chat.completions.create(model=name, messages=messages)
            return whole.choices[0].message.content or ""
        chunks = client.chat.completions.create(model=name, messages=messages, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def failure(failing: Failing, api: Api, *, stream: bool, **more: str) -> Any:
    """The SDK's exception."""
    family = anthropic.APIError if api == "anthropic" else openai.APIError
    with pytest.raises(family) as caught:
        ask(failing, api, stream=stream, **more)
    return caught.value


def message_of(error: Any) -> str:
    """The sentence in the body, where the API has it."""
    body = error.body
    is_anthropic = isinstance(error, anthropic.APIError)
    found = (body.get("error") or body) if is_anthropic and isinstance(body, dict) else body
    return str(found.get("message") or found.get("detail") or "")


APIS = pytest.mark.parametrize("api", ["openai", "openai v1", "anthropic"])
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])

# What the nodes do → the status where the router answers, and where Open WebUI's own connection does.
FAILURES = {
    "refused": ([(400, "this prompt is too long"), (400, "this prompt is too long")], 400, 400),
    "failed": ([(500, "out of memory"), (500, "the runner has ended")], 502, 500),
    "busy": ([(503, "server busy"), (503, "server busy")], 503, 503),
}


@APIS
@STREAMED
@pytest.mark.parametrize("what", FAILURES)
def test_a_failure_is_the_sdk_s_own_exception(
    failing: Failing, plugins: frozenset[str], api: Api, what: str, *, stream: bool
) -> None:
    """Would catch a failure that comes as an answer, or whose status makes a client do the wrong thing."""
    said, routed, direct = FAILURES[what]
    failing.line_up(*(Answer(refusal=refusal) for refusal in said))
    error = failure(failing, api, stream=stream)
    is_routed = "router" in plugins
    expected = routed if is_routed else direct
    if not is_routed and "cache" not in plugins and version("open-webui") == OLDEST:
        expected = 400  # its own way, in which the pack has no part
    assert (type(error).__name__, error.status_code) == (NAMES[expected], expected)
    assert ("retry-after" in error.response.headers) == (is_routed and expected == 503)
    assert message_of(error)
    assert "127.0.0.1" not in message_of(error)
    if what == "refused":
        assert "this prompt is too long" in message_of(error)


NAMES = {
    400: "BadRequestError",
    404: "NotFoundError",
    429: "RateLimitError",
    **dict.fromkeys((500, 502, 503, 504), "InternalServerError"),
}


@APIS
@STREAMED
def test_an_answer_is_an_answer(failing: Failing, plugins: frozenset[str], api: Api, *, stream: bool) -> None:
    """Would catch an answer that is held back, cut or changed on its way past the errors."""
    failing.line_up(*[Answer(["It ", "is ", "fine"])] * 2)
    assert ask(failing, api, stream=stream) == "It is fine"
    assert plugins == failing.installed


@APIS
def test_a_break_in_the_middle_is_raised(failing: Failing, plugins: frozenset[str], api: Api) -> None:
    """Would catch half an answer that a client takes for a whole one."""
    if "router" not in plugins:
        pytest.skip("Open WebUI's own connection ends such a stream as if it was complete")
    failing.line_up(*[Answer(["Once ", "upon "], hangs_up=True)] * 2)
    assert message_of(failure(failing, api, stream=True))


EVERYTHING = frozenset(PLUGINS)


@APIS
@STREAMED
@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
class TestRouted:
    """Failures of a fleet, with the cache before it and without."""

    @pytest.fixture(autouse=True)
    def routed(self, failing: Failing, *, cache: bool) -> None:
        failing.switch(EVERYTHING if cache else EVERYTHING - {"cache"})

    def test_nodes_that_are_off(self, failing: Failing, api: Api, *, stream: bool) -> None:
        """Would catch clients that give up where waiting helps."""
        failing.set_router()
        assert ask(failing, api, stream=stream, model="gpt-4")
        for node in failing.nodes:
            node.stop()
        try:
            error = failure(failing, api, stream=stream, model="gpt-4")
        finally:
            for node in failing.nodes:
                node.start()
        assert error.status_code == 503
        assert error.response.headers["retry-after"] == "10"
        assert "do not answer at the moment" in message_of(error)

    def test_a_model_that_is_gone(self, failing: Failing, api: Api, *, stream: bool) -> None:
        """Would catch clients that ask again and again for what is not there."""
        error = failure(failing, api, stream=stream, model="gone")
        assert error.status_code == 404
        assert "`" not in message_of(error)
        assert "missing:1b" not in message_of(error)
        told = failure(failing, api, stream=stream, model="gone", token=failing.webui.admin.token)
        assert "missing:1b" in message_of(told)

    def test_a_node_that_says_nothing(self, failing: Failing, api: Api, *, stream: bool) -> None:
        """Would catch a node's silence that is taken for the client's fault."""
        failing.set_router(first_token_timeout_seconds=1)
        for node in failing.nodes:  # with the model in memory: a load would be waited for
            loaded = requests.post(f"{node.url}/api/chat", json={"model": ROUTED}, timeout=30)
            assert loaded.ok
            node.command(Fault("hang", path="/api/chat"))
        error = failure(failing, api, stream=stream, model="gpt-4")
        assert error.status_code == 504
        assert "did not begin to answer in time" in message_of(error)

    def test_a_full_queue(self, failing: Failing, api: Api, *, stream: bool) -> None:
        """Would catch a refusal for want of places that clients do not retry."""
        failing.set_router(max_queue=1)
        for node in failing.nodes:
            node.command(Fault("slow", path="/api/chat", seconds=3.0))

        def one() -> None:
            ask(failing, "openai", stream=False, model="gpt-4")

        others = [threading.Thread(target=one) for _ in range(3)]
        before = sum(len(node.requests) for node in failing.nodes)
        for other in others:
            other.start()
        waiting = threading.Event()
        while sum(len(node.requests) for node in failing.nodes) < before + 2:
            waiting.wait(0.02)
        waiting.wait(0.3)
        error = failure(failing, api, stream=stream, model="gpt-4")
        for other in others:
            other.join()
        assert error.status_code == 429
        assert error.response.headers["retry-after"] == "10"
