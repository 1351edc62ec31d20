"""The normal form of questions: what people say in other words is one question, and a trap never is."""

import re
import time
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.similar import Pair, read_pairs, report, serves_normalised
from ollama_pack.cache.normal_form import LONGEST, normal_form

DATA = Path(__file__).parents[2] / "bench/data"
PAIRS = read_pairs(sorted(DATA.glob("pairs-*.jsonl")))
TRAPS = [pair for pair in PAIRS if not pair.same]


def test_no_trap_is_served_and_most_paraphrases_are() -> None:
    """Would catch a rule that takes two questions for one, and one that takes hardly any."""
    found = report(PAIRS, serves_normalised)
    assert [pair for pair in TRAPS if serves_normalised(pair)] == []
    assert found["served"] >= 0.7 * found["same"]


def test_only_questions_that_belong_together_share_a_form() -> None:
    """Would catch a collision between any two of all the questions, not only within a pair."""
    one_thing = ("什么是光合作用", "光合作用是什么"), ("糖尿病有哪些症状", "糖尿病的症状是什么")
    together = {text: set(texts) for texts in one_thing for text in texts}
    for pair in PAIRS:
        if pair.same:
            one, two = _bare(pair.a), _bare(pair.b)
            group = together.get(one, {one}) | together.get(two, {two})
            together |= dict.fromkeys(group, group)
    forms: dict[str, set[str]] = {}
    for pair in PAIRS:
        for text in (pair.a, pair.b):
            if form := normal_form(text):
                forms.setdefault(form, set()).add(text)
    wrong = [
        (one, two)
        for texts in forms.values()
        for one, two in combinations(sorted(texts), 2)
        if _bare(two) not in together.get(_bare(one), {_bare(one)})
    ]
    assert wrong == []


def _bare(text: str) -> str:
    """A question without case, marks and courtesy."""
    small = re.sub(r"[^\w`\"+^=*/²-]", "", text.lower())
    return re.sub(r"^(?:hello|hi|hey|please|canyou|couldyou)+|(?:tome|thanks|please)$|一下|请问?", "", small)


@pytest.mark.parametrize(
    "text",
    [
        "Wie ist das Wetter in Berlin?",
        "¿Cuál es la capital de Perú?",
        "フランスの首都はどこですか",
        "def f(x):\n    return x",
        'She said "hello',
        "",
        "?!",
        "word " * 200,
    ],
)
def test_what_has_no_rules_has_no_form(text: str) -> None:
    """Would catch English rules for other languages, and code whose lines are joined."""
    assert normal_form(text) == ""


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("What does x² mean?", "What does x2 mean?"),
        ("Is it a ＮＡＴＯ member?", "Is it a NATO member?"),
        ("How do I use `rm  -r`?", "How do I use `rm -r`?"),
    ],
)
def test_width_means_nothing_and_code_is_kept_to_the_letter(one: str, two: str) -> None:
    """Would catch all of NFKC, which makes x² into x2, and code that is tidied."""
    same = "ＮＡＴＯ" in one
    assert (normal_form(one) == normal_form(two)) == same


@given(
    st.text(max_size=80)
    | st.lists(
        st.sampled_from(
            [
                "tell",
                "me",
                ",",
                "the",
                "what",
                "is",
                "how",
                "you",
                "please",
                "if",
                "of",
                "5",
                "?",
                "请",
                "什么",
                "是",
            ]
        )
    ).map(" ".join)
)
def test_any_text_has_a_form_or_none(text: str) -> None:
    """Would catch a text that raises, and one whose form changes with spaces around it."""
    assert normal_form(f"  {text}\t") == normal_form(text)


KINDS = {
    "can you, of people in general": (
        ("Can you give blood with a cold?", "Give blood with a cold"),
        ("Can you write off a car loan?", "Write off a car loan"),
        ("Would you recommend a Tesla?", "Recommend a Tesla"),
        ("你会写代码吗？", "写代码吗"),
        ("你会推荐朋友买这个吗？", "推荐朋友买这个"),
    ),
    "a courtesy that is asked about": (
        ("May I ask why she left?", "Why did she leave?"),
        ("What does actually mean?", "What does mean?"),
        ("帮忙用英语怎么说？", "用英语怎么说？"),
    ),
    "a name that is a word": (
        ("Who are The Police?", "Who are the police?"),
        ("Where is The Office filmed?", "Where is the office filmed?"),
        ("How does Steam work?", "How does steam work?"),
    ),
    "words that are asked about, or worked on": (
        ("What is the difference between can't and cannot?", "The difference between can not and cannot"),
        ("Is colour correct?", "Is color correct?"),
        ("Fix the case: iphone", "Fix the case: iPhone"),
        ("What does this mean: 👍", "What does this mean: 🙏"),
    ),
    "marks that are no punctuation": (("What is 5! ?", "What is 5?"),),
    "how and where without instructions": (
        ("How could I forget her?", "How can I forget her?"),
        ("How would I look with a beard?", "How do I look with a beard?"),
        ("Where do I live?", "Where can I live?"),
    ),
    "for whom": (("Suggest a nickname for me", "Suggest a nickname"),),
    "whose why": (("你觉得为什么会下雨？", "为什么你觉得会下雨？"),),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_traps(kind: str) -> None:
    """Would catch a rule that overlooks one kind of words that are no filler where they stand."""
    assert [(one, two) for one, two in KINDS[kind] if normal_form(one) == normal_form(two) != ""] == []


@pytest.mark.parametrize(
    "part",
    [
        "a ",
        "tell me ",
        "what is the ",
        ", ",
        "if ",
        "can you please ",
        "! ",
        "请",
        "什么是",
        "a-",
        "1,",
        "'",
        "/",
        "和",
        "有多少",
        "word",
        "a.",
        "i would like to know ",
        "difference between a and ",
    ],
)
def test_no_text_takes_long(part: str) -> None:
    """Would catch a rule that goes over a text again and again: the event loop waits for it."""
    text = (part * LONGEST)[:LONGEST]
    began = time.perf_counter()
    normal_form(text)
    assert time.perf_counter() - began < 0.1


def test_pairs_can_be_read(tmp_path: Path) -> None:
    """Would catch a benchmark that fails on other people's pairs, or says nothing of a line that is wrong."""
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"a": "Hi, what is it?", "b": "What is it?", "same": true}\n\n')
    assert read_pairs([file]) == [Pair("Hi, what is it?", "What is it?", same=True)]
    file.write_text('{"a": "x"}\n')
    with pytest.raises(SystemExit, match=r"pairs\.jsonl:1"):
        read_pairs([file])
