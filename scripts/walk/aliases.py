"""Model aliases: the pack is uploaded, and answers come under other models' names."""

import os
import subprocess
import sys
from pathlib import Path

from deploy.shown import message
from local.webui import Account, RunningWebUI
from walk.steps import DemoError, Walk, ask, refused, stream

UPLOAD = Path(__file__).resolve().parents[1] / "upload.py"


def show_aliases(walk: Walk, webui: RunningWebUI, student: Account, config: Path) -> None:
    """Upload the pack, then ask under other models' names, as those would who are not to notice."""
    walk.say(f"pack.yaml:\n{config.read_text(encoding='utf-8').rstrip()}")
    walk.step("upload.py", lambda: _upload(webui, config))
    walk.step(
        message("upload.py again"), lambda: _upload(webui, config, expected=message("nothing to change"))
    )
    walk.step(message("gpt-4, asked by the admin"), lambda: ask(webui, webui.admin, "gpt-4"))
    walk.step(message("gpt-3.5-turbo, asked by a plain user"), lambda: ask(webui, student, "gpt-3.5-turbo"))
    walk.step(message("gpt-4, streamed to a plain user"), lambda: stream(webui, student, "gpt-4"))
    walk.step(message("gpt-4-staff, asked by a plain user"), lambda: refused(webui, student, "gpt-4-staff"))
    walk.step(message("gpt-5, which nobody published"), lambda: refused(webui, webui.admin, "gpt-5"))


def _upload(webui: RunningWebUI, config: Path, expected: str = "") -> str:
    """Run the uploader as an admin does."""
    env = os.environ | {"OPEN_WEBUI_URL": webui.url, "OPEN_WEBUI_TOKEN": webui.admin.token}
    done = subprocess.run(
        [sys.executable, UPLOAD, config],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or (expected or message("done:")) not in done.stdout:
        raise DemoError(done.stdout + done.stderr)
    return lines[0] if len(lines) == 1 else message("{lines} changes", lines=len(lines))
