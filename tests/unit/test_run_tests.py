"""How all tests are run: nothing is left out, and nothing that failed is told as passed."""

from pathlib import Path

import pytest

import run_tests
from run_tests import BESIDE, SHOWN, Suite, tier_lines


def test_every_tier_is_run_on_the_newest() -> None:
    """Would catch a tier that no suite runs, so that its tests fail unseen."""
    newest = [tier for suite in (SHOWN, *BESIDE) if suite.python == SHOWN.python for tier in suite.tiers]
    folders = {path.name for path in Path(__file__).parents[1].iterdir() if any(path.glob("test_*.py"))}
    assert sorted(newest) == sorted(run_tests.TIERS) == sorted(folders)


def test_a_suite_requires_what_it_runs() -> None:
    """Would catch a required tier asked of a suite without it, which then always fails, or of none."""
    suite = Suite("x", "python", ("loader", "server"), ignored=("demo*",), required=("loader",))
    assert suite.argv({"server", "browser"})[3:] == [
        "--require=loader,server",
        "--durations=40",
        "tests/loader",
        "tests/server",
        "--ignore-glob=tests/server/test_demo*",
    ]


def test_lines_of_tiers() -> None:
    """Would catch a table without a tier that failed, or with lines that are none."""
    log = (
        "== tiers ==\n\nunit       3 passed\nserver     1 passed, 2 failed\nbrowser    not run\nunit tests\n"
    )
    assert list(tier_lines(log)) == ["unit       3 passed", "server     1 passed, 2 failed"]


@pytest.mark.parametrize(("shown", "beside", "status"), [(0, 0, 0), (1, 0, 1), (0, 3, 1)])
def test_a_failure_in_either_lane_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shown: int, beside: int, status: int
) -> None:
    """Would catch tests that fail in the lane that is not shown, and a command that says all is well."""

    class Scripted(Suite):
        def argv(self, _require: object) -> list[str]:
            return ["sh", "-c", f"echo 'unit  1 {self.name}'; exit {self.tiers[0]}"]

    monkeypatch.setattr(run_tests, "LOGS", tmp_path)
    monkeypatch.setattr(run_tests, "SHOWN", Scripted("a", "", (str(shown),)))
    monkeypatch.setattr(run_tests, "BESIDE", (Scripted("b", "", ("0",)), Scripted("c", "", (str(beside),))))
    assert run_tests.main([]) == status


def test_unknown_tier(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a misspelt tier that is required of nobody."""
    with pytest.raises(SystemExit):
        run_tests.main(["--require=unit,serve"])
    assert "no tier serve" in capsys.readouterr().err
