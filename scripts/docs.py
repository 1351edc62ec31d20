"""Write what README.md and docs/ have from the code; `--check` only says whether they are so.

A table stands between `<!-- valves: functions/model_alias_filter -->` (or `<!-- metrics -->`) and
`<!-- end -->`. Pages in Chinese (README.zh.md, docs/zh/) get theirs from the translations in `locale/`.
Each page ends with the project's address, between `<!-- address -->` and `<!-- end -->`.

With `--check`, each Chinese page is also compared with its English one: headings, paragraphs, rows, code,
links, `names` and figures are the same, so that it cannot fall behind unnoticed.
"""

import argparse
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from pathlib import Path

from bundle.words import translations
from deploy.plugin import load_plugin
from docs_site import CHINESE, LANGUAGE_LINE, LINK
from ollama_pack.base.messages import message
from ollama_pack.services import metrics_text
from ollama_pack.services.metrics_text import Metric
from package import ROOT, add_version, repository

HOW_TO = "“Pages in Chinese” in CONTRIBUTING.md says how"
VALVE_HEADS = (message("Valve"), message("Title"), message("What it does"))
METRIC_HEADS = (message("Metric"), message("Type"), message("Labels"), message("What it is"))
ADDRESS = {
    "en": "Source code, releases and issues: <{}>\n",
    CHINESE: "源代码、发布版本与问题反馈：<{}>\n",  # noqa: RUF001 - Chinese punctuation
}

_TABLE = re.compile(
    r"(<!-- (?:valves: (?P<plugin>\S+)|metrics) -->\n)(?P<table>.*?)(<!-- end -->)", re.DOTALL
)
_ADDRESS = re.compile(r"\n*<!-- address -->\n.*?<!-- end -->\n*\Z", re.DOTALL)
_NAME = re.compile(r"`([^`]+)`")
_FIGURE = re.compile(r"\d+(?:[.,:]\d+)*")
_ITEM = re.compile(r"\s*(?:[-*]|\d+\.) ")
_REMARK = re.compile(r"(?:^|\s+)#(?:\s.*|$)")  # in code
_HAN = re.compile(r"[\u3400-\u9fff\u3000-\u303f\uff00-\uffef]")

Words = Mapping[str, str]  # English → the page's language; empty for English


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
        new = _TABLE.sub(lambda found: f"{found[1]}{_table(found['plugin'], page)}{found[4]}", old)  # noqa: B023
        new = _ADDRESS.sub("", new).rstrip("\n") + "\n\n" + address(page)
        if old == new:
            continue
        stale += 1
        if check:
            print(f"{page.relative_to(ROOT)}: what it has from the code is stale: run `make docs`")
        else:
            page.write_text(new, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")
    if not check:
        return 0
    wrong = [problem for pair in pairs() for problem in behind(*pair)]
    print("\n".join(wrong), end="\n" if wrong else "")
    return 1 if stale or wrong else 0


def pages() -> list[Path]:
    """Every document for people who use the pack, in both languages."""
    return sorted(page for pair in pairs() for page in pair if page.exists())


def pairs() -> list[tuple[Path, Path]]:
    """Where every page is, in English and in Chinese."""
    docs = ROOT / "docs"
    names = {page.name for folder in (docs, docs / CHINESE) for page in folder.glob("*.md")}
    return [
        (ROOT / "README.md", ROOT / f"README.{CHINESE}.md"),
        *((docs / name, docs / CHINESE / name) for name in sorted(names)),
    ]


def language_of(page: Path) -> str:
    """`zh` or `en`."""
    return CHINESE if page.parent.name == CHINESE or page.stem.endswith(f".{CHINESE}") else "en"


def address(page: Path) -> str:
    """The last lines of a page."""
    return f"<!-- address -->\n{ADDRESS[language_of(page)].format(repository(ROOT))}<!-- end -->\n"


# ── Tables from the code ──


def _table(plugin: str | None, page: Path) -> str:
    words = _chinese() if language_of(page) == CHINESE else {}
    return valve_table(plugin, words) if plugin else metrics_table(words)


@cache
def _chinese() -> Words:
    return translations(ROOT)["zh-CN"]


def metrics_table(words: Words) -> str:
    """What `GET /ollama-pack/metrics` answers, as a Markdown table."""
    lines = [
        f"| `ollama_pack_{one.name}` | {one.kind} | {_labels(one)} | {words.get(one.text, one.text)} |\n"
        for one in all_metrics()
    ]
    return "".join([_row(METRIC_HEADS, words), "|---|---|---|---|\n", *lines])


def all_metrics() -> Iterator[Metric]:
    """Every family, in the order of the source."""
    return (value for value in vars(metrics_text).values() if isinstance(value, Metric))


def _labels(metric: Metric) -> str:
    return ", ".join(f"`{name}`" for name in metric.labels)


def valve_table(plugin: str, words: Words) -> str:
    """The valves of a plugin, such as `functions/model_alias_filter`, as a Markdown table.

    Raises:
        SystemExit: it has none.
    """
    valves = load_plugin(ROOT / f"{plugin}.py").valves
    if valves is None:
        raise SystemExit(f"{plugin} has no valves: take its table out of the page")
    lines = [_row(VALVE_HEADS, words), "|---|---|---|\n"]
    for name, valve in valves.model_fields.items():
        lines.append(_row((f"`{name}`", valve.title or "", valve.description or ""), words))
    return "".join(lines)


def _row(cells: tuple[str, ...], words: Words) -> str:
    return "| " + " | ".join(words.get(cell, cell).replace("|", "\\|") for cell in cells) + " |\n"


# ── Pages in Chinese ──


@dataclass
class _Page:
    """What a page and its translation have in common."""

    headings: list[str] = field(default_factory=list)
    blocks: list[list[str]] = field(default_factory=list)  # of code
    shapes: list[str] = field(default_factory=list)  # of each section: its paragraphs, items and rows
    prose: list[str] = field(default_factory=list)


def behind(english: Path, chinese: Path) -> Iterator[str]:
    """What the Chinese page has not, or has too much, in comparison with the English one."""
    name, other = english.relative_to(ROOT).as_posix(), chinese.relative_to(ROOT).as_posix()
    if not chinese.exists():
        yield f"{name} has no page in Chinese: write {other}. {HOW_TO}"
        return
    if not english.exists():
        yield f"{other} has no page in English: delete it, or write {name}"
        return
    ours, theirs = (page.read_text(encoding="utf-8") for page in (english, chinese))
    for page, text, line in (
        (name, ours, f"English | [简体中文]({_relative(chinese, english)})"),
        (other, theirs, f"[English]({_relative(english, chinese)}) | 简体中文"),
    ):
        if text.split("\n")[1:4] != ["", line, ""]:
            yield f"{page}: its third line, below the title, has to be `{line}`"
    for problem in differences(ours, theirs, english.parent, chinese.parent):
        yield f"{other} is not what {name} is now: {problem}. {HOW_TO}"


def _relative(target: Path, page: Path) -> str:
    if page.parent.name == CHINESE:
        return f"../{target.name}"
    return target.relative_to(page.parent).as_posix()


def differences(english: str, chinese: str, folder: Path, other_folder: Path) -> Iterator[str]:
    """Where two texts in Markdown, which stand in these folders, are not each other's translation."""
    ours, theirs = _read(english), _read(chinese)
    for heading, translated in zip_longest(ours.headings, theirs.headings, fillvalue=""):
        if _level(heading) != _level(translated):
            yield f"its heading {translated!r} is where the English page has {heading!r}"
            return
    for heading, shape, other in zip(["", *ours.headings], ours.shapes, theirs.shapes, strict=True):
        if shape != other:
            yield f"below {heading!r} the English page has {shape}, it has {other}"
    yield from _different_code(ours.blocks, theirs.blocks)
    links, other_links = _links(english, folder), _links(chinese, other_folder)
    yield from (f"it has no link to {target}" for target in sorted(links - other_links))
    yield from (f"its link to {target} is not in the English page" for target in sorted(other_links - links))
    prose, other_prose = "\n".join(ours.prose), "\n".join(theirs.prose)
    names, other_names = _names(prose), _names(other_prose)
    yield from (f"`{found}` is missing" for found in sorted(names - other_names))
    yield from (f"`{found}` is not in the English page" for found in sorted(other_names - names))
    figures = set(_FIGURE.findall(prose)) - set(_FIGURE.findall(other_prose))
    yield from (f"the figure {figure} is missing" for figure in sorted(figures))


def _names(text: str) -> set[str]:
    """What is written as code and is no sentence: valves, fields, addresses."""
    return {found for found in _NAME.findall(text) if not re.search(r"\s", found) and not _HAN.search(found)}


def _level(heading: str) -> int:
    return len(heading) - len(heading.lstrip("#"))


def _different_code(ours: list[list[str]], theirs: list[list[str]]) -> Iterator[str]:
    for block, other in zip_longest(ours, theirs, fillvalue=list[str]()):
        for line, other_line in zip_longest(block, other, fillvalue=""):
            if not _same_code(line, other_line):
                yield f"the code has {other_line.strip()!r} where the English page has {line.strip()!r}"


def _same_code(line: str, other: str) -> bool:
    """Whether they are the same; a remark after `#`, or in a column of its own, may be translated."""
    command, other_command = _REMARK.sub("", line), _REMARK.sub("", other)
    if command == other_command:
        return True
    first, other_first = (re.split(r"\s{2,}", one)[0] for one in (command, other_command))
    return first == other_first and bool(_HAN.search(other_command))


def _links(text: str, folder: Path) -> Counter[str]:
    """Where a page's links lead; pages in Chinese count as their English ones."""
    found: Counter[str] = Counter()
    for _, _, target in LINK.findall(LANGUAGE_LINE.sub("", text)):
        path, _, anchor = target.partition("#")
        if path and "://" not in path:
            file = (folder / path).resolve()
            name = file.name.replace(f".{CHINESE}.", ".").replace(".en.", ".")
            file = (file.parents[1] if file.parent.name == CHINESE else file.parent) / name
            path = file.relative_to(ROOT).as_posix()
        found[f"{path}#{anchor}" if anchor else path] += 1
    return found


def _read(text: str) -> _Page:
    page, counts, fenced, indented, blank = _Page(), Counter[str](), False, False, True
    for line in LANGUAGE_LINE.sub("", _TABLE.sub("", text)).splitlines():
        after_blank, blank = blank, not line.strip()
        indented = line.startswith("    ") and (after_blank or indented) and not fenced
        if line.startswith("```"):
            fenced = not fenced
            page.blocks += [[]] if fenced else []
        elif fenced or indented:
            page.blocks += [[]] if indented and after_blank else []
            page.blocks[-1].append(line)
        elif line.startswith("#"):
            page.shapes.append(_shape(counts))
            page.headings.append(line)
            counts.clear()
        elif not blank and not line.startswith(("<!--", "<a id=")):
            page.prose.append(line)
            kind = "rows" if line.startswith("|") else "items" if _ITEM.match(line) else "paragraphs"
            counts[kind] += kind != "paragraphs" or after_blank
    page.shapes.append(_shape(counts))
    page.blocks = [textwrap.dedent("\n".join(block)).splitlines() for block in page.blocks]
    return page


def _shape(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[kind]} {kind}" for kind in ("paragraphs", "items", "rows"))


if __name__ == "__main__":
    sys.exit(main())
