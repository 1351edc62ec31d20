"""`upload.py --remove` on a real Open WebUI: all that the pack made goes, and nothing of the admin's."""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from deploy.errors import ServerError
from harness.upload_target import FILTER, Target

Json = dict[str, Any]

PACK = """\
model_provider:
  endpoint: {url}
models:
  - {{name: gpt-4, local_name: "llama3:8b"}}
  - {{name: gpt-4o, local_name: "qwen2.5:32b"}}
voice: {{microphone: true}}
"""
OWN_FUNCTION = '"""\ntitle: Mine\nauthor: Me\ndescription: -\nversion: 1\n"""\nclass Filter:\n    pass\n'
OWN_TOOL = '"""\ntitle: Mine\nauthor: Me\ndescription: -\nversion: 1\n"""\nclass Tools:\n    pass\n'
OWN_STT = {
    "ENGINE": "openai",
    "OPENAI_API_BASE_URL": "http://speech.example/v1",
    "OPENAI_API_KEY": "sk-of-the-admin",
    "MODEL": "whisper-1",
}
PUBLISH_SECONDS = 40.0


def set_speech(target: Target, **settings: str) -> None:
    audio = target.api.audio()
    form = {"tts": audio["tts"], "stt": audio["stt"] | settings}
    with suppress(ServerError):  # it stores them, and then cannot load a Whisper of its own
        target.api.post("/api/v1/audio/config/update", form)
    assert target.api.audio()["stt"].items() >= settings.items()


def everything(target: Target) -> Json:
    """All that an upload could change."""
    return target.state() | {"tools": target.api.plugins("tools"), "speech": target.api.audio()["stt"]}


def wait_for_rows(target: Target, *models: str) -> None:
    """Wait until the events function has published these."""
    end = time.monotonic() + PUBLISH_SECONDS
    while not set(models) <= target.rows.keys():
        assert time.monotonic() < end, sorted(target.rows)
        time.sleep(0.5)


def removed(target: Target, *arguments: str) -> list[str]:
    """The lines of a removal, which must not fail."""
    done = target.upload("nonsense: [", "--remove", *arguments)  # pack.yaml is not read
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.fixture
def lived_in(target: Target) -> Iterator[Target]:
    """A deployment in which an admin has things of their own, with the whole pack."""
    for kind, content in (("functions", OWN_FUNCTION), ("tools", OWN_TOOL)):
        form = {"id": "mine", "name": "Mine", "content": content, "meta": {"description": ""}}
        target.api.post(f"/api/v1/{kind}/create", form)
    target.add_row("my-helper", "llama3:8b", params={"system": "Be brief."})
    target.add_row("llava:13b", access_grants=[])
    before_speech = target.api.audio()["stt"]
    set_speech(target, **OWN_STT)
    yield target
    set_speech(target, **before_speech)
    for tool in target.api.plugins("tools"):
        target.api.delete(f"/api/v1/tools/id/{tool}/delete")


def test_all_of_the_pack_and_nothing_else(lived_in: Target) -> None:
    """Would catch a plugin, row, grant or setting left behind, or one of the admin's taken along."""
    before = everything(lived_in)
    lived_in.upload(PACK.format(url=lived_in.node.url))
    assert lived_in.api.audio()["stt"]["OPENAI_API_BASE_URL"].endswith("/api/voice/v1")
    wait_for_rows(lived_in, "gpt-4", "gpt-4o", "gpu_router.llama3:8b", "response_cache_replay")
    installed = everything(lived_in)

    shown = removed(lived_in, "--dry-run")
    assert everything(lived_in) == installed
    what = [line for line in shown if not line.startswith(" ")]
    assert what[0] == "give Open WebUI's microphone its 'openai' engine back"
    assert what[1] == "delete function ollama_pack_events"
    assert {f"delete function {name}" for name in installed["functions"].keys() - {"mine"}} < set(what)
    assert "delete tool voice_transcription" in what
    assert {f"delete model row {name}" for name in installed["rows"].keys() - before["rows"].keys()} < set(
        what
    )
    assert what[-1].endswith("changes to make; nothing was changed")
    assert OWN_STT["OPENAI_API_KEY"] not in "\n".join(shown)

    printed = removed(lived_in)
    assert printed[: len(shown) - 1] == shown[:-1]  # shown first
    assert [line for line in printed if line.startswith("done: ")][: len(what) - 1] == [
        f"done: {step}" for step in what[:-1]
    ]
    assert everything(lived_in) == before
    assert removed(lived_in) == ["there is nothing to remove"]
    assert removed(lived_in, "--dry-run") == ["there is nothing to remove"]
    time.sleep(6)  # a look of the events function that had begun would have ended
    assert everything(lived_in) == before


def test_rows_that_an_admin_has_changed(lived_in: Target) -> None:
    """Would catch an admin's prompt or grant lost, or people let in by the pack who stay in."""
    lived_in.upload(PACK.format(url=lived_in.node.url))
    wait_for_rows(lived_in, "gpu_router.llama3:8b")
    lived_in.change_row("gpt-4", params={"system": "Be brief."})
    group = lived_in.add_group("staff")
    mine = [{"principal_type": "group", "principal_id": group, "permission": "read"}]
    regrant = {"id": "gpu_router.llama3:8b", "access_grants": mine}
    lived_in.api.post("/api/v1/models/model/access/update", regrant)
    lines = removed(lived_in)
    for model in ("gpt-4", "gpu_router.llama3:8b"):
        assert f"keep model row {model}, which an admin has changed, without the pack's part of it" in lines
        assert "ollama_pack" not in lived_in.rows[model]["meta"]
    assert lived_in.rows["gpt-4"]["params"] == {"system": "Be brief."}
    assert lived_in.grants("gpt-4") == set()
    assert lived_in.grants("gpu_router.llama3:8b") == {("group", group, "read")}
    assert set(lived_in.rows) == {"my-helper", "llava:13b", "gpt-4", "gpu_router.llama3:8b"}
    assert removed(lived_in) == ["there is nothing to remove"]


def test_a_microphone_that_an_admin_has_moved_on(lived_in: Target) -> None:
    """Would catch an admin's later choice undone."""
    lived_in.upload(PACK.format(url=lived_in.node.url))
    set_speech(lived_in, ENGINE="openai", OPENAI_API_BASE_URL="http://other.example/v1", OPENAI_API_KEY="k")
    before = lived_in.api.audio()["stt"]
    assert "microphone" not in "\n".join(removed(lived_in))
    assert lived_in.api.audio()["stt"] == before


def test_an_id_of_ours_that_is_not_the_packs(target: Target) -> None:
    """Would catch an admin's own function deleted because it has a name that the pack uses too."""
    form = {"id": FILTER, "name": "Mine", "content": OWN_FUNCTION, "meta": {"description": ""}}
    target.api.post("/api/v1/functions/create", form)
    assert removed(target) == ["there is nothing to remove"]
    assert target.api.plugins("functions").keys() == {FILTER}


def test_usage(target: Target) -> None:
    """Would catch a part of the pack taken out, and the rest left without it."""
    done = target.upload("{}", "--remove", "--only", FILTER)
    assert (done.returncode, done.stderr) == (2, "--remove takes out the whole pack: leave --only out\n")


def test_row_that_nobody_touched(target: Target) -> None:
    """Would catch a row of ours that stays behind as one "with an admin's settings"."""
    pack = "plugins: [gpu_router]\n" + PACK.format(url=target.node.url).replace(
        "voice: {microphone: true}\n", ""
    )
    target.install(pack)
    less = pack.replace('  - {name: gpt-4o, local_name: "qwen2.5:32b"}\n', "")
    assert target.install(less).splitlines() == [
        "done: set valves of gpu_router",
        "done: delete model row gpt-4o",
        "done: delete model row gpu_router.gpt-4o",
    ]
