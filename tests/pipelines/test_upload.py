"""`scripts/upload.py` and a real Pipelines server alone: what it changes, and what it says when it cannot."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from deploy.client import Pipelines
from deploy.errors import DeployError
from deploy.pipelines import plan_pipeline
from deploy.plan import Plan
from deploy.plugin import load_plugin
from harness.fixtures_pipelines import FILTER, FILTER_FILE, resolved, skip_unless_installed, write_pack_yaml
from harness.fixtures_webui import ROOT, upload
from local.pipelines import RunningPipelines, pipelines_server
from local.processes import free_port

ALIASES = (
    "plugins: [model_alias_filter]\nmodels:\n  - {name: gpt-4, local_name: ['llama3:8b', 'llama3:70b']}\n"
)
OTHER_ALIASES = ALIASES.replace("llama3:8b", "mixtral:8x7b")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPipelines]:
    """A Pipelines server for this module."""
    skip_unless_installed()
    with pipelines_server(tmp_path_factory.mktemp("upload")) as server:
        yield server


@pytest.fixture
def server(running: RunningPipelines) -> RunningPipelines:
    """The same without any pipeline."""
    for path in running.folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    api = running.api()
    api.post("/pipelines/reload")
    assert api.installed() == {}
    api.close()
    return running


@pytest.fixture
def api(server: RunningPipelines) -> Iterator[Pipelines]:
    api = server.api()
    yield api
    api.close()


@pytest.fixture
def pack_yaml(tmp_path: Path) -> Path:
    return write_pack_yaml(tmp_path, aliases=ALIASES)


def run(
    server: RunningPipelines, pack_yaml: Path, *options: str, **environment: str
) -> CompletedProcess[str]:
    return upload(None, str(pack_yaml), *options, environment=server.environment | environment)


def succeed(server: RunningPipelines, pack_yaml: Path, *options: str) -> list[str]:
    """The lines that a run prints, which must not fail."""
    done = run(server, pack_yaml, *options)
    assert (done.returncode, done.stderr) == (0, "")
    return [line for line in done.stdout.splitlines() if line]


def changes(server: RunningPipelines) -> list[str]:
    """The requests that changed something, as the server logged them."""
    lines = server.log.read_text().splitlines()
    return [line.split('"')[1].split()[1] for line in lines if '"POST ' in line and "reload" not in line]


def test_first_run_installs(server: RunningPipelines, api: Pipelines, pack_yaml: Path) -> None:
    """Would catch an upload that ends well although the filter is not there or has not its table."""
    printed = succeed(server, pack_yaml)
    assert printed == [f"done: upload pipeline {FILTER}", f"done: set valves of pipeline {FILTER}"]
    assert (server.folder / f"{FILTER}.py").read_bytes() == FILTER_FILE.read_bytes()
    assert not (server.folder / "failed").exists()
    assert resolved(api, "gpt-4") == "llama3:8b"


def test_second_run_changes_nothing(server: RunningPipelines, pack_yaml: Path) -> None:
    """Would catch an upload each time, for which the server loads all its pipelines anew."""
    succeed(server, pack_yaml)
    before = changes(server)
    assert succeed(server, pack_yaml) == ["nothing to change"]
    assert changes(server) == before


def test_changed_valves_are_set_without_an_upload(
    server: RunningPipelines, api: Pipelines, pack_yaml: Path
) -> None:
    """Would catch a new table that needs an upload, or that resets what an admin has set."""
    succeed(server, pack_yaml)
    api.post(f"/{FILTER}/valves/update", api.valves(FILTER) | {"priority": 7})
    before = changes(server)
    pack_yaml.write_text(OTHER_ALIASES)
    assert succeed(server, pack_yaml) == [f"done: set valves of pipeline {FILTER}"]
    assert changes(server) == [*before, f"/{FILTER}/valves/update"]
    assert resolved(api, "gpt-4") == "mixtral:8x7b"
    assert api.valves(FILTER)["priority"] == 7


@pytest.mark.parametrize("mounted", [False, True], ids=["uploaded", "mounted"])
def test_other_code_is_replaced(
    server: RunningPipelines, api: Pipelines, pack_yaml: Path, *, mounted: bool
) -> None:
    """Would catch an uploader that goes by what it once sent, and not by what the server runs."""
    succeed(server, pack_yaml)
    older = FILTER_FILE.read_bytes() + b"# an older version\n"
    if mounted:
        (server.folder / f"{FILTER}.py").write_bytes(older)
        assert succeed(server, pack_yaml) == ["nothing to change"]  # not loaded, and so not running yet
        api.post("/pipelines/reload")
    else:
        api.send_file("/pipelines/upload", f"{FILTER}.py", older)
    assert succeed(server, pack_yaml) == [f"done: upload pipeline {FILTER}"]
    assert (server.folder / f"{FILTER}.py").read_bytes() == FILTER_FILE.read_bytes()
    assert resolved(api, "gpt-4") == "llama3:8b"


def test_mounted_file_is_not_uploaded_again(
    server: RunningPipelines, api: Pipelines, pack_yaml: Path
) -> None:
    """Would catch an upload of what PIPELINES_URLS or a mounted folder has brought already."""
    shutil.copy(FILTER_FILE, server.folder)
    api.post("/pipelines/reload")
    assert succeed(server, pack_yaml) == [f"done: set valves of pipeline {FILTER}"]


def test_stored_valves_that_the_new_code_refuses_are_mended_first(
    server: RunningPipelines, api: Pipelines, pack_yaml: Path
) -> None:
    """Would catch an upload that breaks off halfway through the server's loading, and ends all pipelines."""
    older = FILTER_FILE.read_text().replace("if parse_table(one_a_line(text)).uses_groups:", "if False:")
    api.send_file("/pipelines/upload", f"{FILTER}.py", older.encode())
    api.post(f"/{FILTER}/valves/update", {"aliases": "gpt-4 = llama3:8b [group=staff]"})
    printed = succeed(server, pack_yaml)
    assert printed == [f"done: set valves of pipeline {FILTER}", f"done: upload pipeline {FILTER}"]
    assert resolved(api, "gpt-4") == "llama3:8b"
    assert succeed(server, pack_yaml) == ["nothing to change"]


def test_file_without_aliases_leaves_the_environments_valves(tmp_path: Path, pack_yaml: Path) -> None:
    """Would catch an upload that freezes MODEL_ALIASES in valves.json, where later changes do not count."""
    skip_unless_installed()
    pack_yaml.write_text("plugins: [model_alias_filter]")
    with pipelines_server(tmp_path / "server", environment={"MODEL_ALIASES": "gpt-4 = llama3:8b"}) as server:
        assert succeed(server, pack_yaml) == [f"done: upload pipeline {FILTER}"]
        assert json.loads((server.folder / FILTER / "valves.json").read_text()) == {}


def test_dry_run_changes_nothing(server: RunningPipelines, api: Pipelines, pack_yaml: Path) -> None:
    """Would catch a dry run that changes something, or does not show what a run would."""
    before = changes(server)
    printed = succeed(server, pack_yaml, "--dry-run")
    assert printed[0] == f"upload pipeline {FILTER}"
    assert printed[1].startswith("    + Model aliases ")
    assert '    + aliases: "gpt-4 = llama3:8b, llama3:70b"' in printed
    assert printed[-1].endswith("nothing was changed")
    assert changes(server) == before
    assert api.installed() == {}


def test_group_is_refused_before_anything_is_sent(server: RunningPipelines, pack_yaml: Path) -> None:
    """Would catch a row that nobody matches, or a refusal that does not say where groups do work."""
    pack_yaml.write_text(
        "plugins: [model_alias_filter]\n"
        "models:\n  - {name: gpt-4, local_name: 'llama3:8b', when: {groups: staff}}\n"
    )
    before = changes(server)
    done = run(server, pack_yaml)
    assert done.returncode == 1
    assert "group= is not known on the Pipelines server: use the model_alias_filter function" in done.stderr
    assert changes(server) == before


EVERYTHING = """\
model_provider:
  endpoint: http://127.0.0.1:9
models:
  - {name: gpt-4, local_name: "llama3:8b"}
cache: {ttl: 60}
"""
PIPELINES = ("gpu_router", "model_alias_filter", "response_cache_filter", "response_cache_replay")


def examine(server: RunningPipelines, pack_yaml: Path) -> list[dict[str, str]]:
    """What the doctor finds."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "doctor.py", str(pack_yaml), "--json"],
        env={"PATH": os.environ["PATH"], **server.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


def test_the_whole_pack_twice(server: RunningPipelines, api: Pipelines, pack_yaml: Path) -> None:
    """Would catch a second upload, or a doctor, that a pipeline without valves brings down."""
    pack_yaml.write_text(EVERYTHING)
    first = succeed(server, pack_yaml)
    assert {f"done: upload pipeline {name}" for name in PIPELINES} < set(first)
    assert api.installed().keys() == set(PIPELINES)
    assert succeed(server, pack_yaml) == ["nothing to change"]
    found = {finding["subject"]: finding for finding in examine(server, pack_yaml)}
    assert found["pack"]["state"] == "ok"
    assert [subject for subject, finding in found.items() if finding["state"] == "wrong"] == [
        "node http://127.0.0.1:9"
    ]


def test_a_dead_redis_that_only_the_server_knows(
    server: RunningPipelines, api: Pipelines, pack_yaml: Path
) -> None:
    """Would catch a doctor that asks the Redis of the file, and not the one that is used."""
    pack_yaml.write_text(EVERYTHING)
    succeed(server, pack_yaml)
    dead = f"redis://:hidden-word@127.0.0.1:{free_port()}/0"
    for name in ("response_cache_filter", "gpu_router"):
        api.post(f"/{name}/valves/update", api.valves(name) | {"redis_url": dead})
    findings = [one for one in examine(server, pack_yaml) if one["subject"].startswith("Redis")]
    assert [one["state"] for one in findings] == ["wrong"]  # one store, asked once
    assert "pipeline" in findings[0]["subject"]
    assert "Admin Panel → Settings → Pipelines" in findings[0]["remedy"]
    assert "hidden-word" not in json.dumps(findings)


@pytest.mark.parametrize("mounted", [False, True], ids=["uploaded", "mounted"])
def test_removal(server: RunningPipelines, api: Pipelines, pack_yaml: Path, *, mounted: bool) -> None:
    """Would catch a pipeline or a password left behind, or an admin's pipeline taken along."""
    own = '"""\nauthor: Me\n"""\nclass Pipeline:\n    def pipe(self, **_): return "mine"\n'
    api.send_file("/pipelines/upload", "mine.py", own.encode())
    pack_yaml.write_text(EVERYTHING + 'router: {redis_url: "redis://:hidden-word@127.0.0.1:9/0"}\n')
    where = ("--pipelines-dir", str(server.folder)) if mounted else ()
    succeed(server, pack_yaml, *where)
    shown = succeed(server, pack_yaml, "--remove", "--dry-run", *where)
    assert api.installed().keys() == {"mine", *PIPELINES}
    assert sum(line.startswith("delete pipeline ") for line in shown) == len(PIPELINES)
    succeed(server, pack_yaml, "--remove", *where)
    assert api.installed().keys() == {"mine"}
    left = [path for path in server.folder.rglob("*") if path.is_file()]
    assert not [path for path in left if path.suffix == ".py" and path.name != "mine.py"]
    assert not [path for path in left if "hidden-word" in path.read_text(errors="replace")]
    if mounted:
        assert {path.name for path in server.folder.iterdir() if path.name != "__pycache__"} == {
            "mine.py",
            "mine",
        }
    assert succeed(server, pack_yaml, "--remove", *where) == ["there is nothing to remove"]


def test_an_id_of_ours_that_is_not_the_packs(
    server: RunningPipelines, api: Pipelines, pack_yaml: Path
) -> None:
    """Would catch an admin's own pipeline overwritten or deleted for its name."""
    own = (
        "from pydantic import BaseModel\nclass Pipeline:\n    class Valves(BaseModel):\n        x: int = 1\n"
        "    def __init__(self):\n        self.valves = self.Valves()\n    def pipe(self, **_): return ''\n"
    )
    api.send_file("/pipelines/upload", f"{FILTER}.py", own.encode())
    done = run(server, pack_yaml)
    assert done.returncode == 1
    assert f"a pipeline with the id '{FILTER}' is installed already and is not the pack's" in done.stderr
    assert succeed(server, pack_yaml, "--remove") == ["there is nothing to remove"]
    assert api.installed().keys() == {FILTER}


def test_wrong_key(server: RunningPipelines, pack_yaml: Path) -> None:
    """Would catch a refusal without the remedy."""
    done = run(server, pack_yaml, PIPELINES_API_KEY="wrong")
    assert done.returncode == 1
    assert "does not accept the API key (Invalid API key): set PIPELINES_API_KEY" in done.stderr
    assert server.url in done.stderr


def test_server_that_is_down(pack_yaml: Path) -> None:
    """Would catch a traceback, or a sentence that does not say what to do."""
    url = f"http://127.0.0.1:{free_port()}"
    done = upload(None, str(pack_yaml), environment={"PIPELINES_URL": url, "PIPELINES_API_KEY": "any"})
    assert done.returncode == 1
    assert f"the Pipelines server does not answer at {url} (" in done.stderr
    assert "Connection refused): is it running, and is the address right?" in done.stderr
    assert "Traceback" not in done.stderr


def test_file_that_loads_here_and_not_there(server: RunningPipelines, api: Pipelines, tmp_path: Path) -> None:
    """Would catch an upload that counts as done because the server calls it successful."""
    file = tmp_path / "broken.py"
    text = FILTER_FILE.read_text()
    file.write_text(f"{text}\nif globals().get('__file__'):\n    raise RuntimeError('not on this server')\n")
    plan = Plan()
    plan_pipeline(plan, api, load_plugin(file), {})
    with pytest.raises(DeployError, match=r"could not load broken and has moved it to its folder `failed`"):
        plan.steps[0].run()
    assert (server.folder / "failed" / "broken.py").exists()
