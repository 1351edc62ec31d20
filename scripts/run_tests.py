"""Run all tests: what this checkout's two environments can, in two lanes, for most of a test is waiting.

`make test` runs it. The first lane's output is shown as it comes; that of the second when it has ended, and
after it a table of all tiers. Status 0 when everything passed, 1 when not, 2 when it was called wrongly.
"""

import os
import re
import subprocess
import sys
import threading
from argparse import ArgumentParser
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from local.processes import running
from package import add_version

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / ".cache"
TIERS = ("unit", "loader", "server", "pipelines", "browser", "ollama")
SLOWEST = "--durations=40"  # how many are named at the end: what to make faster first
NEWEST, OLDEST = ".venv/bin/python", ".venv-oldest/bin/python"
# Once is enough: no Open WebUI takes part, or one server more than others need for what is not the version's.
ONCE_ONLY = (
    "budget_store*",
    "cache_*",
    "caching*",
    "demo*",
    "events_replicas*",
    "federation*",
    "fleet_*",
    "history*",
    "model_digests*",
    "response_cache_replicas*",
    "speech_*",
)


@dataclass(frozen=True)
class Suite:
    """Tiers that one environment runs.

    Attributes:
        name: of the log, and in the table.
        python: the environment's, from the checkout's root.
        tiers: folders of tests/.
        ignored: globs of tests that it leaves out.
        required: tiers in which a test must pass, whatever else is required.
    """

    name: str
    python: str
    tiers: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    required: tuple[str, ...] = ()

    @property
    def log(self) -> Path:
        """Where its output is kept when it is not shown at once."""
        return LOGS / f"test-{self.name}.log"

    def argv(self, require: Collection[str]) -> list[str]:
        """The command, when tests of these tiers must pass."""
        required = [tier for tier in self.tiers if tier in {*require, *self.required}]
        folders = [f"tests/{tier}" for tier in self.tiers]
        ignored = [f"--ignore-glob=tests/server/test_{glob}" for glob in self.ignored]
        return [self.python, "-m", "pytest", f"--require={','.join(required)}", SLOWEST, *folders, *ignored]


SHOWN = Suite("newest", NEWEST, ("unit", "loader", "server", "pipelines"))
BESIDE = (
    Suite("oldest", OLDEST, ("loader", "server"), ignored=ONCE_ONLY, required=("loader", "server")),
    Suite("newest-beside", NEWEST, ("browser", "ollama")),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suites; see the top of this file."""
    parser = ArgumentParser(description="Run all tests that this machine can run.")
    add_version(parser)
    parser.add_argument(
        "--require", default="", metavar="TIER,…", help="fail when one of these passed no test"
    )
    require = {tier for tier in parser.parse_args(arguments).require.split(",") if tier}
    if unknown := require - set(TIERS):
        parser.error(f"--require: no tier {', '.join(sorted(unknown))} (there are: {', '.join(TIERS)})")
    LOGS.mkdir(exist_ok=True)
    beside = _Beside(require)
    beside.start()
    try:
        status, output = _show(SHOWN.argv(require))
        beside.join()
    finally:  # also on Ctrl-C
        beside.stop()
    outputs = {SHOWN: output} | {suite: _output(suite) for suite in BESIDE}
    for suite in BESIDE:
        print(f"\n== {suite.name}\n{outputs[suite]}")
    print("== all tiers")
    for suite, text in outputs.items():
        print(*(f"{suite.name:14} {line}" for line in tier_lines(text)), sep="\n")
    return 1 if status or beside.failed else 0


def _show(argv: Sequence[str]) -> tuple[int, str]:
    """Run a command whose output is printed as it comes; gives its status and all that it printed."""
    printed = bytearray()
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None  # noqa: S101 - so says PIPE
        while some := os.read(process.stdout.fileno(), 65_536):
            printed += some
            sys.stdout.buffer.write(some)
            sys.stdout.flush()
    return process.returncode, printed.decode(errors="replace")


def _output(suite: Suite) -> str:
    return suite.log.read_text(encoding="utf-8", errors="replace") if suite.log.exists() else "(not begun)"


class _Beside(threading.Thread):
    """The second lane: one suite after the other, each into its log."""

    def __init__(self, require: Collection[str]) -> None:
        super().__init__()
        self.failed = True  # until all have passed
        self._require = require
        self._stopped = threading.Event()

    def run(self) -> None:
        for suite in BESIDE:
            suite.log.unlink(missing_ok=True)
        statuses = [self._run(suite) for suite in BESIDE]
        self.failed = any(statuses)

    def _run(self, suite: Suite) -> int:
        with running(suite.argv(self._require), env=os.environ, cwd=ROOT, log=suite.log) as process:
            while process.poll() is None and not self._stopped.wait(0.5):
                pass
        return int(process.returncode)

    def stop(self) -> None:
        """End what still runs."""
        self._stopped.set()
        self.join()


def tier_lines(log: str) -> Iterator[str]:
    """The lines of pytest's output that say how a tier went, of the tiers that were run."""
    named = re.compile(rf"(?:{'|'.join(TIERS)}) {{2,}}(?!not run$)\S.*")
    return (line for line in log.splitlines() if named.fullmatch(line))


if __name__ == "__main__":
    sys.exit(main())
