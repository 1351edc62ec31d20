"""What upload.py makes of the nodes in pack.yaml, and that no secret gets into what it prints."""

from pathlib import Path

import pytest

from deploy.config import load_config
from deploy.errors import ConfigError
from deploy.plan import valves_diff, without_secrets
from deploy.plugin import load_plugin
from deploy.valves import pipeline_valves
from ollama_pack.routing.nodes import parse_nodes

ROOT = Path(__file__).parents[2]


def write(folder: Path, text: str) -> Path:
    file = folder / "pack.yaml"
    file.write_text(text)
    return file


def test_endpoints_become_rows_of_the_valve(tmp_path: Path) -> None:
    """Would catch a setting that is lost between pack.yaml and the router, or a row that it cannot read."""
    file = write(
        tmp_path,
        "model_provider:\n"
        "  endpoints:\n"
        "  - {url: 'http://a:11434'}\n"
        "  - {name: big, url: 'http://b:11434', slots: 4, weight: 2, tier: 1, agent: 'http://b:9400'}\n"
        "  - {name: vllm, url: 'http://c:8000/v1', kind: openai, key: hush}\n"
        "  - {name: far, url: 'https://me:pw@d/ollama', headers: {X-Team: 'blue one', X-Key: a=b}}\n"
        "  - {name: k8s, url: 'http://e', kind: openai, placement: own, models: [qwen3, 'llama3:8b']}\n"
        "router: {max_queue: 9, first_token_timeout: 30, keep_alive: 1h, redis_url: 'redis://a:6379/1'}\n",
    )
    valves = load_config(file).router_valves
    first, second, third, far, gateway = parse_nodes(valves.pop("nodes"))
    assert (first.name, first.url, first.slots) == ("gpu0", "http://a:11434", None)
    assert (second.name, second.slots, second.weight, second.tier) == ("big", 4, 2.0, 1)
    assert second.agent == "http://b:9400"
    assert (third.kind, third.key) == ("openai", "hush")
    assert (far.url, far.login) == ("https://d/ollama", "me:pw")
    assert far.headers == (("X-Team", "blue one"), ("X-Key", "a=b"))
    assert (gateway.placement, gateway.models) == ("own", ("qwen3", "llama3:8b"))
    assert valves == {
        "max_queue": 9,
        "first_token_timeout_seconds": 30.0,
        "keep_alive": "1h",
        "redis_url": "redis://a:6379/1",
    }


@pytest.mark.parametrize("name", ["gpu_router", "response_cache_filter", "model_alias_filter"])
def test_a_pipeline_keeps_all_that_it_is_given(name: str, tmp_path: Path) -> None:
    """Would catch a valve of the function alone, which each upload would set again, and rows on two lines."""
    text = (
        "model_provider: {endpoint: 'http://a:11434'}\nmodels: [{name: x, local_name: y}]\n"
        "router: {several_workers: true, max_queue: 9}\n"
        "warm: {a: '07:00-08:00', b: '07:00-09:00'}\n"
        "cache: {ttl: 60, similar: normalised, similar_embedder: bge-m3}\n"
    )
    plugin = load_plugin(ROOT / "pipelines" / f"{name}.py")
    wanted = pipeline_valves(plugin, load_config(write(tmp_path, text)))
    assert plugin.valves
    assert wanted
    assert wanted.items() <= plugin.valves(**wanted).model_dump().items()
    assert "\n" not in "".join(map(str, wanted.values()))


def test_what_is_not_said_keeps_its_valve(tmp_path: Path) -> None:
    """Would catch an upload that resets what an admin has set by hand."""
    assert load_config(write(tmp_path, "router: {}\n")).router_valves == {}


@pytest.mark.parametrize(
    ("endpoints", "reason"),
    [
        ("[{name: a, url: 'http://x'}, {name: a, url: 'http://y'}]", "give it another name"),
        ("[{url: 'http://x'}, {url: 'http://x'}]", "has the same address"),
        ("[{name: 'a b', url: 'http://x'}]", "write it as"),
    ],
    ids=["same-name", "same-address", "bad-name"],
)
def test_nodes_that_the_router_would_refuse(tmp_path: Path, endpoints: str, reason: str) -> None:
    """Would catch an upload that stops half-way at the server's "error updating valves"."""
    file = write(tmp_path, f"model_provider:\n  endpoints: {endpoints}\n")
    with pytest.raises(ConfigError, match=reason) as error:
        load_config(file)
    assert "model_provider.endpoints" in str(error.value)


def test_secrets_are_left_out_of_differences() -> None:
    """Would catch a key or password in a CI log; and a change of one that shows no difference at all."""
    old = {"nodes": "a http://a key=one", "redis_url": "redis://u:pw1@r", "token": "t1", "n": 1}
    new = {"nodes": "a http://a key=two", "redis_url": "redis://u:pw2@r", "token": "t2", "n": 2}
    shown = "\n".join(valves_diff(old, new, {"token"}))
    for secret in ("one", "two", "pw1", "pw2", "t1", "t2"):
        assert secret not in shown.replace("(another one)", "")
    for valve in ("nodes", "redis_url", "token", "n"):
        assert f"+ {valve}:" in shown


def test_secrets_are_left_out_of_texts() -> None:
    """Would catch the key of a row that is refused."""
    assert without_secrets("gpu0 http://u:p@h:1 key=abc slots=2") == "gpu0 http://…@h:1 key=… slots=2"
