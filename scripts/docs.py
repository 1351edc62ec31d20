"""Write what README.md and docs/ have from the code; `--check` only says whether they are so.

A table stands between `<!-- valves: functions/model_alias_filter -->` (or `<!-- metrics -->`) and
`<!-- end -->`. Each page ends with the project's address, between `<!-- address -->` and `<!-- end -->`.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from deploy.plugin import load_plugin
from ollama_pack.services import metrics_text
from ollama_pack.services.metrics_text import Metric
from package import add_version, repository

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = {
    "en": "Source code, releases and issues: <{}>\n",
    "zh": "源代码、发布版本与问题反馈：<{}>\n",  # noqa: RUF001 - Chinese punctuation
}
_TABLE = re.compile(
    r"(<!-- (?:valves: (?P<plugin>\S+)|metrics) -->\n)(?P<table>.*?)(<!-- end -->)", re.DOTALL
)
_ADDRESS = re.compile(r"\n*<!-- address -->\n.*?<!-- end -->\n*\Z", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_version(parser)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a page is stale")
    check = parser.parse_args().check
    stale = 0
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = _TABLE.sub(lambda found: f"{found[1]}{_table(found['plugin'])}{found[4]}", old)
        new = _ADDRESS.sub("", new).rstrip("\n") + "\n\n" + address(page)
        if old == new:
            continue
        stale += 1
        if check:
            print(f"{page.relative_to(ROOT)}: what it has from the code is stale: run `make docs`")
        else:
            page.write_text(new, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")
    return 1 if check and stale else 0


def pages() -> list[Path]:
    """Every document for people who use the pack, in both languages."""
    return sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/zh").glob("*.md")])


def address(page: Path) -> str:
    """The last lines of a page."""
    language = "zh" if page.parent.name == "zh" or page.stem.endswith(".zh") else "en"
    return f"<!-- address -->\n{ADDRESS[language].format(repository(ROOT))}<!-- end -->\n"


def _table(plugin: str | None) -> str:
    return valve_table(plugin) if plugin else metrics_table()


def metrics_table() -> str:
    """What `GET /ollama-pack/metrics` answers, as a Markdown table."""
    lines = [
        f"| `ollama_pack_{one.name}` | {one.kind} | {_labels(one)} | {one.text} |\n" for one in all_metrics()
    ]
    return "".join(["| Metric | Type | Labels | What it is |\n", "|---|---|---|---|\n", *lines])


def all_metrics() -> Iterator[Metric]:
    """Every family, in the order of the source."""
    return (value for value in vars(metrics_text).values() if isinstance(value, Metric))


def _labels(metric: Metric) -> str:
    return ", ".join(f"`{name}`" for name in metric.labels)


def valve_table(plugin: str) -> str:
    """The valves of a plugin, such as `functions/model_alias_filter`, as a Markdown table."""
    return "".join(f"{line}\n" for line in _table_lines(plugin))


def _table_lines(plugin: str) -> Iterator[str]:
    valves = load_plugin(ROOT / f"{plugin}.py").valves
    if valves is None:
        raise SystemExit(f"{plugin} has no valves: take its table out of the page")
    yield "| Valve | Title | What it does |"
    yield "|---|---|---|"
    for name, field in valves.model_fields.items():
        text = (field.description or "").replace("|", "\\|")
        yield f"| `{name}` | {field.title} | {text} |"


if __name__ == "__main__":
    sys.exit(main())
