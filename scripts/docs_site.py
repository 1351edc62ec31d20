"""Build the documentation as a website, in English and 简体中文, with search: `dist/site/`.

    make site

Its pages are README.md, docs/*.md and their translations in docs/zh/; where one is missing, the English page
stands in. A link to a file outside docs/ leads to the repository, whose address pyproject.toml names.

Exit status: 0 done, 1 a page has a broken link, or a page is in no chapter.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from package import ROOT, add_version, repository

SITE = ROOT / "dist" / "site"
CHINESE = "zh"
# Chapters, in order. A page that is in none is an error.
CHAPTERS: dict[str, tuple[str, ...]] = {
    "Start": ("index", "docker", "install", "compare"),
    "Plugins": (
        "aliases",
        "routing",
        "routing-measured",
        "cache",
        "federation",
        "budgets",
        "gateway",
        "fit",
        "voice",
        "events",
        "pipelines",
    ),
    "Operating": ("deploy", "gpu-agent", "metrics", "troubleshooting"),
    "Developing": ("packaging",),
}
CHAPTERS_CHINESE = {"Start": "开始", "Plugins": "插件", "Operating": "运维", "Developing": "开发"}
# The line below a page's title that leads to the other language, for which the site has a menu.
LANGUAGE_LINE = re.compile(
    r"^(?:English \| \[简体中文\]\(\S+\)|\[English\]\(\S+\) \| 简体中文)\n\n", re.MULTILINE
)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_version(parser)
    parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        gather(folder / "docs", f"{repository(ROOT)}/blob/main")
        (folder / "mkdocs.yml").write_text(yaml.safe_dump(settings(folder / "docs"), allow_unicode=True))
        shutil.rmtree(SITE, ignore_errors=True)
        build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(SITE)]
        environment = os.environ | {
            "NO_MKDOCS_2_WARNING": "true"
        }  # about its next version, which is not used
        done = subprocess.run(
            build, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, check=False
        )
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if not line.startswith("INFO")]
        print("\n".join(told), file=sys.stderr)
        return 1
    print(f"{SITE.relative_to(ROOT)}/index.html")
    return 0


def gather(folder: Path, files: str) -> None:
    """Copy the pages, each translation next to its English page, with links as they are there."""
    folder.mkdir()
    sources = {path: f"{path.stem}.md" for path in (ROOT / "docs").glob("*.md")}
    sources |= {path: f"{path.stem}.{CHINESE}.md" for path in (ROOT / "docs" / CHINESE).glob("*.md")}
    sources[ROOT / "README.md"] = "index.md"
    sources[ROOT / f"README.{CHINESE}.md"] = f"index.{CHINESE}.md"
    for source, name in sources.items():
        if source.exists():
            (folder / name).write_text(site_links(source.read_text(), source.parent, files))
    shutil.copytree(ROOT / "docs" / "pictures", folder / "pictures")
    for drawing in (ROOT / "docs").glob("*.svg"):
        shutil.copy(drawing, folder)


def site_links(text: str, folder: Path, files: str) -> str:
    """A page's text, its relative links as the site has them, without the line for the other language.

    Args:
        text: Markdown.
        folder: where the page is.
        files: the address below which other files can be looked at.

    Raises:
        SystemExit: a link leads to no file.
    """

    def link(found: re.Match[str]) -> str:
        mark, label, target = found.groups()
        path, _, anchor = target.partition("#")
        if not path or "://" in path:
            return found[0]
        file = (folder / path).resolve()
        if not file.exists():
            raise SystemExit(f"site: a page links to {target}, and there is no {file.relative_to(ROOT)}")
        anchor = f"#{anchor}" if anchor else ""
        if file.parent in {ROOT / "docs", ROOT / "docs" / CHINESE} and file.suffix in {".md", ".svg"}:
            return f"{mark}[{label}]({file.name}{anchor})"
        if file.is_relative_to(ROOT / "docs" / "pictures"):
            name = file.name.partition(".")[0]  # the site takes the one in the page's language
            return f"{mark}[{label}](pictures/{name}{file.suffix})"
        if file.stem.partition(".")[0] == "README" and file.parent == ROOT:
            return f"{mark}[{label}](index.md{anchor})"
        return f"[{label}]({files}/{file.relative_to(ROOT)}{anchor})"

    return LINK.sub(link, LANGUAGE_LINE.sub("", text))


def settings(pages: Path) -> dict[str, Any]:
    """What MkDocs is told.

    Raises:
        SystemExit: a page is in no chapter.
    """
    there = {path.stem for path in pages.glob("*.md")}
    unplaced = {name for name in there if "." not in name} - {
        name for names in CHAPTERS.values() for name in names
    }
    if unplaced:
        raise SystemExit(f"site: in no chapter of CHAPTERS: {', '.join(sorted(unplaced))}")
    english = {"locale": "en", "default": True, "name": "English", "build": True}
    chinese = {
        "locale": CHINESE,
        "name": "简体中文",
        "build": True,
        "nav_translations": CHAPTERS_CHINESE,
        "theme": {"language": "zh"},
    }
    return {
        "site_name": "Open WebUI Ollama Pack",
        "repo_url": repository(ROOT),
        "use_directory_urls": False,  # so that it can be read from a folder
        "theme": {
            "name": "material",
            "font": False,  # nothing is fetched from elsewhere
            "features": ["navigation.sections", "navigation.top", "search.suggest", "content.code.copy"],
            "palette": [
                {"media": "(prefers-color-scheme: light)", "scheme": "default"},
                {"media": "(prefers-color-scheme: dark)", "scheme": "slate"},
            ],
        },
        "markdown_extensions": ["tables", "toc", "pymdownx.highlight", "pymdownx.superfences"],
        "plugins": [
            {"search": {"lang": ["en", "zh"]}},
            {"i18n": {"docs_structure": "suffix", "languages": [english, chinese]}},
        ],
        "validation": {"links": {"anchors": "warn", "not_found": "warn"}},
        "nav": [
            {chapter: [f"{name}.md" for name in names if name in there]}
            for chapter, names in CHAPTERS.items()
        ],
    }


if __name__ == "__main__":
    raise SystemExit(main())
