"""What users read above an answer that is not new."""

import pytest

from ollama_pack.plugins.functions.response_cache_filter import age_in_words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (12 * 60 + 5, "12 min"),
        (3600, "1 h"),
        (86_399, "23 h"),
        (200_000, "2 d"),
    ],
)
def test_age_is_told_in_one_unit(seconds: float, words: str) -> None:
    """Would catch an age that reads as 0.2 h, or as 7261 s."""
    assert age_in_words(seconds) == words
