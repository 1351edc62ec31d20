"""No script prints a secret, nor a piece of one: each place of a secret, with each kind of mistake in it."""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

import doctor
import upload
from deploy.config import load_config
from deploy.errors import DeployError
from deploy.plan import valves_diff, without_secrets
from deploy.plugin import load_plugin
from deploy.shown import SECRETS, Secrets, shown_address
from local.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
PIECE = 5  # characters that nobody takes for chance
SECRET = "Zq7Xw9KpVt5Jm2Rb"
NUMBER = "918273645546372819"

# Where a secret is: the text of a file with the secret at `{}`.
PLACES = {
    "cache.secret": "cache:\n  secret: {}\n",
    "cache.url": "cache:\n  url: {}\n",
    "router.redis_url": "router:\n  redis_url: {}\n",
    "voice.api_key": "voice:\n  engine: openai_http\n  api_key: {}\n",
    "voice.base_url": "voice:\n  engine: openai_http\n  base_url: {}\n",
    "voice.microphone": "voice:\n  microphone: {}\n",
    "endpoint": "model_provider:\n  endpoint: {}\n",
    "endpoints.url": "model_provider:\n  endpoints:\n  - url: {}\n",
    "endpoints.key": "model_provider:\n  endpoints:\n  - url: http://127.0.0.1:9\n    key: {}\n",
    "endpoints.agent": "model_provider:\n  endpoints:\n  - url: http://127.0.0.1:9\n    agent: {}\n",
    "endpoints": "model_provider:\n  endpoints:\n  - {}\n",
    "section": "cache: {}\n",
    "elsewhere": "api_key: {}\n",
    "misspelt": "cache:\n  secrte: {}\n",
    "twice": "cache:\n  secret: {0}\n  secret: {0}\n",
    "with another mistake": "cache:\n  secret: {}\nmodels: 5\n",
}
# How it is written there: `S` is the secret, `N` one of digits alone.
MISTAKES = {
    "as it should be": "S",
    "quoted": "'S'",
    "number": "N",
    "negative": "-N",
    "float": "N.5",
    "octal": "0o7_S",
    "empty hexadecimal": "0x_S",
    "date": "2026-13-45 S",
    "too short": "'S2' ",
    "space": "S and S",
    "line break": '"S\\nS"',
    "control character": '"S\\x1b[31mS"',
    "row's settings": "'gpu0 http://127.0.0.1:9 key=S and S'",
    "comment": "'S #S'",
    "semicolon": "'S;S'",
    "list": "[S, S]",
    "mapping": "{S: S}",
    "nested": "{a: [{b: S}]}",
    "anchor": "*S",
    "tag": "!S S",
    "own tag": "!!python/object:S S",
    "percent": "%S",
    "back-tick": "`S",
    "unclosed": "'S",
    "unclosed list": "[S",
    "bad escape": '"S\\qS"',
    "user and password": "http://user:S@127.0.0.1:9",
    "token as user": "http://S@127.0.0.1:9",
    "password of digits": "http://user:N@127.0.0.1:9",
    "no scheme": "user:S@127.0.0.1:9",
    "wrong scheme": "htp://user:S@127.0.0.1:9",
    "one slash": "http:/user:S@127.0.0.1:9",
    "no slashes": "redis:S@127.0.0.1",
    "no scheme, no host": ":S@",
    "slash in it": "http://user:S/S@127.0.0.1:9",
    "at in it": "http://user:S@S@127.0.0.1:9",
    "hash in it": "'http://user:S#S@127.0.0.1:9'",
    "question mark in it": "'http://user:S?S@127.0.0.1:9'",
    "space in it": "'http://user:S S@127.0.0.1:9'",
    "percent-encoded": "http://user:S%2FS%zz@127.0.0.1:9",
    "in the query": "'http://127.0.0.1:9/?token=S'",
    "as the port": "http://127.0.0.1:S",
    "redis": "redis://:S@127.0.0.1:9/0",
    "redis with a database that is none": "redis://:S@127.0.0.1:9/S",
    "redis with an option that is none": "'redis://127.0.0.1:9/0?password=S&socket_timeout=S'",
    "redis without slashes": "redis:S@127.0.0.1:9/0",
    "sentinel": "'redis+sentinel://u:S@127.0.0.1:9,127.0.0.1/svc?sentinel_password=S'",
    "sentinel without a service": "'redis+sentinel://u:S@127.0.0.1:9?sentinel_password=S'",
    "sentinel with a port that is none": "'redis+sentinel://u:S@127.0.0.1:S/svc'",
    "cluster": "'rediss+cluster://u:S@127.0.0.1:9,127.0.0.1:9'",
    "cluster without a host": "'redis+cluster://u:S@'",
    "scheme that is none": "reddis://u:S@127.0.0.1",
}


def pieces(secret: str) -> Iterator[str]:
    yield from (secret[start : start + PIECE] for start in range(len(secret) - PIECE + 1))


def leaks(text: str) -> list[str]:
    """The pieces of the secrets that are in a text."""
    return [piece for secret in (SECRET, NUMBER) for piece in pieces(secret) if piece in text]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not there, and nothing that is known from another test."""
    for name in ("OPEN_WEBUI_URL", "OPEN_WEBUI_TOKEN", "OPEN_WEBUI_EMAIL", "OPEN_WEBUI_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    for name in ("PIPELINES_URL", "PIPELINES_API_KEY", "PIPELINES_DIR"):
        monkeypatch.delenv(name, raising=False)
    SECRETS.forget()


@pytest.mark.parametrize("place", PLACES)
def test_pack_yaml(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a mistake in or near a secret that puts it, or a half of it, on the screen."""
    monkeypatch.setenv("OPEN_WEBUI_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OPEN_WEBUI_TOKEN", "any-token")
    monkeypatch.setattr(doctor, "REDIS_SECONDS", 0.2)
    file = tmp_path / "pack.yaml"
    for number, (mistake, written) in enumerate(MISTAKES.items(), start=list(PLACES).index(place)):
        value = "".join({"S": SECRET, "N": NUMBER}.get(letter, letter) for letter in written)
        file.write_text(PLACES[place].format(value))
        assert upload.main([str(file), "--dry-run"]) in {0, 1}, mistake
        doctor.main([str(file), *([] if number % 2 else ["--json"])])
        shown = capsys.readouterr()
        assert not leaks(shown.out + shown.err), (mistake, shown)
        assert "Traceback" not in shown.err
        assert "\x1b" not in shown.out + shown.err


def test_what_would_be_set(tmp_path: Path) -> None:
    """Would catch the diff of a dry run with a secret in it, in whatever part of an address."""
    file = tmp_path / "pack.yaml"
    plugins = ("response_cache_filter", "gpu_router")
    secrets = {plugin: load_plugin(ROOT / "functions" / f"{plugin}.py").secret_valves for plugin in plugins}
    for place, written in product(PLACES, MISTAKES.values()):
        value = "".join({"S": SECRET, "N": NUMBER}.get(letter, letter) for letter in written)
        file.write_text(PLACES[place].format(value))
        try:
            config = load_config(file)
        except DeployError:
            continue
        for plugin, secret in secrets.items():
            valves = config.cache_valves if plugin == "response_cache_filter" else config.router_valves
            assert not leaks("\n".join(valves_diff({}, valves, secret))), (place, written)
            assert not leaks("\n".join(valves_diff(valves, {}, secret))), (place, written)


# Stored valves that an admin may have typed on the server's page.
STORED = [
    ("functions/gpu_router", "nodes", "gpu0 http://gpu0:11434 key=S and S"),
    ("functions/gpu_router", "nodes", "gpu0 http://user:S@gpu0:11434 colour=red"),
    ("functions/gpu_router", "nodes", "gpu0 http://gpu0:11434 key = S"),
    ("functions/gpu_router", "nodes", "gpu0 http://gpu0:11434 agent=http://u:S@gpu0 key=N slots=no"),
    ("functions/gpu_router", "redis_url", "redis:S@host"),
    ("functions/gpu_router", "redis_url", 918273645546372819),
    ("functions/response_cache_filter", "redis_url", "redis:/:S@host"),
    ("functions/response_cache_filter", "redis_url", "redis://:S/S@host"),
    ("functions/response_cache_filter", "secret", "Zq7Xw9KpV"),
    ("functions/response_cache_filter", "secret", ["S"]),
    ("functions/ollama_pack_events", "microphone_key", "Zq7Xw9KpV"),
    ("tools/voice_transcription", "base_url", "http:/user:S@host"),
    ("tools/voice_transcription", "api_key", {"a": "S"}),
    ("pipelines/gpu_router", "nodes", "gpu0 http://gpu0:11434 key=S and S; gpu1 http://u:S@g"),
    ("pipelines/response_cache_filter", "redis_url", "S"),
]


ALONGSIDE = {"base_url": {"engine": "openai_http"}}  # without which a valve is not looked at


@pytest.mark.parametrize(("plugin", "valve", "value"), STORED)
def test_stored_valves_that_are_refused(plugin: str, valve: str, value: object) -> None:
    """Would catch a refusal of stored valves that shows what the server keeps hidden."""
    text = json.dumps(value).replace("S", SECRET).replace("N", NUMBER)
    loaded = load_plugin(ROOT / f"{plugin}.py")
    with pytest.raises(DeployError) as refused:
        loaded.check_valves({valve: json.loads(text)} | ALONGSIDE.get(valve, {}))
    assert not leaks(str(refused.value)), str(refused.value)
    assert valve in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPEN_WEBUI_TOKEN", f"{SECRET} {SECRET}"),
        ("OPEN_WEBUI_TOKEN", f"{SECRET}…"),
        ("OPEN_WEBUI_URL", f"http://admin:{SECRET}@127.0.0.1:9"),
        ("OPEN_WEBUI_URL", f"admin:{SECRET}@127.0.0.1:9"),
        ("OPEN_WEBUI_URL", f"http://127.0.0.1:{SECRET}"),
        ("OPEN_WEBUI_URL", f"http://127.0.0.1:9/?token={SECRET}"),
        ("PIPELINES_API_KEY", f"{SECRET}\n"),
        ("PIPELINES_API_KEY", f"{SECRET}\x1b[2J"),
        ("PIPELINES_URL", f"http://:{SECRET}@127.0.0.1:9"),
    ],
)
def test_environment(
    tmp_path: Path, name: str, value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a token, key or password of the environment on the screen."""
    dead = f"http://127.0.0.1:{free_port()}"
    for variable, usual in {
        "OPEN_WEBUI_URL": dead,
        "OPEN_WEBUI_TOKEN": "any-token",
        "PIPELINES_URL": dead,
        "PIPELINES_API_KEY": "any-key",
    }.items():
        monkeypatch.setenv(variable, usual)
    monkeypatch.setenv(name, value)
    (tmp_path / "pack.yaml").write_text("plugins: []")
    assert upload.main([str(tmp_path / "pack.yaml")]) == 1
    assert doctor.main([str(tmp_path / "pack.yaml")]) == 1
    shown = capsys.readouterr()
    assert not leaks(shown.out + shown.err), shown
    assert "\x1b" not in shown.out + shown.err


def test_secrets_in_other_writings() -> None:
    """Would catch a secret that a server echoes as JSON, Python or a URL writes it."""
    secrets = Secrets()
    secrets.add('a"b/c d\\é')
    for echoed in ('a"b/c d\\é', json.dumps('a"b/c d\\é'), repr('a"b/c d\\é'), "a%22b%2Fc%20d%5C%C3%A9"):
        masked = secrets.mask(f"<{echoed}>")
        assert "b/c" not in masked
        assert "b%2Fc" not in masked


def test_addresses_that_are_shown() -> None:
    """Would catch an admin left without the address that is wrong, where it holds nothing secret."""
    assert shown_address("localhost:11434") == "localhost:11434"
    assert shown_address("https://user:word@chat.example/webui?x=y") == "https://chat.example/webui"
    assert shown_address("user:word@chat.example") == "…"
    assert without_secrets("gpu0 http://gpu0:11434 key=abc slots=2") == "gpu0 http://gpu0:11434 key=… slots=2"
