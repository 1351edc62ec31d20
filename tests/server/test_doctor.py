"""`scripts/doctor.py` on a real Open WebUI: it finds what is wrong, says what to do, and changes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.languages import CHINESE, english_in
from harness.recording_proxy import RecordingProxy
from harness.upload_target import FILTER, Target

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "doctor.py"
NOBODY = "http://127.0.0.1:9"  # the port of the discard service, on which nothing listens

PACK = """\
plugins: [model_alias_filter]
model_provider:
  endpoint: {endpoint}
models:
  - {{name: gpt-4, local_name: "llama3:8b"}}
"""
MORE = 'models:\n  - {name: nobody, local_name: "nothing:1b"}\n'


def examine(
    target: Target, *arguments: str, text: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the doctor as an admin does."""
    config = target.folder / "doctor.yaml"
    config.write_text(text or PACK.format(endpoint=target.node.url))
    servers = {"OPEN_WEBUI_URL": target.webui.url, "OPEN_WEBUI_TOKEN": target.webui.admin.token}
    return subprocess.run(
        [sys.executable, SCRIPT, str(config), *arguments],
        env=os.environ | servers | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """What `--json` printed, by subject."""
    return {finding["subject"]: finding for finding in json.loads(done.stdout)}


@pytest.fixture
def installed(target: Target) -> Target:
    """A deployment as its pack.yaml says."""
    target.install(PACK.format(endpoint=target.node.url))
    return target


def test_all_is_well(installed: Target) -> None:
    """Would catch a doctor that finds fault with a deployment that the uploader has just made."""
    before = installed.state()
    done = examine(installed)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("nothing is wrong\n")
    assert f"Ollama 0.17.4 at {installed.node.url}" in done.stdout
    assert installed.state() == before


def test_in_chinese(installed: Target) -> None:
    """Would catch a sentence in English where the admin's shell speaks Chinese: all well, and not."""
    well = examine(installed, **CHINESE)
    assert (well.returncode, english_in(well.stdout)) == (0, [])
    assert well.stdout.endswith("一切正常\n")
    installed.api.post(f"/api/v1/functions/id/{FILTER}/toggle")
    pack = PACK.format(endpoint=NOBODY).replace("models:\n", MORE)
    wrong = examine(installed, text=pack, **CHINESE)
    assert (wrong.returncode, english_in(wrong.stdout)) == (1, [])
    assert f"与 pack.yaml 不一致：启用 {FILTER}" in wrong.stdout
    assert "nobody：它的模型都不存在" in wrong.stdout.replace(": ", "：")


def test_switched_off_and_unpublished(installed: Target) -> None:
    """Would catch a plugin that is off, or a name without its row, passing for well."""
    installed.api.post(f"/api/v1/functions/id/{FILTER}/toggle")
    installed.api.post("/api/v1/models/model/delete", {"id": "gpt-4"})
    done = examine(installed, "--json")
    assert done.returncode == 1
    told = {finding["text"] for finding in json.loads(done.stdout) if finding["state"] == "wrong"}
    assert told == {
        f"not as pack.yaml says: switch on {FILTER}",
        "not as pack.yaml says: create model row gpt-4",
    }
    assert findings(done)["pack"]["remedy"] == "run upload.py"


def test_missing_models(target: Target) -> None:
    """Would catch an alias without a model passing for well, or a missing preference going unmentioned."""
    text = (
        "models:\n"
        '  - {name: gpt-4, local_name: ["mixtral:8x7b", "llama3:8b"]}\n'
        '  - {name: gpt-5, local_name: "phi3:mini"}\n'
    )
    target.upload(text)
    done = examine(target, "--json", text=text)
    assert done.returncode == 1
    found = findings(done)
    assert (found["gpt-4"]["state"], found["gpt-4"]["text"]) == (
        "look",
        "mixtral:8x7b is not there, llama3:8b answers",
    )
    assert "`ollama pull mixtral:8x7b`" in found["gpt-4"]["remedy"]
    assert found["gpt-5"]["state"] == "wrong"
    assert "pull" in found["gpt-5"]["remedy"]


def test_everything_else_is_looked_at_when_a_server_is_down(target: Target) -> None:
    """Would catch a doctor that stops at the first thing that does not answer."""
    text = PACK.format(endpoint=NOBODY) + 'cache: {url: "redis://127.0.0.1:9/0"}\n'
    done = examine(target, "--json", text=text, OPEN_WEBUI_URL=NOBODY)
    assert done.returncode == 1
    wrong = {subject for subject, finding in findings(done).items() if finding["state"] == "wrong"}
    assert wrong == {"deployment", f"node {NOBODY}", "Redis"}
    assert all(finding["remedy"] for finding in findings(done).values())


def test_a_node_is_asked_as_the_router_asks_it(installed: Target) -> None:
    """Would catch a node behind a login or a header that is called down, and one of DNS that is fetched."""
    with RecordingProxy(installed.node.url) as proxy:
        text = (
            "plugins: [model_alias_filter]\nmodel_provider:\n  endpoints:\n"
            f"    - {{url: '{proxy.url.replace('//', '//me:pw@')}', headers: {{X-Team: blue}}}}\n"
            "    - {name: pool, url: 'dns+srv://_ollama._tcp.example.org'}\n"
        )
        found = findings(examine(installed, "--json", text=text))
    ((_, sent),) = proxy.headers
    assert (sent["X-Team"], sent["Authorization"]) == ("blue", "Basic bWU6cHc=")
    assert found["node pool"]["state"] == "look"


def test_plain_users_token(target: Target) -> None:
    """Would catch a stack of refusals where one sentence says that an admin must look."""
    pupil = target.webui.add_user("doctor", "doctor-password")
    done = examine(target, OPEN_WEBUI_TOKEN=pupil.token)
    assert done.returncode == 1
    assert "signed in as 'user'" in done.stdout


def test_no_server_named(target: Target) -> None:
    """Would catch a doctor that finds nothing wrong because it looked at nothing."""
    done = examine(target, OPEN_WEBUI_URL="", PIPELINES_URL="")
    assert done.returncode == 2
    assert "set OPEN_WEBUI_URL" in done.stderr
