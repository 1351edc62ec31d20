"""Segments from words."""

import pytest

from ollama_pack.speech.sentences import sentences
from ollama_pack.speech.values import SpeechSegment, SpokenWord


def spoken(text: str) -> SpeechSegment:
    """Words of 0.5 s; a `|` is a pause of 0.5 s before the next, `||` of 1 s."""
    words, now = [], 0.0
    for part in text.split():
        if set(part) == {"|"}:
            now += 0.5 * len(part)
            continue
        words.append(SpokenWord(now, now + 0.5, f" {part}", 0.25 if part.islower() else 0.5))
        now += 0.5
    whole = "".join(word.text for word in words).strip()
    return SpeechSegment(0.0, now, whole, tuple(words), probability=0.9, tokens=(1,))


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("And Mr. Dashwood went. He was ill.", ["And Mr. Dashwood went.", "He was ill."]),
        ("Yes. | No! (Really?) Well", ["Yes.", "No!", "(Really?)", "Well"]),
        ("so on || and on", ["so on", "and on"]),
        ("so on | and on", ["so on and on"]),
        ("好。 再见！ 吗", ["好。", "再见！", "吗"]),
        ("3.14 is pi", ["3.14 is pi"]),
    ],
)
def test_segments_end_where_sentences_do(text: str, pieces: list[str]) -> None:
    """Would catch a segment of half a minute, and a name torn from its title."""
    found = list(sentences(spoken(text)))
    assert [segment.text for segment in found] == pieces
    assert [word for segment in found for word in segment.words] == list(spoken(text).words)
    assert all(segment.start == segment.words[0].start for segment in found)
    assert all(segment.end == segment.words[-1].end for segment in found)


def test_a_sentence_is_as_sure_as_its_words() -> None:
    """Would catch one figure for all sentences of half a minute."""
    first, second = sentences(spoken("Yes. | no no."))
    assert first.probability == pytest.approx(0.5)
    assert second.probability == pytest.approx(0.25)


def test_without_words_nothing_changes() -> None:
    """Would catch text that is lost because its words have no times."""
    whole = SpeechSegment(0.0, 2.0, "One. Two.")
    assert list(sentences(whole)) == [whole]
