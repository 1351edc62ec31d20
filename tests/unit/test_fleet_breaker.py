"""The breaker, against a plain model of what it should do."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.base.breaker import Breaker, BreakerRule

RULE = BreakerRule(threshold=2, shortest=5.0, longest=20.0)


@dataclass
class Plain:
    """The same in the plainest words: failures in a row, and how often it has opened since it last closed."""

    failures: int = 0
    opened: int = 0
    opened_at: float = 0.0
    trying: bool = False

    def allows(self, now: float) -> bool:
        if not self.opened:
            return True
        stays = (5.0, 10.0, 20.0)[min(self.opened, 3) - 1]
        return now - self.opened_at >= stays and not self.trying

    def fail(self, now: float) -> None:
        if self.opened and not self.allows(now) and not self.trying:
            return
        self.failures += 1
        self.trying = False
        if self.opened or self.failures >= 2:
            self.opened, self.opened_at = self.opened + 1, now

    def succeed(self) -> None:
        self.failures, self.opened, self.trying = 0, 0, False


steps = st.lists(
    st.tuples(st.sampled_from(["send", "fail", "succeed", "give up"]), st.floats(0, 12)), max_size=60
)


@given(steps)
def test_breaker_does_as_the_plain_model(steps: list[tuple[str, float]]) -> None:
    """Would catch a breaker that opens late, stays open for the wrong time or lets two try at once."""
    breaker, plain, now = Breaker(RULE), Plain(), 0.0
    for step, passes in steps:
        now = round(now + passes)  # whole seconds: both compute when it ends in the same way
        allowed = breaker.allows(now)
        assert allowed == plain.allows(now)
        assert (breaker.state(now) == "closed") == (plain.opened == 0)
        if step == "send" and allowed:
            breaker.passed()
            plain.trying = plain.opened > 0
        elif step == "fail":
            breaker.failed(now)
            plain.fail(now)
        elif step == "succeed":
            breaker.succeeded()
            plain.succeed()
        elif step == "give up":
            breaker.gave_up()
            plain.trying = False


def test_one_request_tries_at_a_time() -> None:
    """Would catch a node that comes back to a crowd."""
    breaker = Breaker(BreakerRule())
    breaker.failed(0.0)
    assert breaker.state(4.9) == "open"
    assert breaker.state(5.0) == "half-open"
    breaker.passed()
    assert not breaker.allows(6.0)
    breaker.gave_up()
    assert breaker.allows(6.0)


def test_backoff_doubles_up_to_its_limit() -> None:
    """Would catch a dead node that is tried ever more often, or never again."""
    breaker, now = Breaker(BreakerRule()), 0.0
    waits = []
    for _ in range(7):
        breaker.failed(now)
        assert breaker.retry_at is not None
        waits.append(breaker.retry_at - now)
        now = breaker.retry_at
    assert waits == [5, 10, 20, 40, 80, 120, 120]


def test_who_is_busy_is_asked_again_soon() -> None:
    """Would catch a model that is shut for minutes, as its nodes said a few times that they were busy."""
    breaker, now = Breaker(BreakerRule()), 0.0
    for _ in range(4):
        breaker.failed(now, grows=False)
        assert breaker.retry_at == now + 5
        now = breaker.retry_at
