"""`upload.py` when something is wrong: the command, the server, the account, or a step half-way."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import upload as script
from harness.fixtures_webui import upload
from harness.recording_proxy import RecordingProxy
from harness.upload_target import FILTER, PACK, Target
from local.processes import free_port
from local.webui import Account

EMPTY: dict[str, Any] = {"functions": {}, "valves": {}, "rows": {}}
HOLD_SECONDS = 60.0


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "set OPEN_WEBUI_URL (such as http://localhost:8080), PIPELINES_URL, or both"),
        ({"OPEN_WEBUI_URL": "http://x"}, "set OPEN_WEBUI_TOKEN, or OPEN_WEBUI_EMAIL and OPEN_WEBUI_PASSWORD"),
    ],
)
def test_environment_is_missing(tmp_path: Path, environment: dict[str, str], said: str) -> None:
    """Would catch a first try that ends in a traceback instead of what to set."""
    (tmp_path / "pack.yaml").write_text(PACK)
    done = upload(None, str(tmp_path / "pack.yaml"), environment=environment)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{said}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--only", "nonsense"), "--only nonsense: there is no such plugin; there are "),
        (("--only", "nonsense", "--only", FILTER), "--only nonsense: there is no such plugin; there are "),
        (("--nonsense",), "unrecognized arguments: --nonsense"),
    ],
)
def test_usage(target: Target, arguments: tuple[str, ...], said: str) -> None:
    """Would catch a misspelt option or plugin that counts as success."""
    done = target.upload(PACK, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert target.state() == EMPTY


def test_only_what_the_file_leaves_out(target: Target) -> None:
    """Would catch `--only` that installs nothing and says that all is well."""
    done = target.upload("plugins: []", "--only", FILTER)
    assert done.returncode == 2
    assert done.stderr == f"--only {FILTER}: pack.yaml leaves it out with `plugins:`; add it there\n"


def test_unknown_plugin(target: Target) -> None:
    """Would catch a misspelt plugin that is silently not installed."""
    done = target.upload(f"plugins: [{FILTER}, model_alias_filtre]")
    assert done.returncode == 1
    assert "plugins: this version has no 'model_alias_filtre'; there are " in done.stderr
    assert target.state() == EMPTY


def test_bad_pack_yaml(target: Target) -> None:
    """Would catch a file that is found bad only after the first change."""
    done = target.upload("model:\n  - {name: gpt-4}\n")
    assert done.returncode == 1
    assert (
        done.stderr == f"{target.folder}/pack.yaml:1: model: is not a known key: correct it or take it out\n"
    )


def test_server_is_down(target: Target) -> None:
    """Would catch a report of the HTTP library's pools instead of the address and the reason."""
    url = f"http://127.0.0.1:{free_port()}"
    done = target.upload(PACK, url=url)
    assert done.returncode == 1
    reason = f"Open WebUI does not answer at {url} (Connection refused)"
    assert done.stderr == f"{reason}: is it running, and is the address right?\n"


def test_address_of_something_else(target: Target) -> None:
    """Would catch an address without its scheme, or one of another page, that is hard to recognise."""
    assert "'localhost:8080' is no address of Open WebUI" in target.upload(PACK, url="localhost:8080").stderr
    done = target.upload(PACK, url=f"{target.webui.url}/nowhere")
    assert done.returncode == 1
    assert f"{target.webui.url}/nowhere/api/v1/auths/ answers, but not as Open WebUI does" in done.stderr


def test_address_that_sends_us_on(target: Target, proxy: RecordingProxy) -> None:
    """Would catch POSTs that a redirection, such as that to https, turns into GETs."""
    proxy.instead["/api/v1/auths/"] = (307, None, {"Location": "https://chat.example/api/v1/auths/"})
    done = target.upload(PACK, url=proxy.url)
    assert done.returncode == 1
    assert (
        f"{proxy.url} sends us on to https://chat.example: give that as Open WebUI's address" in done.stderr
    )


@pytest.mark.parametrize("token", ["wrong", "eyJhbGciOi…", "two words"])
def test_wrong_token(target: Target, token: str) -> None:
    """Would catch a refusal that does not say what to do, and a token that breaks the HTTP library."""
    done = target.upload(PACK, OPEN_WEBUI_TOKEN=token)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "does not accept the token" in done.stderr or "copy it again" in done.stderr


def test_plain_users_token(target: Target, pupil: Account) -> None:
    """Would catch an upload that fails half-way, or in Open WebUI's words, for want of the admin's role."""
    done = target.upload(PACK, OPEN_WEBUI_TOKEN=pupil.token)
    assert done.returncode == 1
    assert done.stderr == "pupil@example.org is signed in as 'user': uploading needs the token of an admin\n"


def test_password(target: Target) -> None:
    """Would catch a sign-in that works with tokens alone, which not every server gives out."""
    admin = target.webui.admin
    names = {"OPEN_WEBUI_TOKEN": "", "OPEN_WEBUI_EMAIL": admin.email}
    done = target.upload(PACK, **names, OPEN_WEBUI_PASSWORD=admin.password)
    assert (done.returncode, done.stderr) == (0, "")
    refused = target.upload(PACK, **names, OPEN_WEBUI_PASSWORD="guessed")
    assert refused.returncode == 1
    assert f"does not accept this e-mail address ({admin.email}) and password: " in refused.stderr
    assert "guessed" not in refused.stderr


def test_server_that_is_too_old(target: Target, proxy: RecordingProxy) -> None:
    """Would catch plugins installed where they cannot work."""
    proxy.instead["/api/version"] = (200, {"version": "0.9.12"}, {})
    done = target.upload(PACK, url=proxy.url)
    assert done.returncode == 1
    assert f"{FILTER} needs Open WebUI 0.11.2 or newer, and {proxy.url} is 0.9.12: update it" in done.stderr
    assert proxy.posts == []


@pytest.mark.parametrize("step", [1, 2, 4, 7])
def test_failure_half_way_and_another_run(target: Target, proxy: RecordingProxy, step: int) -> None:
    """Would catch a failure that leaves the admin guessing, or one that the next run cannot mend."""
    steps = target.upload(PACK, "--dry-run").stdout.splitlines()
    steps = [line for line in steps if not line.startswith(" ")][:-1]
    proxy.failing_post = step
    failed = target.upload(PACK, url=proxy.url)
    assert failed.returncode == 1
    assert failed.stdout.splitlines() == [f"done: {what}" for what in steps[: step - 1]]
    first, *others = failed.stderr.splitlines()
    assert first.startswith(f"{steps[step - 1]} failed: Open WebUI refused POST /api/v1/")
    assert first.endswith(": 500 the disk is full")
    assert others == [f"  not done: {what}" for what in steps[step - 1 :]] + [
        "Run the same command again to finish."
    ]
    again = target.install()
    assert again.splitlines() == [f"done: {what}" for what in steps[step - 1 :]]
    assert target.install() == "nothing to change\n"


def test_interruption_half_way(target: Target, proxy: RecordingProxy) -> None:
    """Would catch Ctrl-C answered with a traceback, which hides what was done."""
    (target.folder / "pack.yaml").write_text(PACK)
    proxy.held_post = 3
    # A test run in the background hands on "ignore Ctrl-C"; a terminal does not.
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    start = f"{listen}; import sys, upload; sys.exit(upload.main())"
    servers = {"OPEN_WEBUI_URL": proxy.url, "OPEN_WEBUI_TOKEN": target.webui.admin.token}
    with subprocess.Popen(
        [sys.executable, "-c", start],
        cwd=target.folder,
        env=os.environ | servers | {"PYTHONPATH": str(Path(script.__file__).parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert proxy.holding.wait(HOLD_SECONDS)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=HOLD_SECONDS)
    assert process.returncode == 1
    assert out == f"done: create filter {FILTER}\ndone: set valves of {FILTER}\n"
    assert err.startswith(f"stopped at: switch on {FILTER}\n  not done: switch on {FILTER}\n")
    assert err.endswith("\nRun the same command again to finish.\n")
    target.install()


def test_stored_valves_are_checked(target: Target) -> None:
    """Would catch a table that an older version has stored, and that the new one refuses without a word."""
    target.install()
    done = target.upload(PACK, "--check-valves")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{FILTER}: the stored valves are fine" in done.stdout
    target.change_code("parse_table(text)  #", "pass  #")
    target.set_valves(aliases="gpt-4 = gpt-4")
    done = target.upload(PACK, "--check-valves")
    assert done.returncode == 1
    assert f"{FILTER}: valves that the plugin refuses: aliases = 'gpt-4 = gpt-4'" in done.stderr
