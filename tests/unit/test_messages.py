"""Sentences in the reader's language, and that no translation is missing, stale or says something else."""

import ast
import copy
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

import messages as catalogue
from bundle.rules import KINDS
from bundle.words import read_po, translations
from deploy.plugin import load_plugin
from ollama_pack.base import messages
from ollama_pack.base.messages import Message, in_language, joined, known_language, message, script_words

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path for kind in KINDS for path in (ROOT / kind).glob("*.py"))
CODE = sorted(path for folder in catalogue.SOURCES for path in (ROOT / folder).rglob("*.py"))


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    chinese = {
        "Node {node} did not answer within {seconds:g} s.": "节点 {node} 在 {seconds:g} 秒内没有回应。",
        "no connection": "无法连接",
        " or ": "或",
    }
    monkeypatch.setattr(messages, "TRANSLATIONS", {"zh-CN": chinese})


def test_reads_as_english_until_somebody_asks_for_chinese() -> None:
    said = message("Node {node} did not answer within {seconds:g} s.", node="gpu1", seconds=2.0)
    assert said == "Node gpu1 did not answer within 2 s."
    assert in_language(said, "zh-CN") == "节点 gpu1 在 2 秒内没有回应。"
    assert in_language(said, "de") == said


def test_values_are_translated_as_well() -> None:
    """A reason inside a sentence that stays English."""
    inner = message("no connection")
    for value in (inner, ValueError(inner)):
        outer = joined(["gpu1", value], message(" or "))
        assert outer == "gpu1 or no connection"
        assert in_language(outer, "zh") == "gpu1或无法连接"


def test_an_error_shows_its_message() -> None:
    assert in_language(ValueError(message("no connection")), "zh-CN") == "无法连接"
    assert in_language(OSError(2, "No such file"), "zh-CN") == "[Errno 2] No such file"


def test_braces_in_values_stay_as_they_are() -> None:
    """A user's text with braces that is taken for a placeholder."""
    said = joined(["{node}", "", "{0.args}"])
    assert said == "{node} · {0.args}"
    assert in_language(said, "zh-CN") == said


def test_any_error_can_be_shown_in_any_language() -> None:
    """Would catch an error path that breaks on an answer in JSON, or on a value that is gone by then."""
    for said in ('{"error": "no {model}"}', "{", "}", "{0}", "{:d}"):
        assert in_language(ValueError(said), "zh-CN") == said
        outer = message("no connection: {why}", why=ValueError(said))
        assert in_language(outer, "zh-CN") == outer == f"no connection: {said}"
    odd = Message(
        "Node gpu1 did not answer.", "Node {node} did not answer within {seconds:g} s.", {"node": 1}
    )
    assert in_language(odd, "zh-CN") == "Node gpu1 did not answer."


def test_a_message_travels_like_any_text() -> None:
    said = message("Node {node} did not answer within {seconds:g} s.", node="gpu1", seconds=2.0)
    assert orjson.dumps({"detail": said}) == json.dumps({"detail": said}).replace(": ", ":").encode()
    for twin in (copy.deepcopy(said), pickle.loads(pickle.dumps(said))):  # noqa: S301 - our own
        assert isinstance(twin, Message)
        assert (twin, twin.template, twin.values) == (said, said.template, said.values)


@pytest.mark.parametrize(
    ("wanted", "known"),
    [
        *((tag, "zh-CN") for tag in ("zh-CN", "zh", "zh-Hans-CN", "zh_CN.UTF-8", "ZH-cn", "zh_CN:en")),
        *((tag, "en") for tag in ("en-US", "de", "", "C", "C.UTF-8", "POSIX", "*", "zh;q=0", ";;q=x,,")),
        ("fr-FR, zh-CN;q=0.8, en;q=0.9", "en"),
        ("fr, zh-TW;q=0.7, en;q=0.5", "zh-CN"),
        ("zh;q=abc", "zh-CN"),
    ],
)
def test_languages_are_matched_leniently(wanted: str, known: str) -> None:
    assert known_language(wanted) == known


def test_a_page_gets_the_sentences_of_its_script() -> None:
    prelude = script_words('t("no connection")', "zh-CN")
    assert json.loads(prelude.split("T_WORDS = ")[1].split(";\n")[0]) == {"no connection": "无法连接"}
    assert "no connection" not in script_words('t("no connection")', "en")


def test_a_po_file_is_read_without_doubtful_entries() -> None:
    text = """msgid ""\nmsgstr "Language: zh\\n"\n\n#, fuzzy\nmsgid "a"\nmsgstr "甲"\n
#: x\nmsgid ""\n"b \\"c\\" "\n"d"\nmsgstr "乙 \\"丙\\""\n\nmsgid "e"\nmsgstr ""\n"""
    assert read_po(text) == {'b "c" d': '乙 "丙"'}


def test_translations_are_complete() -> None:
    """A sentence without a translation, one that nobody says any more, a placeholder that was lost."""
    done = subprocess.run(
        [sys.executable, catalogue.__file__, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_templates_are_literals_with_a_value_for_each_placeholder(path: Path) -> None:
    """A sentence that the catalogue cannot see, or one that fails when it is said."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        match node:
            case ast.Call(func=ast.Name(id="message"), args=[ast.Constant(value=str(template))]):
                names = {keyword.arg for keyword in node.keywords}
                if None not in names:  # `**values`
                    assert catalogue.placeholders(template) == names, f"{path}:{node.lineno}"
            case ast.Call(func=ast.Name(id="message")) if path.name != "messages.py":
                pytest.fail(f"{path}:{node.lineno}: the template is no literal")


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_valve_has_a_title_and_a_text_in_both_languages(path: Path) -> None:
    """`Ttl Seconds`, a valve without its default, or one that a Chinese-speaking admin reads in English."""
    plugin = load_plugin(path)
    chinese = plugin.i18n(translations(ROOT))["zh-CN"]
    assert chinese["name"]
    assert chinese["description"]
    for group, valves in (("valves", plugin.valves), ("user_valves", plugin.user_valves)):
        for name, field in (valves.model_fields if valves else {}).items():
            assert field.title, name
            assert re.search(r"Default: |Do not edit\.$", field.description or ""), name
            assert {f"{group}.{name}.title", f"{group}.{name}.description"} <= chinese.keys(), name
            is_number = field.annotation in {int, float} and name != "priority"
            has_unit = re.search(r"(seconds|minutes|MB|KiB|[Ll]imit|[Ee]rror|[Pp]ort)\b", field.title)
            assert has_unit or not is_number, f"{name}: {field.title}"


@pytest.mark.parametrize("path", sorted((ROOT / "locale").glob("*.po")), ids=lambda path: path.stem)
def test_chinese_uses_its_own_punctuation(path: Path) -> None:
    """A comma of English after a Chinese word."""
    for english, chinese in read_po(path.read_text(encoding="utf-8")).items():
        prose = re.sub(r"`[^`]*`", "", chinese)
        found = re.search(r"[一-鿿] ?[,;:?!]|[一-鿿]\.(?!\w)", prose)
        assert not found, f"{english!r} → {chinese!r}"


def test_words_that_readers_stumble_on_are_refused() -> None:
    """Would catch a check that passes everything, or one that refuses an example in a table."""
    assert list(catalogue.stumbling("Whoever asks anew is told so.")) == [
        "'Whoever': write 'those who'",
        "'anew': write 'again'",
        "'told': write 'reported, shown or said'",
    ]
    assert not list(catalogue.stumbling("`told` and *Can you tell me whom?* are examples, as is a thusness."))
