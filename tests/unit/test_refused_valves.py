"""Valves that a plugin refuses: the reason reaches admins, which Open WebUI's page does not show."""

import asyncio
from collections.abc import Iterator
from typing import Any, Literal
from uuid import uuid4

import pytest
from pydantic import Field, ValidationError

from ollama_pack.base.single_flight import process_wide
from ollama_pack.plugins.functions.gpu_router import Pipe
from ollama_pack.services.valves import PackValves, refused_report, refused_valves, tell_refused


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    process_wide("refused valves", dict[str, Any]).clear()
    process_wide("accepted valves", dict[str, int]).clear()


def loaded(valves: type[PackValves], plugin: str) -> type[PackValves]:
    """These valves as Open WebUI loads them: in a module that is named after the plugin."""
    made: type[PackValves] = type("Valves", (valves,), {"__module__": f"function_{plugin}_{uuid4().hex}"})
    return made


class Sample(PackValves):
    count: int = Field(default=1, ge=1, le=9)
    kind: Literal["a", "b"] = "a"


def refuse(valves: type[PackValves], **values: Any) -> None:
    with pytest.raises(ValidationError):
        valves(**values)


@pytest.mark.parametrize(
    ("values", "english", "chinese"),
    [
        ({"count": 0}, "count: must be at least 1", "count：不能小于 1"),
        (
            {"count": 10, "kind": "c"},
            "count: must be at most 9; kind: must be one of 'a' or 'b'",
            "不能大于 9；",
        ),
        ({"count": "x"}, "count: must be a whole number", "count：必须是整数"),
    ],
)
def test_the_reason_is_kept_in_both_languages(values: dict[str, Any], english: str, chinese: str) -> None:
    refuse(loaded(Sample, "my_router"), **values)
    (refused,) = refused_valves("en-US")
    assert (refused["plugin"], refused["reason"]) == ("my_router", english)
    assert chinese in refused_valves("zh-CN")[0]["reason"]
    (shown,) = asyncio.run(refused_report())["valves"]
    assert shown["plugin"] == "my_router"
    assert shown["said"]["en"] == english
    assert chinese in shown["said"]["zh-CN"]


def test_it_ends_when_other_valves_are_saved() -> None:
    """A reason that goes with the next chat, for which Open WebUI makes the stored valves; or that stays."""
    valves = loaded(Sample, "router")
    valves(count=2)
    refuse(valves, count=0)
    valves(count=2)
    assert refused_valves("en")
    valves(count=3)
    assert refused_valves("en") == []


def test_a_table_s_reason_without_its_secrets() -> None:
    valves = loaded(Pipe.Valves, "gpu_router")
    refuse(valves, nodes="gpu0 http://gpu0:11434 key=hunter2 slots=none")
    (refused,) = refused_valves("en")
    assert "slots" in refused["reason"]
    assert "hunter2" not in str(refused_valves("en"))


def test_an_admin_reads_it_once() -> None:
    """A line that plain users see, or that stands above every answer."""
    refuse(loaded(Sample, "router"), count=0)
    said = []

    async def emitter(event: dict[str, Any]) -> None:
        said.append(event["data"])

    for role in ("user", "admin", "admin"):
        asyncio.run(tell_refused(emitter, {"role": role}, "zh-CN"))
    assert said == [{"description": "router 的设置未被接受：count：不能小于 1", "done": True}]


def test_nothing_is_kept_outside_open_webui() -> None:
    refuse(Sample, count=0)
    assert refused_valves("en") == []
