"""The contract tests see a node in the same way whether it is scripted or real."""

from collections.abc import Iterator

import pytest
import requests

from harness.fixtures_ollama import RealServer
from harness.node_contract import MODELS, THINKING_TEMPLATE, TOOLS_TEMPLATE, Node, template_model
from harness.ollama_node import Answer, OllamaNode, ToolCall
from local import engine


@pytest.fixture
def http() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture(params=["scripted", "real"])
def node(request: pytest.FixtureRequest, http: requests.Session) -> Iterator[Node]:
    """Yield the scripted node, then the real one."""
    if request.param == "scripted":
        with OllamaNode(MODELS, gpu=False) as scripted:
            yield Node(scripted.url, MODELS[0].name, MODELS[1].name, http, scripted)
    else:
        real: RealServer = request.getfixturevalue("real_server")
        yield Node(real.url, real.model, real.other, http, ours=real.ours)


@pytest.fixture(scope="module")
def real_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run llama.cpp's server; its address ends in `/v1`, as an admin would write it."""
    try:
        with engine.engine(tmp_path_factory.mktemp("engine")) as url:
            yield url
    except engine.EngineMissingError as error:
        pytest.skip(str(error))


@pytest.fixture
def tools_model(node: Node) -> Iterator[str]:
    """Yield a model that can call tools and, on the scripted node, will."""
    with template_model(node, "contract-tools", TOOLS_TEMPLATE) as name:
        node.script(Answer(tool_calls=[ToolCall("get_weather", {"city": "Paris"})]))
        yield name


@pytest.fixture
def thinking_model(node: Node) -> Iterator[str]:
    """Yield a model that thinks before it answers."""
    with template_model(node, "contract-thinking", THINKING_TEMPLATE) as name:
        node.script(Answer(["Yes"], thinking=["I", " wonder", " why", " it", " is", " so", " late"]))
        yield name
