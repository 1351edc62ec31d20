"""Each script says the pack's version."""

import subprocess
import sys
from pathlib import Path

import pytest

from package import pack_version

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_version(script: str) -> None:
    """Would catch a script that cannot say which version it is, or that starts its work instead."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, "--version"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{script} {pack_version(ROOT)}\n", "")
