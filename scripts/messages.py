"""Keep the translations complete: take all sentences for people out of the source and into `locale/*.po`.

    uv run --group lint scripts/messages.py [--check]

Sentences are what the code gives to `message(…)` and the pages' scripts to `t(…)`. New ones get an empty
translation: write it into `locale/zh_CN.po`, then run `scripts/package.py`. With `--check` nothing is
written, and all that is missing, stale or wrong is listed.

Exit status: 0 complete, 1 something is missing or wrong, 2 bad usage.
"""

import argparse
import ast
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Formatter

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po

from bundle.words import LOCALE, in_script, module_text, translations
from bundle.words import sentences as in_nodes
from package import ROOT, add_version

DICTIONARY = Path("src/ollama_pack/base/translations.py")
SOURCES = ("src/ollama_pack", "scripts")


def sentences() -> dict[str, set[str]]:
    """English → the files that say it."""
    found: dict[str, set[str]] = {}
    for english, place in _in_code():
        found.setdefault(english, set()).add(place)
    return found


def _in_code() -> Iterator[tuple[str, str]]:
    for path in (path for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))):
        tree = ast.parse(path.read_bytes())
        yield from ((english, path.relative_to(ROOT).as_posix()) for english in in_nodes([tree]))
    for path in (path for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.js"))):
        yield from (
            (english, path.relative_to(ROOT).as_posix()) for english in in_script(path.read_text("utf-8"))
        )


def updated(path: Path, found: dict[str, set[str]]) -> bytes:
    """A `.po` file with exactly these sentences, and the translations that it has of them."""
    text = path.read_bytes()
    old, new = read_po(io.BytesIO(text)), Catalog(locale=path.stem, fuzzy=False)
    for english, places in found.items():
        known = old.get(english)
        flags = (known.flags & {"fuzzy"}) if known else ()
        new.add(english, known.string if known else "", [(place, 0) for place in sorted(places)], flags)
    buffer = io.BytesIO()
    # No line numbers and one line for each sentence: branches that add some merge without a conflict.
    write_po(buffer, new, width=0, sort_output=True, include_lineno=False, omit_header=True)
    return text.partition(b"\n\n")[0].rstrip() + b"\n\n" + buffer.getvalue()


def problems(path: Path) -> Iterator[str]:
    """What is wrong with the translations in a file."""
    for entry in read_po(io.BytesIO(path.read_bytes())):
        if not entry.id:
            continue
        if not entry.string or entry.fuzzy:
            yield f"not translated: {entry.id!r}"
        elif placeholders(str(entry.id)) != placeholders(str(entry.string)):
            yield f"other placeholders than the English: {entry.id!r} → {entry.string!r}"


def placeholders(text: str) -> set[str]:
    """The names in braces; a text that no `str.format` reads has none."""
    try:
        return {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError:
        return {text}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Keep the translations in locale/ complete.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when something is missing"
    )
    add_version(parser)
    options = parser.parse_args(arguments)
    found, wrong = sentences(), []
    for path in sorted((ROOT / LOCALE).glob("*.po")):
        name, text = path.relative_to(ROOT).as_posix(), updated(path, found)
        if text != path.read_bytes() and options.check:
            wrong.append(f"{name}: does not have the sentences of the source: run `scripts/messages.py`")
        elif text != path.read_bytes():
            path.write_bytes(text)
            print(f"wrote {name}")
        wrong += [f"{name}: {problem}" for problem in problems(path)]
    if not options.check:
        (ROOT / DICTIONARY).write_text(module_text(translations(ROOT)), encoding="utf-8")
    elif (ROOT / DICTIONARY).read_text(encoding="utf-8") != module_text(translations(ROOT)):
        wrong.append(f"{DICTIONARY}: not what {LOCALE}/ says: run `scripts/package.py`")
    for line in wrong:
        print(line)
    print(f"{len(found)} sentences: " + ("incomplete." if wrong else "complete."))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
