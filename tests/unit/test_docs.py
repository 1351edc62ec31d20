"""The documentation in Chinese: no page is missing or behind, and the comparison sees what falls behind."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from docs import all_metrics, behind, differences, metrics_table, pairs, valve_table
from docs_site import LANGUAGE_LINE, site_links

ROOT = Path(__file__).parents[2]
# The way to a page or a button of Open WebUI. After the last name the sentence may go on.
ENGLISH_MENUS = re.compile(r"\*?(?:Admin Panel|Settings|Workspace|Controls)\*?(?: → [^→,.;:()|`\n]+)+")
CHINESE_MENUS = re.compile(r"\*?(?:管理员面板|设置|工作空间|对话高级设置)\*?(?: → [^→，。；：（）|`\n]+)+")
ENGLISH = """# Title

English | [简体中文](zh/page.md)

Set `ttl_seconds` to 3,600 ([cache.md](cache.md#scope)).

    uv run scripts/upload.py    # sends it
    weights    bytes of the file

## Two

- one
- two

| a | b |
|---|---|
| c | d |
"""
CHINESE = """# 标题

[English](../page.md) | 简体中文

请把 `ttl_seconds` 设为 3,600（[cache.md](cache.md#scope)）。

    uv run scripts/upload.py    # 上传
    weights    文件的字节数

<a id="two"></a>

## 二

- 一
- 二

| 甲 | 乙 |
|---|---|
| 丙 | 丁 |
"""


@pytest.mark.parametrize("pair", pairs(), ids=lambda pair: pair[0].stem)
def test_a_page_in_chinese_is_not_behind(pair: tuple[Path, Path]) -> None:
    wrong = list(behind(*pair))
    assert not wrong, "\n".join(wrong)


def test_a_page_in_one_language_is_reported() -> None:
    docs = ROOT / "docs"
    assert next(behind(docs / "cache.md", docs / "zh" / "none.md")).startswith(
        "docs/cache.md has no page in Chinese: write docs/zh/none.md."
    )
    assert list(behind(docs / "none.md", docs / "zh" / "cache.md")) == [
        "docs/zh/cache.md has no page in English: delete it, or write docs/none.md"
    ]


def found(chinese: str) -> list[str]:
    return list(differences(ENGLISH, chinese, ROOT / "docs", ROOT / "docs" / "zh"))


def test_a_translation_differs_in_nothing() -> None:
    assert found(CHINESE) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("## 二", "### 二", "its heading '### 二' is where the English page has '## Two'"),
        ("## 二\n", "", "its heading '' is where"),
        ("- 二\n", "", "below '## Two' the English page has 0 paragraphs, 2 items, 3 rows, it has"),
        ("| 丙 | 丁 |\n", "", "it has 0 paragraphs, 2 items, 2 rows"),
        ("\n<a", "\n多出一段。\n\n<a", "below '# Title' the English page has 1 paragraphs"),
        ("upload.py    # 上传", "doctor.py    # 上传", "the code has 'uv run scripts/doctor.py    # 上传'"),
        ("weights    文件", "权重    文件", "the code has '权重"),
        ("    weights    文件的字节数\n", "", "the code has '' where"),
        ("cache.md#scope", "cache.md", "it has no link to docs/cache.md#scope"),
        ("`ttl_seconds`", "`ttl`", "`ttl_seconds` is missing"),
        ("`ttl_seconds`", "`ttl_seconds` 和 `ttl`", "`ttl` is not in the English page"),
        ("3,600", "7,200", "the figure 3,600 is missing"),
    ],
)
def test_what_falls_behind_is_seen(old: str, new: str, problem: str) -> None:
    wrong = found(CHINESE.replace(old, new))
    assert any(problem in one for one in wrong), wrong


def test_tables_from_the_code_are_in_the_language_of_the_page() -> None:
    english = valve_table("functions/usage_budgets", {})
    chinese = valve_table("functions/usage_budgets", {"Valve": "配置项", "Priority": "优先级"})
    assert english.startswith("| Valve | Title | What it does |\n|---|---|---|\n| `priority` | Priority |")
    assert chinese.startswith("| 配置项 | Title | What it does |\n|---|---|---|\n| `priority` | 优先级 |")
    text = next(iter(all_metrics())).text
    assert f"| {text} |" in metrics_table({})
    assert "| 甲 |" in metrics_table({text: "甲"})


def test_the_site_has_its_own_menu_of_languages() -> None:
    """A line that leads to the page itself, in both languages."""
    for text, folder in ((ENGLISH, ROOT / "docs"), (CHINESE, ROOT / "docs" / "zh")):
        assert LANGUAGE_LINE.search(text)
        assert "简体中文" not in site_links(text, folder, "")


def test_the_site_refuses_a_link_to_no_file() -> None:
    """One that the builder cannot check, because it leads out of the documentation."""
    assert site_links("[x](../pack.example.yaml)", ROOT / "docs", "https://a.example") == (
        "[x](https://a.example/pack.example.yaml)"
    )
    with pytest.raises(SystemExit, match=r"there is no pack\.exemplary\.yaml"):
        site_links("[x](../pack.exemplary.yaml)", ROOT / "docs", "https://a.example")


@pytest.mark.parametrize(
    ("language", "words"), [("en", ENGLISH_MENUS), ("zh", CHINESE_MENUS)], ids=["en", "zh"]
)
def test_menus_are_called_as_open_webui_calls_them(language: str, words: re.Pattern[str]) -> None:
    """Would catch a menu or a button that readers look for in vain, as after an update of Open WebUI."""
    found = find_spec("open_webui")
    if found is None or found.origin is None:
        pytest.skip("Open WebUI is not installed: uv sync --group webui")
    scripts = (Path(found.origin).parent / "frontend" / "_app" / "immutable" / "chunks").glob("*.js")
    catalogue = re.compile(
        rb'"Admin Panel":"(?:|\xe7\xae\xa1[^"]+)"'
    )  # English, which has it as the key, and Chinese
    shown = "\n".join(text.decode() for text in map(Path.read_bytes, scripts) if catalogue.search(text))

    def is_shown(name: str) -> bool:
        return any(form.format(name) in shown for form in ('"{}"', "'{}'", "`{}`", ",{}:"))

    pages = [pair[language == "zh"] for pair in pairs()]
    ways = {way for page in pages for way in words.findall(page.read_text(encoding="utf-8"))}
    assert len(ways) > 5
    for way in ways:
        *menus, last = [name.strip() for name in way.replace("*", "").split("→")]
        assert [name for name in menus if not is_shown(name)] == [], way
        assert any(is_shown(last[:length]) for length in range(2, len(last) + 1)), way
