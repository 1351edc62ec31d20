"""The instance of a plugin that runs: its code is read again when it may have changed, and not otherwise."""

import asyncio
import sys
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ollama_pack.webui.functions import FunctionState, live_function

LONG_AGO = time.time() - 1000


class Plugin:
    """What Open WebUI runs of a function."""

    valves = "as stored"


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[..., int]:
    """Look a function up, as the database has it; how often Open WebUI has read its code so far."""
    app: Any = SimpleNamespace(state=SimpleNamespace(FUNCTIONS={}))
    name, reads = request.node.name, []

    async def read(_request: Any, function_id: str) -> Plugin:
        reads.append(function_id)
        plugin: Plugin = app.state.FUNCTIONS.setdefault(function_id, Plugin())
        plugin.valves = "as stored"
        return plugin

    package, module = ModuleType("open_webui"), ModuleType("open_webui.functions")
    vars(module)["get_function_module_by_id"] = read
    monkeypatch.setitem(sys.modules, "open_webui", package)
    monkeypatch.setitem(sys.modules, "open_webui.functions", module)

    def look(*stamp: object, valves: str = "", reloaded: bool = False) -> int:
        if reloaded:
            app.state.FUNCTIONS[name] = Plugin()
        if valves:
            app.state.FUNCTIONS[name].valves = valves
        state = FunctionState(installed=True, active=True, stamp=stamp) if stamp else None
        found = asyncio.run(live_function(app, name, state))
        assert found is app.state.FUNCTIONS[name]
        assert found.valves == "as stored"
        return len(reads)

    return look


def test_code_that_has_not_changed_is_read_once(looked_up: Callable[..., int]) -> None:
    """Would catch a megabyte that is read each second."""
    assert [looked_up(LONG_AGO, "v1") for _ in range(3)] == [1, 1, 1]


def test_what_may_have_changed_is_read_again(looked_up: Callable[..., int]) -> None:
    """Would catch a plugin that goes on with old code or valves."""
    assert looked_up(LONG_AGO, "v1") == 1
    assert looked_up(LONG_AGO, "v2") == 2
    assert looked_up(LONG_AGO, "v2", valves="put back by a stream that began before") == 3
    assert looked_up(LONG_AGO, "v2", reloaded=True) == 4
    assert looked_up() == 5  # nobody knows its state


def test_what_has_just_changed_may_change_again_in_the_same_second(looked_up: Callable[..., int]) -> None:
    assert [looked_up(time.time(), "v1") for _ in range(2)] == [1, 2]
