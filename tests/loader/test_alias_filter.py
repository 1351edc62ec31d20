"""The loaded alias filter at its boundary: whatever goes wrong in it, the chat goes on."""

import asyncio
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loader.conftest import Loaded

FILE = Path(__file__).resolve().parents[2] / "functions" / "model_alias_filter.py"
USER = {"id": "1", "role": "admin"}
Load = Callable[[str, str, str], Loaded]


@pytest.fixture
def alias_filter(load: Load) -> Any:
    """The committed file, as Open WebUI loads it, with a table."""
    instance = load("functions", FILE.stem, FILE.read_text(encoding="utf-8")).instance
    instance.valves = instance.Valves(aliases="gpt-4 = llama3:8b")
    return instance


def request_with(models: object) -> SimpleNamespace:
    """What Open WebUI gives to a hook, as far as the filter looks at it."""
    return SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(MODELS=models)))


def inlet(alias_filter: Any, body: dict[str, Any], models: object, **metadata: Any) -> dict[str, Any]:
    answer: dict[str, Any] = asyncio.run(
        alias_filter.inlet(
            body, __user__=USER, __metadata__=metadata, __model__={}, __request__=request_with(models)
        )
    )
    return answer


def test_a_failure_inside_lets_the_chat_pass(alias_filter: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch a chat that fails because the filter does, or a failure that nobody is told of."""
    body = {"model": "gpt-4", "messages": []}
    with caplog.at_level(logging.ERROR):
        assert inlet(alias_filter, dict(body), models=None) == body
    assert [record.message for record in caplog.records] == [
        "The alias 'gpt-4' was not resolved, and the chat went on without it"
    ]


@pytest.mark.parametrize("model", [None, 7, ["gpt-4"], ""])
def test_odd_model_is_left_to_open_webui(alias_filter: Any, model: object) -> None:
    """Would catch a filter that fails on a body which Open WebUI itself has a word for."""
    assert inlet(alias_filter, {"model": model}, models={}) == {"model": model}


def test_a_users_own_connection_is_left_alone(alias_filter: Any) -> None:
    """Would catch an alias that takes over a model of the user's own (direct) connection."""
    assert inlet(alias_filter, {"model": "gpt-4"}, {"llama3:8b": {}}, direct=True) == {"model": "gpt-4"}


def test_state_is_not_kept_in_the_instance(alias_filter: Any) -> None:
    """Would catch one request's choice leaking into another's: an instance serves all requests at once."""
    before = dict(vars(alias_filter))
    assert inlet(alias_filter, {"model": "gpt-4"}, {"llama3:8b": {}}) == {"model": "llama3:8b"}
    assert vars(alias_filter) == before


@pytest.mark.parametrize(
    ("role", "for_admins", "for_all", "reads_all"),
    [
        ("admin", True, False, True),
        ("admin", False, False, False),
        ("admin", False, True, True),
        ("user", True, False, False),
        ("user", False, True, True),
    ],
)
def test_open_webuis_switches_of_access_hold(  # noqa: PLR0913 - a table
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
    role: str,
    *,
    for_admins: bool,
    for_all: bool,
    reads_all: bool,
) -> None:
    """Would catch an alias that gives an admin a model which Open WebUI refuses without its switches."""
    names = load("functions", FILE.stem, FILE.read_text(encoding="utf-8")).names
    config = SimpleNamespace(BYPASS_ADMIN_ACCESS_CONTROL=for_admins)  # the real one opens a database
    monkeypatch.setitem(sys.modules, "open_webui.config", config)
    monkeypatch.setattr("open_webui.env.BYPASS_MODEL_ACCESS_CONTROL", for_all)
    assert names["reads_all"]({"role": role}) == reads_all
