"""Language tags: which are taken, which Whisper code and which Chinese script they mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.speech.errors import LanguageTagError
from ollama_pack.speech.language import LanguageTag, disagree, parse_language
from ollama_pack.speech.languages import LANGUAGES, bcp47_code, language_code


@pytest.mark.parametrize(
    ("tag", "code", "text", "script"),
    [
        ("zh-CN", "zh", "zh-CN", "hans"),
        ("zh", "zh", "zh", "hans"),
        ("ZH_tw", "zh", "zh-TW", "hant-tw"),
        ("zh-Hant-TW", "zh", "zh-Hant-TW", "hant-tw"),
        ("zh-HK", "zh", "zh-HK", "hant-hk"),
        ("zh-MO", "zh", "zh-MO", "hant-hk"),
        ("zh-SG", "zh", "zh-SG", "hans"),
        ("zh-Hant", "zh", "zh-Hant", "hant"),
        ("zh-Hans-TW", "zh", "zh-Hans-TW", "hans"),
        ("cmn-Hans-CN", "zh", "cmn-Hans-CN", "hans"),
        ("yue", "yue", "yue", "hant-hk"),
        ("zh-yue", "yue", "zh-yue", "hant-hk"),
        ("yue-CN", "yue", "yue-CN", "hans"),
        ("en-GB", "en", "en-GB", None),
        ("es-419", "es", "es-419", None),
        ("de-CH-1996", "de", "de-CH", None),
        ("sr-Latn", "sr", "sr-Latn", None),
        ("nb-NO", "no", "nb-NO", None),
        ("jv", "jw", "jv", None),
        (" en ", "en", "en", None),
    ],
)
def test_tags_mean_a_language_and_a_script(tag: str, code: str, text: str, script: str | None) -> None:
    """Would catch `zh-CN` refused, as Open WebUI does, or written in the other script."""
    found = parse_language(tag)
    assert found is not None
    assert (found.code, found.text, found.script) == (code, text, script)


@pytest.mark.parametrize(("code", "name"), LANGUAGES.items())
def test_the_names_that_answers_have_are_taken(code: str, name: str) -> None:
    """Would catch `english` refused, which `verbose_json` itself answers."""
    for written in (name, name.title(), name.replace(" ", "_")):
        found = parse_language(written)
        assert found is not None
        assert (found.code, found.text) == (code, bcp47_code(code))


@pytest.mark.parametrize(
    ("name", "code"), [("Mandarin", "zh"), ("castilian", "es"), ("flemish", "nl"), ("moldovan", "ro")]
)
def test_other_names_of_whisper_are_taken(name: str, code: str) -> None:
    """Would catch a name that Whisper's own tools take."""
    found = parse_language(name)
    assert found is not None
    assert found.code == code


def test_a_long_tag_is_refused_and_not_repeated() -> None:
    """Would catch an answer of 60 KB for a field of 60 KB."""
    with pytest.raises(LanguageTagError) as caught:
        parse_language("en-" + "abcde-" * 10_000)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("tag", ["auto", "AUTO", "", "  "])
def test_auto_asks_for_nothing(tag: str) -> None:
    """Would catch `auto` taken for a language."""
    assert parse_language(tag) is None


@pytest.mark.parametrize("tag", ["xx", "klingon", "zh-Latn", "en_US.UTF-8", "12", "zh--CN", "中文", "en\nde"])
def test_others_are_refused_with_the_valid_ones(tag: str) -> None:
    """Would catch a wrong tag that becomes an error within the engine, after the upload."""
    with pytest.raises(LanguageTagError) as caught:
        parse_language(tag)
    assert repr(tag) in str(caught.value)
    assert set(caught.value.valid) & {"zh-CN", "Hans"}


@given(st.text(max_size=20))
def test_any_text_is_a_tag_or_a_typed_error(tag: str) -> None:
    """Would catch a tag that breaks the parser."""
    try:
        found = parse_language(tag)
    except LanguageTagError:
        return
    assert found is None or found.code in LANGUAGES


@pytest.mark.parametrize("code", LANGUAGES)
def test_what_is_detected_can_be_asked_for(code: str) -> None:
    """Would catch a detected language whose tag the formats or the next request do not know."""
    tag = parse_language(bcp47_code(code))
    assert tag is not None
    assert tag.code == code


def test_servers_name_languages_in_words() -> None:
    """Would catch OpenAI's `english` and `haitian creole` not understood."""
    assert language_code("English") == "en"
    assert language_code("haitian creole") == "ht"
    assert language_code("zh") == "zh"
    assert language_code("elvish") is None


def test_what_sounds_alike_is_no_disagreement() -> None:
    """Would catch a warning for Cantonese heard as Mandarin, and none for English heard as Chinese."""
    mandarin = LanguageTag("zh", "zh-CN", "hans")
    assert not disagree(mandarin, "yue")
    assert not disagree(mandarin, "zh")
    assert disagree(mandarin, "en")
