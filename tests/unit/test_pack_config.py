"""pack.yaml: what is read from it, and that the alias table says the same."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deploy.config import Alias, PackConfig, load_config
from deploy.errors import ConfigError
from deploy.plugin import load_plugin
from deploy.shown import HIDDEN, SECRETS
from deploy.valves import function_valves
from ollama_pack.aliases.errors import AliasTableError
from ollama_pack.aliases.table import AliasRow, parse_table
from upload import ignored_sections

ROOT = Path(__file__).parents[2]
ARTICLE = """\
model_provider:
  type: ollama
  endpoint: http://localhost:11434
  models:
    - name: gpt-3.5-turbo
      local_name: llama3:8b
    - name: gpt-4
      local_name: llama3:70b
"""
CONTRACT = """\
model_provider:
  type: ollama
  endpoint: http://localhost:11434        # or endpoints: [{name, url, kind, weight, tier, slots, agent}, …]
  models:
    - {name: gpt-3.5-turbo, local_name: "llama3:8b"}
    - {name: gpt-4, local_name: ["mixtral:8x7b", "llama3:70b-instruct-q4_K_M"], audience: public}
cache:  {url: "redis://localhost:6379/0", ttl: 3600, scope: user}
router: {max_queue: 64, first_token_timeout: 120}
voice:  {engine: faster_whisper, model: base, language: zh-CN}
"""
NODES = """\
model_provider:
  endpoints:
    - {name: gpu0, url: "http://gpu0:11434", weight: 2, tier: 1, slots: 4, agent: "http://gpu0:9400"}
    - {url: "https://vllm:8000", kind: openai, key: secret, weight: 0}
plugins: [model_alias_filter]
models:
  - name: gpt-4
    local_name: llama3:70b
    audience: [admin, "group:staff"]
    when: {vision: true, tools: true, context: 8192, groups: [staff, night shift]}
    quantization: [q8_0, q4_K_M]
"""


def load(folder: Path, text: str) -> PackConfig:
    file = folder / "pack.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config(file)


def test_form_of_the_article(tmp_path: Path) -> None:
    """Would catch a pack that does not take the file which its users have read about."""
    config = load(tmp_path, ARTICLE)
    assert config.alias_text == "gpt-3.5-turbo = llama3:8b\ngpt-4 = llama3:70b"
    assert [node.url for node in config.nodes] == ["http://localhost:11434"]
    assert config.audience("gpt-4") == {"public"}


def test_form_of_the_contract(tmp_path: Path) -> None:
    """Would catch a key of the contract that is no longer known."""
    config = load(tmp_path, CONTRACT)
    assert config.alias_text.splitlines()[1] == "gpt-4 = mixtral:8x7b, llama3:70b-instruct-q4_K_M"
    assert config.cache
    assert (config.cache.url, config.cache.ttl, config.cache.scope) == (
        "redis://localhost:6379/0",
        3600,
        "user",
    )
    assert config.router
    assert (config.router.max_queue, config.router.first_token_timeout) == (64, 120)
    assert config.voice
    assert (config.voice.engine, config.voice.model, config.voice.language) == (
        "faster_whisper",
        "base",
        "zh-CN",
    )


def test_everything_that_may_be_said(tmp_path: Path) -> None:
    """Would catch an optional key that is refused or lost."""
    config = load(tmp_path, NODES)
    first, second = config.nodes
    assert (first.name, first.weight, first.tier, first.slots, first.agent) == (
        "gpu0",
        2,
        1,
        4,
        "http://gpu0:9400",
    )
    assert (second.kind, second.key, second.slots, second.weight) == ("openai", "secret", None, 0)
    assert config.plugins == ["model_alias_filter"]
    assert config.audience("gpt-4") == {"admin", "group:staff"}
    conditions = "vision, tools, context>=8192, group=night shift|staff, quant=q8_0>q4_K_M"
    assert config.alias_text == f"gpt-4 = llama3:70b [{conditions}]"


def test_prometheus_token(tmp_path: Path) -> None:
    """Would catch a token of pack.yaml that does not reach its valve, or a valve that silence empties."""
    events = load_plugin(ROOT / "functions" / "ollama_pack_events.py")
    said = load(tmp_path, "metrics: {token: a-token-for-prometheus}")
    assert function_valves(events, said) == {"metrics_token": "a-token-for-prometheus"}
    assert function_valves(events, load(tmp_path, "cache: {}")) == {}
    assert SECRETS.mask("Bearer a-token-for-prometheus") == f"Bearer {HIDDEN}"


@pytest.mark.parametrize("text", ["", "# all by default\n", "---\n", "voice: {}\n"])
def test_nothing_said(tmp_path: Path, text: str) -> None:
    """Would catch a file of comments that is refused, though everything in it is optional."""
    config = load(tmp_path, text)
    assert (config.aliases, config.says_aliases, config.plugins) == ([], False, None)


@pytest.mark.parametrize("text", ["models: []", "model_provider: {models: []}"])
def test_no_aliases_on_purpose(tmp_path: Path, text: str) -> None:
    """Would catch an empty list that counts as silence, so that old aliases never go."""
    assert load(tmp_path, text).says_aliases


def test_audiences_of_one_alias_are_put_together(tmp_path: Path) -> None:
    """Would catch the last of several entries deciding alone who may use an alias."""
    rows = "- {name: a, local_name: b, audience: admin}\n- {name: a, local_name: c, when: {vision: true}}"
    assert load(tmp_path, f"models:\n{rows}").audience("a") == {"admin", "public"}


# Any text at all: what the file may hold is decided by the file's own rules.
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=6) | st.sampled_from(
    ["a b", "x:1b", "q4"]
)
entries = st.fixed_dictionaries(
    {"name": texts, "local_name": st.lists(texts, min_size=1, max_size=3)},
    optional={
        "when": st.fixed_dictionaries(
            {"vision": st.booleans(), "context": st.integers(0, 10**9 - 1)},
            optional={"groups": st.lists(texts, min_size=1, max_size=3)},
        ),
        "quantization": st.lists(texts, min_size=1, max_size=3),
    },
)


@given(entries)
def test_table_says_what_the_file_says(entry: dict[str, Any]) -> None:
    """Would catch a name that reads as something else in the table: another model, a condition, a comment."""
    try:
        alias = Alias.model_validate(entry)
        (row,) = parse_table(alias.text).rows
    except (ValidationError, AliasTableError):
        return  # refused is as good
    when = entry.get("when", {})
    assert row == AliasRow(
        alias=entry["name"],
        candidates=tuple(entry["local_name"]),
        images=when.get("vision", False),
        min_tokens=when.get("context", 0),
        groups=frozenset(when.get("groups", ())),
        quantizations=tuple(entry.get("quantization", ())),
    )


def test_sections_without_a_plugin_are_named() -> None:
    """Would catch settings that are silently without effect."""
    said = {"cache": {"ttl": 60}, "voice": {"model": "base"}, "plugins": ["response_cache_filter"]}
    assert ignored_sections(PackConfig.model_validate(said)) == ["voice"]
    assert ignored_sections(PackConfig.model_validate({"voice": {}})) == []
    assert ignored_sections(PackConfig()) == []


def test_cache_section_becomes_valves() -> None:
    """Would catch a setting that does not reach its valve, or one that overwrites what an admin set."""
    said = {
        "url": "redis://r/0",
        "ttl": 60,
        "scope": "group",
        "when": "deterministic",
        "max_entry_kb": 8,
        "similar": "semantic",
    }
    config = PackConfig.model_validate({"cache": {**said, "secret": "a" * 16, "enabled": False}})
    assert config.cache_valves == {
        "redis_url": "redis://r/0",
        "ttl_seconds": 60,
        "scope": "group",
        "cache_when": "deterministic",
        "max_entry_kb": 8,
        "similar": "semantic",
        "secret": "a" * 16,
        "enabled": False,
    }
    assert PackConfig().cache_valves == {}
    assert PackConfig.model_validate({"cache": {}}).cache_valves == {}


@pytest.mark.parametrize(
    ("cache", "says"),
    [({"url": "http://r:hunter2@"}, "redis://"), ({"secret": "hunter2"}, "16 or more")],
)
def test_cache_that_cannot_be_is_refused_without_its_secret(cache: dict[str, str], says: str) -> None:
    """Would catch a wrong URL that is found out by the first chat, or a secret in what upload.py prints."""
    with pytest.raises(ValidationError) as refused:
        PackConfig.model_validate({"cache": cache})
    (error,) = refused.value.errors()
    assert says in error["msg"]
    assert "hunter2" not in error["msg"]


def test_the_example_is_valid() -> None:
    """Would catch a pack.example.yaml that the README's first command copies and the second one refuses."""
    config = load_config(Path(__file__).parents[2] / "pack.example.yaml")
    assert config.audience("gpt-4") == {"public"}
    assert {alias.name for alias in config.aliases} == {
        "gpt-3.5-turbo",
        "gpt-4",
        "gpt-4o",
        "gpt-4o-mini",
        "gpt-*",
    }


def test_voice_becomes_valves(tmp_path: Path) -> None:
    """Would catch a setting that does not reach the tool, or one that is not said and resets a valve."""
    file = tmp_path / "pack.yaml"
    file.write_text(
        "voice: {language: zh-CN, allow_download: true, microphone: 'http://a:1', audience: admin}\n"
    )
    voice = load_config(file).voice
    assert voice
    assert voice.valves == {"language": "zh-CN", "allow_download": True}
    assert (voice.microphone, voice.audience, voice.says_audience) == ("http://a:1", ["admin"], True)
    file.write_text("voice: {}\n")
    voice = load_config(file).voice
    assert voice
    assert (voice.valves, voice.says_audience) == ({}, False)


def test_an_endpoint_may_be_a_name_in_dns(tmp_path: Path) -> None:
    """Would catch nodes that DNS names refused in pack.yaml though the valve takes them, or taken unread."""
    file = tmp_path / "pack.yaml"
    text = "model_provider:\n  endpoints:\n    - {name: pool, url: dns+srv://_ollama._tcp.example.org}\n"
    file.write_text(text)
    assert load_config(file).router_valves["nodes"] == "pool dns+srv://_ollama._tcp.example.org"
    file.write_text(text.replace("_ollama._tcp.example.org", "nothing"))
    with pytest.raises(ConfigError, match="no name of a service"):
        load_config(file)
