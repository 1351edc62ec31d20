"""pack.yaml: every mistake is refused with its file, line and key, in one clear sentence."""

import re
from pathlib import Path

import pytest

from deploy.config import PackConfig, load_config
from deploy.errors import ConfigError

# The text of the file, the line, the key, and a part of the reason.
REFUSALS: dict[str, tuple[str, int, str, str]] = {
    "unknown key at the top": ("model: []", 1, "model", "is not a known key: correct it or take it out"),
    "unknown key of the provider": (
        "model_provider:\n  type: ollama\n  endpont: http://x",
        3,
        "model_provider.endpont",
        "is not a known key",
    ),
    "unknown key of an alias": (
        "models:\n- {name: a, local_name: b}\n- name: c\n  local_name: d\n  audiance: admin",
        5,
        "models.1.audiance",
        "is not a known key",
    ),
    "unknown condition": (
        "models:\n- {name: a, local_name: b, when: {audio: true}}",
        2,
        "models.0.when.audio",
        "is not a known key",
    ),
    "unknown key of an endpoint": (
        "model_provider:\n  endpoints:\n  - url: http://x\n    wieght: 2",
        4,
        "model_provider.endpoints.0.wieght",
        "is not a known key",
    ),
    "unknown key of the cache": ("cache:\n  tll: 5", 2, "cache.tll", "is not a known key"),
    "unknown key of the router": ("router:\n  queue: 5", 2, "router.queue", "is not a known key"),
    "unknown key of the voice": ("voice:\n  lang: en", 2, "voice.lang", "is not a known key"),
    "unknown language": ("voice:\n  language: tlh", 2, "voice.language", "is not known; valid: auto, zh-CN"),
    "microphone nowhere": ("voice:\n  microphone: here", 2, "voice.microphone", "it starts with http"),
    "key that is missing": ("models:\n- name: a", 2, "models.0.local_name", "is missing: add it"),
    "key twice": ("voice: {}\ncache: {}\nvoice: {}", 3, "voice", "stands in line 1 already: keep one"),
    "key twice, deeper": (
        "models:\n- name: a\n  local_name: b\n  name: c",
        4,
        "models.0.name",
        "stands in line 2 already",
    ),
    "audience of a wildcard": (
        'models:\n- {name: "gpt-*", local_name: b, audience: admin}',
        2,
        "models.0",
        "a name with a star publishes nothing, so it has no audience",
    ),
    "alias twice": (
        "models:\n- {name: a, local_name: b}\n- {name: a, local_name: c}",
        3,
        "models.1",
        "already answers 'a' in the same case",
    ),
    "alias in both lists": (
        "model_provider:\n  models:\n  - {name: a, local_name: b}\nmodels:\n- {name: a, local_name: c}",
        5,
        "models.0",
        "already answers 'a' in the same case",
    ),
    "cycle": (
        "models:\n- {name: a, local_name: b}\n- {name: b, local_name: a}",
        2,
        "models.0",
        "the alias leads back to itself: a → b → a",
    ),
    "number for text": (
        "models:\n- name: a\n  local_name: 3.5",
        3,
        "models.0.local_name.0",
        "must be text: put it between quotes (it is 3.5)",
    ),
    "number in a list of texts": (
        "models:\n- {name: 4, local_name: b}",
        2,
        "models.0.name",
        "must be text: put it between quotes (it is 4)",
    ),
    "nothing for a list": ("models:", 1, "models", "must be a list (it is empty)"),
    "empty list": (
        "models:\n- {name: a, local_name: []}",
        2,
        "models.0.local_name",
        "is empty: name at least one",
    ),
    "text for a section": ("cache: redis", 1, "cache", "must hold keys, each with a value (it is 'redis')"),
    "list for the file": ("- gpt-4", 1, "file", "must hold keys, each with a value"),
    "false for the file": ("false", 1, "file", "must hold keys, each with a value (it is False)"),
    "text for a number": ("cache: {ttl: soon}", 1, "cache.ttl", "must be a whole number"),
    "number out of range": (
        "router: {max_queue: 0}",
        1,
        "router.max_queue",
        "must be at least 1 (it is 0)",
    ),
    "unknown choice": ("cache: {scope: all}", 1, "cache.scope", "'user', 'group' or 'global' (it is 'all')"),
    "a token that could be guessed": (
        "metrics:\n  token: prometheus",
        2,
        "metrics.token",
        "it has 10 characters, and opens a route: take 16 or more",
    ),
    "address without a scheme": (
        "model_provider:\n  endpoint: localhost:11434",
        2,
        "model_provider.endpoint",
        "'localhost:11434' is no address: it starts with http:// or https://",
    ),
    "unknown audience": (
        "models:\n- {name: a, local_name: b, audience: everyone}",
        2,
        "models.0.audience.0",
        "'everyone' is no audience: write public, admin or group:NAME",
    ),
    "group without a name": (
        "models:\n- {name: a, local_name: b, audience: ['group:']}",
        2,
        "models.0.audience.0",
        "'group:' is no audience",
    ),
    "comma in a model": (
        "models:\n- {name: a, local_name: 'b,c'}",
        2,
        "models.0.local_name.0",
        "'b,c' cannot stand in an alias table: it is empty or has a space or one of , = [ ] # in it",
    ),
    "space in an alias": (
        "models:\n- {name: a b, local_name: c}",
        2,
        "models.0.name",
        "'a b' cannot stand in",
    ),
    "line break in an alias": (
        'models:\n- {name: "a\\u2028b", local_name: c}',
        2,
        "models.0.name",
        r"'a\u2028b' cannot stand in an alias table",
    ),
    "empty alias": ("models:\n- {name: '', local_name: b}", 2, "models.0.name", "'' cannot stand in"),
    "group that would be two": (
        "models:\n- {name: a, local_name: b, when: {groups: 'x, vision'}}",
        2,
        "models.0.when.groups.0",
        "'x, vision' cannot stand in an alias table",
    ),
    "level that would be two": (
        "models:\n- {name: a, local_name: b, quantization: q8_0>q4_0}",
        2,
        "models.0.quantization.0",
        "'q8_0>q4_0' cannot stand in an alias table",
    ),
    "star from nowhere": (
        "models:\n- {name: a, local_name: 'b*'}",
        2,
        "models.0",
        "the star in 'b*' has no star in the alias",
    ),
    "not YAML": ("models:\n- {name: a", 2, "YAML", "expected ',' or '}', but got '<stream end>'"),
    "tab": ("models:\n\t- a", 2, "YAML", r"found character '\t' that cannot start any token"),
    "control character": ("voice: {}\ncache: \x07", 2, "YAML", "may not stand in YAML: take it out"),
    "impossible date": ("plugins: [2024-13-01]", 1, "YAML", "goes between quotes"),
    "key that is a list": ("? [a, b]\n: c", 1, "YAML", "found unhashable key"),
    "program in YAML": (
        "cache: !!python/object:os.system {}",
        1,
        "YAML",
        "could not determine a constructor",
    ),
}


def load(folder: Path, text: str) -> PackConfig:
    file = folder / "pack.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config(file)


def problem(folder: Path, text: str) -> tuple[int, str, str]:
    """The only problem of a file, which its message gives as `FILE:LINE: KEY: REASON`."""
    with pytest.raises(ConfigError) as refused:
        load(folder, text)
    ((line, key, reason),) = refused.value.problems
    assert str(refused.value) == f"{folder}/pack.yaml:{line}: {key}: {reason}"
    return line, key, reason


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal(tmp_path: Path, case: str) -> None:
    """Would catch a mistake that is let through, or reported at another line, or in a programmer's words."""
    text, line, key, reason = REFUSALS[case]
    found_line, found_key, found_reason = problem(tmp_path, text)
    assert (found_line, found_key) == (line, key)
    assert reason in found_reason
    assert not re.search(r"\n|Value error|validation|PackConfig", found_reason)


def test_several_problems_at_once(tmp_path: Path) -> None:
    """Would catch an admin who has to run the script once for each mistake."""
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, "models:\n- {name: a}\ncache: {ttl: 0}\n")
    assert [(line, key) for line, key, _ in refused.value.problems] == [
        (2, "models.0.local_name"),
        (3, "cache.ttl"),
    ]
    assert len(str(refused.value).splitlines()) == 2


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Would catch a traceback for the most common mistake of all."""
    file = tmp_path / "pack.yaml"
    with pytest.raises(ConfigError) as refused:
        load_config(file)
    reason = "cannot be read (No such file or directory): name another file"
    assert str(refused.value) == f"{file}:1: file: {reason}"
    file.write_bytes("voice: {model: größe}".encode("latin-1"))
    with pytest.raises(ConfigError) as refused:
        load_config(file)
    assert str(refused.value) == f"{file}:1: file: is not UTF-8 text (byte 17): save it as UTF-8"
