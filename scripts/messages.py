"""Keep the translations complete: take all sentences for people out of the source and into `locale/*.po`.

    uv run --group lint scripts/messages.py [--check]

Sentences are what the code gives to `message(…)` and the pages' scripts to `t(…)`, and the titles and
descriptions of plugins, their valves and metrics. New ones get an empty translation: write it into
`locale/zh_CN.po`, then run `scripts/package.py`. With `--check` nothing is written: what is missing, stale or
wrong is listed, and so are sentences for people that do not go through `message`, and words that readers
stumble on, in sentences, in README.md and in docs/.

Exit status: 0 complete, 1 something is missing or wrong, 2 bad usage.
"""

import argparse
import ast
import importlib
import io
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from string import Formatter

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po

from bundle.rules import KINDS, frontmatter_keys
from bundle.words import LOCALE, in_script, module_text, translations
from bundle.words import sentences as in_nodes
from ollama_pack.services import metrics_text
from package import ROOT, add_version

DICTIONARY = Path("src/ollama_pack/base/translations.py")
PLUGINS = Path("src/ollama_pack/plugins")
SOURCES = ("src/ollama_pack", "scripts")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "pack.example.yaml", "docs/*.md")
# Words that a native reader stumbles on → what to write. Examples that quote a question may have them.
STUMBLING = {
    "anew": "again",
    "beside": "next to",
    "but for": "except",
    "heed": "follow",
    "in vain": "without success",
    "reckon": "estimate",
    "tells": "reports, shows or says",
    "there stand": "there are",
    "thus": "so",
    "told": "reported, shown or said",
    "whoever": "those who",
    "whom": "a sentence of its own",
}
# What is given to these is shown to people, so it is in the catalogue.
_SPOKEN = ("Error", "__init__", "Finding", "Trouble", "Refusal", "GpuReport", "SpeechNote", "say", "print")
# Except where only programs and developers meet them.
UNSPOKEN = {
    "AssertionError",
    "EntryUnreadableError",
    "NotCoveredError",
    "NotImplementedError",
    "RuntimeError",
}
FOR_DEVELOPERS = (
    *("scripts/bundle/", "scripts/docs", "scripts/messages.py", "scripts/release.py", "scripts/run_tests.py"),
    *(
        "scripts/local/without_pip/",
        "src/ollama_pack/routing/peers/",
        "src/ollama_pack/speech/http_answer.py",
    ),
)
_SENTENCE = re.compile(r"[A-Za-z]{2,}[,:;]? [a-z]{2,}")
# Open WebUI's own words, which its clients compare, and what is a name in the code.
NAMES = {"Model not found", "first byte", "voice activity"}
# Of Python's argparse, in `--help` and in errors: `package.command_line`.
ARGPARSE = (
    "usage: ",
    "positional arguments",
    "options",
    "show this help message and exit",
    "%(prog)s: error: %(message)s\n",
    "argument %(argument_name)s: %(message)s",
    "the following arguments are required: %s",
    "unrecognized arguments: %s",
    "expected one argument",
    "expected at least one argument",
    "ignored explicit argument %r",
    "ambiguous option: %(option)s could match %(matches)s",
    "invalid %(type)s value: %(value)r",
    "invalid choice: %(value)r (choose from %(choices)s)",
)
_STUMBLING = re.compile(rf"\b({'|'.join(STUMBLING)})\b", re.IGNORECASE)
_QUOTED = re.compile(r"`[^`]*`|\*[^*]*\*")


def sentences() -> dict[str, set[str]]:
    """English → the files that say it."""
    found: dict[str, set[str]] = {}
    for english, place in (*_in_code(), *_of_plugins(), *_of_metrics(), *_of_argparse()):
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


def _of_plugins() -> Iterator[tuple[str, str]]:
    """Titles and descriptions of the plugins, and of their valves."""
    for kind in KINDS:
        for path in sorted((ROOT / PLUGINS / kind).glob("[!_]*.py")):
            module = importlib.import_module(f"ollama_pack.plugins.{kind}.{path.stem}")
            place = path.relative_to(ROOT).as_posix()
            keys = {key: value for _, key, value in frontmatter_keys(module.__doc__ or "")}
            yield keys["title"], place
            yield keys["description"], place
            entry = next(getattr(module, name) for name in KINDS[kind] if hasattr(module, name))
            for group in ("Valves", "UserValves"):
                for field in getattr(getattr(entry, group, None), "model_fields", {}).values():
                    yield from ((text, place) for text in (field.title, field.description) if text)


def _of_metrics() -> Iterator[tuple[str, str]]:
    """What the documentation says of each metric; Prometheus itself gets the English."""
    place = f"src/{metrics_text.__name__.replace('.', '/')}.py"
    metrics = (value for value in vars(metrics_text).values() if isinstance(value, metrics_text.Metric))
    yield from ((metric.text, place) for metric in metrics)


def _of_argparse() -> Iterator[tuple[str, str]]:
    """What Python says of a command line, which is its own and not the pack's."""
    yield from ((english, "scripts/package.py") for english in ARGPARSE)


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


def stumbling(text: str) -> Iterator[str]:
    """What to write in place of words that readers stumble on. Those in `code` or *italics* do not count."""
    for found in _STUMBLING.findall(_QUOTED.sub("", text)):
        yield f"{found!r}: write {STUMBLING[found.lower()]!r}"


def unmarked(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Sentences of errors and of what scripts print that are not in the catalogue: line and English."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node).endswith(_SPOKEN) and _called(node) not in UNSPOKEN:
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            yield from ((node.lineno, text) for value in given for text in _texts(value))


def _called(node: ast.Call) -> str:
    match node.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _texts(node: ast.AST) -> Iterator[str]:
    """The sentences in an expression, without those that are marked and those that another call gets."""
    match node:
        case ast.Call() if _called(node) == "message" or _called(node).endswith(_SPOKEN):
            return
        case ast.JoinedStr(values=values):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in values)
        case ast.Constant(value=str(text)):
            pass
        case _:
            for inner in ast.iter_child_nodes(node):
                yield from _texts(inner)
            return
    if _SENTENCE.search(text) and text not in NAMES:
        yield text


def _unmarked_places() -> Iterator[str]:
    for path in (path for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))):
        place = path.relative_to(ROOT).as_posix()
        if not place.startswith(FOR_DEVELOPERS):
            for line, text in unmarked(ast.parse(path.read_bytes())):
                yield f"{place}:{line}: {text!r} is shown to people: write message({text!r}, …)"


def _stumbling_places(found: Iterable[str]) -> Iterator[str]:
    for english in sorted(found):
        yield from (f"the sentence {english!r} has {advice}" for advice in stumbling(english))
    for path in (path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            yield from (f"{path.relative_to(ROOT)}:{number} has {advice}" for advice in stumbling(line))


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
    wrong += [*_stumbling_places(found), *_unmarked_places()]
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
