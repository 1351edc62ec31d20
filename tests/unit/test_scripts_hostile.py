"""Scripts against servers that are not what they should be: one sentence, soon, nothing smuggled in."""

import copy
import gzip
import itertools
import json
import random
import re
import resource
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import doctor
import upload
from deploy import web
from deploy.client import OpenWebUI
from deploy.config import load_config
from deploy.errors import ConfigError, UnreachableError
from deploy.plugin import AUTHOR
from deploy.shown import SECRETS
from harness.certificates import self_signed
from harness.hostile_server import Answer, HostileServer, http_answer, json_answer
from planning.nodes import look_at

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "sk-Qx81vRtokenZz"
SECONDS = 0.5  # in place of a minute
LONG = 20.0  # for a whole run of a script, on a busy machine
PACK = """\
plugins: [model_alias_filter, ollama_pack_events, voice_transcription]
model_provider:
  endpoints:
  - {{url: "{url}", agent: "{url}"}}
  - {{url: "{url}/second", kind: openai, key: node-key-Qx81vR}}
models:
- {{name: gpt-4, local_name: "llama3:8b", audience: "group:staff"}}
voice: {{microphone: true, engine: openai_http, base_url: "{url}/v1"}}
"""
EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\ndone: everything\u202e\u2028\x00 it is well"


def forever(first: bytes, piece: bytes, pause: Callable[[], None] = lambda: None) -> Iterator[bytes]:
    yield first
    for part in itertools.repeat(piece):
        pause()
        yield part


def drip(server: list[HostileServer], answer: bytes) -> Iterator[bytes]:
    for number in range(len(answer)):
        server[0].wait(0.3)
        yield answer[number : number + 1]


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
GZIP = gzip.compress(b" " * 100 * 2**20)

# Kind of answer → what is sent, to whatever is asked.
ANSWERS: dict[str, Callable[[list[HostileServer]], Answer]] = {
    "HTML": lambda _: http_answer(b"<html><title>Login</title>", Content_Type="text/html"),
    "HTML 500": lambda _: http_answer(b"<html><title>" + EVIL.encode() + b"</title>", "502 Bad Gateway"),
    "evil words": lambda _: json_answer({"detail": EVIL}, "400 Bad Request"),
    "evil reason": lambda _: http_answer(b"", "500 " + EVIL.replace("\r\n", "")),
    "evil text": lambda _: http_answer(EVIL.encode(), "403 Forbidden", Content_Type="text/plain"),
    "nested detail": lambda _: json_answer({"detail": [{"msg": EVIL}] * 1000}, "422 Unprocessable"),
    "token echoed": lambda _: json_answer({"detail": f"bad token {TOKEN}"}, "401 Unauthorized"),
    "nothing": lambda _: b"",
    "no HTTP": lambda _: b"SSH-2.0-OpenSSH_9.6\r\n",
    "empty": lambda _: http_answer(b""),
    "no content": lambda _: b"HTTP/1.1 204 No Content\r\n\r\n",
    "not modified": lambda _: b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "status 999": lambda _: http_answer(b"{}", "999 Odd"),
    "cut off": lambda _: HEAD + b"Content-Length: 1000\r\n\r\n{",
    "huge length": lambda _: HEAD + b"Content-Length: 99999999999999999999\r\n\r\n{}",
    "bad length": lambda _: HEAD + b"Content-Length: many\r\n\r\n{}",
    "redirect elsewhere": lambda _: http_answer(b"", "307 Go", Location="http://127.0.0.1:9/\x1b[31m"),
    "redirect with login": lambda _: http_answer(b"", "302 Go", Location="http://u:pw-Qx81vR@evil.example/x"),
    "redirect to nowhere": lambda _: http_answer(b"", "301 Go", Location="javascript:alert(1)"),
    "endless body": lambda _: forever(HEAD + b"\r\n", b"[" * 65536),
    "endless text": lambda _: forever(b"HTTP/1.1 500 Oh\r\n\r\n", b"x" * 65536),
    "endless chunks": lambda _: forever(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\n[1,2,\r\n"),
    "endless chunk head": lambda _: forever(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 65536),
    "endless headers": lambda _: forever(HEAD, b"X-Header: yes\r\n"),
    "endless header": lambda _: forever(HEAD + b"X: ", b"x" * 65536),
    "endless 100": lambda server: forever(
        b"", b"HTTP/1.1 100 Continue\r\n\r\n", lambda: server[0].wait(0.001)
    ),
    "slow": lambda server: drip(server, json_answer({"version": "0.12.4"})),
    "slow body": lambda server: forever(HEAD + b"\r\n", b" ", lambda: server[0].wait(0.3)),
    "silent": lambda server: forever(b"", b"", lambda: server[0].wait(30)),
    "gzip bomb": lambda _: http_answer(GZIP, Content_Encoding="gzip"),
    "gzip of gzip": lambda _: http_answer(gzip.compress(GZIP), Content_Encoding="gzip, gzip"),
    "deflate": lambda _: http_answer(zlib.compress(b"{}"), Content_Encoding="deflate"),
    "brotli": lambda _: http_answer(b"\x0b\x00", Content_Encoding="br"),
    "deep": lambda _: http_answer(b"[" * 200_000 + b"]" * 200_000),
    "many": lambda _: http_answer(b"[" + b"[]," * 4_000_000 + b"1]"),
    "huge number": lambda _: http_answer(b"1" * 100_000),
    "no number": lambda _: http_answer(b'{"version": NaN}'),
    "not UTF-8": lambda _: http_answer(b'{"version": "\xff\xfe"}'),
    "UTF-16": lambda _: http_answer('{"version": "1"}'.encode("utf-16")),
    "odd charset": lambda _: http_answer(b"{}", Content_Type="application/json; charset=punycode"),
    "lone surrogate": lambda _: http_answer(b'{"detail": "\\ud800\\udfff\\ud800"}', "400 No"),
    "null": lambda _: json_answer(None),
    "list": lambda _: json_answer([1, "x", None]),
    "text": lambda _: json_answer(EVIL),
}


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    """Nothing is known from another test."""
    SECRETS.forget()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of half a second instead of a minute."""
    monkeypatch.setattr(web, "TIMEOUT_SECONDS", SECONDS)
    monkeypatch.setattr(doctor, "TIMEOUT_SECONDS", SECONDS)


def run(
    main: Callable[[list[str]], int], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Run a script in this process: an exception that it lets out fails the test."""
    status = main(arguments)
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert not [letter for letter in text if letter != "\n" and not letter.isprintable()], repr(text)
    for secret in (TOKEN, "node-key-Qx81vR", "pw-Qx81vR"):
        assert secret not in text
    assert len(text) < 2_000_000
    return status, text


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[HostileServer], str]:
    """Point the scripts at a server; gives the path of pack.yaml."""

    def point(server: HostileServer) -> str:
        for name in ("OPEN_WEBUI_URL", "PIPELINES_URL"):
            monkeypatch.setenv(name, server.url)
        monkeypatch.setenv("OPEN_WEBUI_TOKEN", TOKEN)
        monkeypatch.setenv("PIPELINES_API_KEY", TOKEN)
        monkeypatch.delenv("PIPELINES_DIR", raising=False)
        (tmp_path / "pack.yaml").write_text(PACK.format(url=server.url))
        return str(tmp_path / "pack.yaml")

    return point


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.usefixtures("soon")
def test_answers(
    kind: str, asked: Callable[[HostileServer], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a traceback, an escape sequence, a wait without end, or memory that a server decides on."""
    servers: list[HostileServer] = []
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with HostileServer(lambda *_: ANSWERS[kind](servers)) as server:
        servers.append(server)
        config = asked(server)
        for arguments in ([config, "--dry-run"], ["--remove"]):
            began = time.monotonic()
            status, text = run(upload.main, arguments, capsys)
            assert status == 1
            assert len(text.strip().splitlines()) == 1, text
            assert time.monotonic() - began < LONG
        began = time.monotonic()
        status, text = run(doctor.main, [config, "--json"], capsys)
        assert status == 1
        assert {"state", "subject", "text", "remedy"} == set(json.loads(text)[0])
        assert time.monotonic() - began < LONG
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown < 600 * 1024, f"{grown / 1024:.0f} MiB"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_token_does_not_follow_a_redirect(
    status: int, asked: Callable[[HostileServer], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a key that is handed to whatever host a server names."""
    with HostileServer(lambda *_: json_answer({})) as thief:
        sent = http_answer(b"", f"{status} Go", Location=f"{thief.url}/elsewhere")
        with HostileServer(lambda *_: sent) as server:
            config = asked(server)
            for main in (upload.main, doctor.main):
                found, text = run(main, [config], capsys)
                assert found == 1
                assert f"sends us on to {thief.url}" in text
        assert thief.heads == []


@pytest.mark.parametrize(
    ("location", "advice"),
    [
        (
            "https://chat.example/{path}",
            "sends us on to https://chat.example: give that as Open WebUI's address",
        ),
        (
            "//chat.example/{path}?a=b",
            "sends us on to http://chat.example: give that as Open WebUI's address",
        ),
        (
            "https://sso.example/login?rd=%2F{path}",
            "sends us on to https://sso.example/login: it seems to be",
        ),
        (
            "/oauth2/sign_in",
            "/oauth2/sign_in: it seems to be the login page of something in front of Open WebUI",
        ),
    ],
)
def test_a_login_page_in_front(
    location: str,
    advice: str,
    asked: Callable[[HostileServer], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Would catch the advice to give the address of a login page as Open WebUI's."""

    def sent(_: str, path: str) -> Answer:
        return http_answer(b"", "302 Found", Location=location.format(path=path.removeprefix("/")))

    with HostileServer(sent) as server:
        status, text = run(upload.main, [asked(server), "--dry-run"], capsys)
        assert status == 1
        assert advice in text


def test_a_proxy_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a question whether the server is running where a proxy is not."""
    monkeypatch.setenv("http_proxy", "http://me:pw-Qx81vR@127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(UnreachableError) as caught:
        OpenWebUI("http://chat.example", TOKEN).require_admin()
    text = str(caught.value)
    assert "(the proxy http://127.0.0.1:9 does not let us through: Connection refused): start or" in text
    assert "is it running" not in text
    assert "Qx81vR" not in text


def test_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch scraps of OpenSSL in place of what is wrong, and advice that does not work."""
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with HostileServer(lambda *_: json_answer({}), tls=context) as server:
        with pytest.raises(
            UnreachableError, match=r"^its certificate is not accepted: self.signed"
        ) as caught:
            web.fetch("GET", server.url)
        assert "set REQUESTS_CA_BUNDLE" in caught.value.remedy
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert web.fetch("GET", server.url).ok
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))
        with pytest.raises(UnreachableError, match=r"REQUESTS_CA_BUNDLE .* names a file that is not there"):
            web.fetch("GET", server.url)
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with (
        HostileServer(lambda *_: json_answer({})) as server,
        pytest.raises(UnreachableError, match=r"^no HTTPS connection is made: "),
    ):
        web.fetch("GET", server.url.replace("http:", "https:"))


GRANTS = [{"principal_type": "user", "principal_id": "*", "permission": "read"}]
MARK = {"kind": "base", "id": "llama3:8b", "by": "ollama_pack_events", "grants": GRANTS}
ROW: dict[str, Any] = {
    "id": "llama3:8b",
    "name": "llama3:8b",
    "base_model_id": None,
    "is_active": True,
    "meta": {"description": None, "ollama_pack": MARK},
    "params": {},
    "access_grants": GRANTS,
}
PLUGIN: dict[str, Any] = {
    "id": "ollama_pack_events",
    "name": "Events",
    "content": "x",
    "is_active": True,
    "is_global": False,
    "meta": {"description": "", "manifest": {"author": AUTHOR, "version": "0.1.0"}},
    "access_grants": [],
}
STT = {"ENGINE": "openai", "OPENAI_API_BASE_URL": "http://x/api/voice/v1", "OPENAI_API_KEY": "x"}
VALVES = {"microphone_key": "0123456789abcdef0", "microphone_before": '{"ENGINE": "web"}'}
# What a real Open WebUI and a real Pipelines server answer, in short: the first path that fits.
HONEST: tuple[tuple[str, Any], ...] = (
    (r"/api/v1/auths/", {"role": "admin", "email": "admin@example.org"}),
    (r"/api/version", {"version": "0.12.4"}),
    (r"/api/models", {"data": [{"id": "llama3:8b", "owned_by": "ollama", "info": ROW}]}),
    (r"/api/v1/models/export", [ROW]),
    (r"/api/v1/models/base", [ROW | {"id": "response_cache_replay", "meta": {"hidden": True}}]),
    (r"/api/v1/models/model", ROW),
    (r"/api/v1/groups/", [{"name": "staff", "id": "g1"}]),
    (r"/api/v1/functions/", [PLUGIN, PLUGIN | {"id": "response_cache_filter"}]),
    (r"/api/v1/tools/", [PLUGIN | {"id": "voice_transcription"}]),
    (r".*/valves", VALVES),
    (r"/api/v1/\w+/id/\w+", PLUGIN),
    (r"/api/v1/audio/config", {"stt": STT, "tts": {}}),
    (r"/pipelines", {"data": [{"id": "gpu_router", "valves": True}, {"id": "other", "valves": False}]}),
    (r".*/api/system/load", {"nodes": [{"gpus": [{"index": 0, "name": "A", "utilization": 1}]}]}),
    (r".*/v1/models", {"data": [{"id": "x"}]}),
    (r".*/api/show", {"capabilities": ["completion"]}),
    (r".*", {}),
)


def honest(path: str) -> Any:
    """The answer to a path."""
    found = next(answer for pattern, answer in HONEST if re.fullmatch(pattern, path))
    if found is not PLUGIN:
        return found
    kind, plugin = path.split("/")[3], path.rsplit("/", maxsplit=1)[-1]
    file = ROOT / kind / f"{plugin}.py"
    return found | {"id": plugin, "content": file.read_text() if file.exists() else "x"}


ODD: tuple[Any, ...] = (None, True, 0, -1, 1e308, "", EVIL, [], {}, [[]], {"a": 1}, ["x"], 10**400, {"id": 5})


def spoiled(value: Any, dice: random.Random) -> Any:
    """JSON with one of its parts replaced, removed or repeated."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def visit(part: Any) -> None:
        for key in list(part) if isinstance(part, dict) else range(len(part)):
            places.append((part, key))
            if isinstance(part[key], dict | list):
                visit(part[key])

    if isinstance(value, dict | list):
        visit(value)
    if not places or dice.random() < 0.1:
        return dice.choice(ODD)
    part, key = dice.choice(places)
    if isinstance(part, dict) and dice.random() < 0.3:
        del part[key]
    elif dice.random() < 0.1:
        part[key] = [part[key]] * 3
    else:
        part[key] = dice.choice(ODD)
    return value


@pytest.mark.parametrize("seed", range(25))
def test_json_of_another_shape(
    seed: int, asked: Callable[[HostileServer], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a traceback for an answer that is nearly what it should be."""
    dice = random.Random(seed)  # noqa: S311 - a test that can be repeated
    guard = threading.Lock()

    def answer(_: str, path: str) -> Answer:
        found = honest(path)
        with guard:
            return json_answer(spoiled(found, dice) if dice.random() < 0.15 else found)

    with HostileServer(answer) as server:
        config = asked(server)
        for _ in range(2):
            run(upload.main, [config, "--dry-run"], capsys)
            run(upload.main, ["--remove", "--dry-run"], capsys)
            run(upload.main, ["--remove"], capsys)
            run(doctor.main, [config, "--json"], capsys)


def test_the_honest_one(asked: Callable[[HostileServer], str], capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a script that refuses every server, by which all of the above would pass."""
    with HostileServer(lambda _, path: json_answer(honest(path))) as server:
        config = asked(server)
        status, text = run(upload.main, [config, "--dry-run"], capsys)
        assert (status, text.splitlines()[0]) == (0, "create filter model_alias_filter")
        status, text = run(upload.main, ["--remove", "--dry-run"], capsys)
        assert status == 0
        assert "delete function ollama_pack_events" in text
        assert "delete model row llama3:8b" in text
        assert "give Open WebUI's microphone its 'web' engine back" in text


LOAD = {"nodes": [{"name": "g", "gpus": [{"index": 0, "name": "A100", "memory_total": 80 * 10**9}]}]}


def test_an_agent_is_asked_as_the_router_asks_it(
    asked: Callable[[HostileServer], str], tmp_path: Path
) -> None:
    """Would catch an agent behind a login, its own or its node's, that is called down."""
    answers: dict[str, Any] = {"/api/system/load": LOAD, "/api/version": {"version": "0.33.3"}}
    empty: dict[str, Any] = {"models": []}
    with HostileServer(lambda _, path: json_answer(answers.get(path, empty))) as server:
        asked(server)
        own = server.url.replace("//", "//me:pw-Qx81vR@")
        (tmp_path / "pack.yaml").write_text(
            "model_provider:\n  endpoints:\n"
            f"  - {{name: a, url: '{server.url}', agent: '{server.url}', key: node-key-Qx81vR}}\n"
            f"  - {{name: b, url: '{server.url}/b', agent: '{own}', key: node-key-Qx81vR}}\n"
        )
        config = load_config(tmp_path / "pack.yaml")
        states = {finding.subject: finding.state for finding in doctor.examine(config)}
        rooms = [look_at(node, number).room for number, node in enumerate(config.nodes)]
    heads = [head for head in server.heads if "/api/system/load" in head]
    logins = [re.findall(r"(?i)^authorization: (.*?)\r?$", head, re.MULTILINE) for head in heads]
    assert (states["agent of a"], states["agent of b"]) == ("ok", "ok")
    assert logins == [["Bearer node-key-Qx81vR"], ["Basic bWU6cHctUXg4MXZS"]] * 2
    assert all(rooms)


MODELS = {"data": [{"id": "glm-4.6"}]}
# What the address of a node ends with, its other settings → what is listed where, with which status.
BASES: dict[str, tuple[str, str, Callable[[str], Answer]]] = {
    "a version of its own": ("/api/paas/v4", "", lambda path: listed(path, "/api/paas/v4/models")),
    "no version": ("/serve", "", lambda path: listed(path, "/serve/models")),
    "as usual": ("/v1", "", lambda path: listed(path, "/v1/models")),
    "a list alone": ("", "", lambda _: json_answer(MODELS["data"])),
    "models that are not listed": ("", ", models: [qwen3]", lambda _: http_answer(b"", "503 No workers")),
}


def listed(path: str, place: str) -> Answer:
    return json_answer(MODELS) if path == place else json_answer({}, "404 Not Found")


@pytest.mark.parametrize("case", BASES)
def test_an_openai_server_is_asked_as_the_router_asks_it(
    case: str, asked: Callable[[HostileServer], str], tmp_path: Path
) -> None:
    """Would catch a server that the router chats with and the doctor calls down."""
    path, more, answer = BASES[case]
    with HostileServer(lambda _, path: answer(path)) as server:
        asked(server)
        row = f"{{name: a, url: '{server.url}{path}', kind: openai{more}}}"
        (tmp_path / "pack.yaml").write_text(f"model_provider: {{endpoints: [{row}]}}\n")
        found = {one.subject: one for one in doctor.examine(load_config(tmp_path / "pack.yaml"))}
    assert (found["node a"].state, found["node a"].text) == ("ok", f"1 models at {server.url}{path}")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in itertools.pairwise("abcdefghijklmnop")
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, name in itertools.pairwise("abcdefghijklmnop")
)
FILES: dict[str, tuple[bytes, str]] = {
    "refers to itself": (b"models: &a [*a]", "refers to itself"),
    "refers to itself in a mapping": (b"cache: &a {url: *a}", "refers to itself"),
    "key that refers to itself": (b"? &a [*a]\n: 1", "refers to itself"),
    "explodes": (BOMB.encode(), "aliases (*name) are written out"),
    "explodes in merges": (MERGES.encode(), "aliases (*name) are written out"),
    "deep": (b"[" * 100_000, "nested deeper"),
    "deep in blocks": ("".join(" " * n + "a:\n" for n in range(600)).encode(), "nested deeper"),
    "many values": (b"models: [" + b"a," * 60_000 + b"]", "values, which no pack.yaml has"),
    "long": (b"#" * 2**20, "is longer than 256 KiB"),
    "a long word": (b"x: " + b"a" * 250_000, "is not a known key"),
    "looks like secrets": (b"x: '?" + b"key" * 20_000 + b" key=" * 20_000 + b"'", "is not a known key"),
    "looks like addresses": (b"cache: {url: '" + b"a://" * 60_000 + b"'}", "cache.url"),
    "binary": (bytes(range(256)), "is not UTF-8 text"),
    "null bytes": (b"\0" * 100, "may not stand in YAML"),
    "UTF-16": ("models: []".encode("utf-16"), "is not UTF-8 text"),
    "Latin-1": ("# für alle".encode("latin-1"), "is not UTF-8 text"),
    "escape in a key": (b'"\\e[31mcache": 1', "is not a known key"),
    "line break in a key": (b'"a\\ndone: all": 1', "is not a known key"),
    "list as a key": (b"? [a, b]\n: 1", "unhashable"),
    "two documents": (b"models: []\n---\nmodels: []", "found another document"),
    "Python": (b"!!python/object/apply:os.system [id]", "could not determine a constructor"),
    "huge number": (b"cache: {ttl: " + b"9" * 10_000 + b"}", "goes between quotes"),
    "infinite": (b"router: {first_token_timeout: .inf}", "finite number"),
    "many mistakes": (b"".join(b"k%d: 1\n" % number for number in range(3000)), "… and 2980 more"),
}


@pytest.mark.parametrize("case", FILES)
def test_files(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a file that takes the machine's memory, or a traceback."""
    content, reason = FILES[case]
    file = tmp_path / "pack.yaml"
    file.write_bytes(content)
    began = time.process_time()
    status, text = run(upload.main, [str(file), "--dry-run"], capsys)
    assert (status, reason in text) == (1, True), text
    assert time.process_time() - began < 5
    status, text = run(doctor.main, [str(file), "--json"], capsys)
    assert (status, json.loads(text)[0]["subject"]) == (1, "pack.yaml")


def test_a_device_and_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a file without an end that is read to its end."""
    assert "is longer than 256 KiB" in run(upload.main, ["/dev/zero"], capsys)[1]
    assert "cannot be read (Is a directory)" in run(upload.main, [str(tmp_path)], capsys)[1]


def test_anchors_that_do_no_harm(tmp_path: Path) -> None:
    """Would catch a refusal of a file that saves itself some repetition."""
    file = tmp_path / "pack.yaml"
    file.write_text("models:\n- &a {name: x, local_name: &l ['b', 'c']}\n- {name: y, local_name: *l}\n")
    assert [alias.local_name for alias in load_config(file).aliases] == [["b", "c"]] * 2


def test_a_mapping_that_takes_its_keys_from_another(tmp_path: Path) -> None:
    """Would catch a key of its own that counts as repeated, as `<<` brings the other's."""
    file = tmp_path / "pack.yaml"
    file.write_text("models:\n- &a {name: x, local_name: b, audience: admin}\n- {<<: *a, name: y}\n")
    assert [(alias.name, alias.audience) for alias in load_config(file).aliases] == [
        ("x", ["admin"]),
        ("y", ["admin"]),
    ]
    file.write_text("models:\n- &a {name: x, local_name: b}\n- {<<: *a, name: y,\n   name: z}\n")
    with pytest.raises(ConfigError, match=r"yaml:4: models.1.name: stands in line 3 already"):
        load_config(file)
