"""What people read above an answer."""

import pytest

from ollama_pack.base.messages import in_language
from ollama_pack.plugins.functions.response_cache_filter import age_in_words
from ollama_pack.routing.decide.cost import slot_wait
from ollama_pack.routing.dispatch.explain import duration, waited_line, waiting_line


@pytest.mark.parametrize(
    ("ahead", "left", "free", "wait"),
    [
        (0, [7.0, 3.0], 0, 3.0),
        (1, [7.0, 3.0], 0, 7.0),
        (2, [7.0, 3.0], 0, 3.0 + 10.0),
        (5, [7.0, 3.0], 0, 7.0 + 2 * 10.0),
        (0, [7.0], 1, 0.0),
        (3, [], 0, None),
    ],
)
def test_a_wait_is_estimated_by_slots_and_usual_answers(
    ahead: int, left: list[float], free: int, wait: float | None
) -> None:
    assert slot_wait(ahead, left, free, [8.0, 12.0]) == wait


@pytest.mark.parametrize(
    ("seconds", "english", "chinese"),
    [(0.84, "0.8 s", "0.8 秒"), (9.96, "10.0 s", "10.0 秒"), (61, "61 s", "61 秒"), (150, "2 min", "2 分钟")],
)
def test_durations_are_short(seconds: float, english: str, chinese: str) -> None:
    said = duration(seconds)
    assert (said, in_language(said, "zh-CN")) == (english, chinese)


def test_a_line_for_those_who_wait() -> None:
    """An estimate that looks as if it was known to the second, or a wait without one."""
    line = waiting_line("gpt-4", 2, 17.3)
    assert line == "gpt-4 · waiting for a GPU · 2 ahead of you · about 20 s"
    assert in_language(line, "zh-CN") == "gpt-4 · 正在等待空闲的 GPU · 前面还有 2 个请求 · 约 20 秒"
    assert waiting_line("gpt-4", 0, None, loading=True) == (
        "gpt-4 · waiting for a GPU · you are next · a model is being loaded"
    )
    assert waited_line("gpt-4", 3) == "gpt-4 · waited 3.0 s for an answer"


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
