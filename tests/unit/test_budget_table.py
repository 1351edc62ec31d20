"""Rows of the budget table, whom they hold for, and days, weeks and months."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from ollama_pack.budgets.errors import BudgetTableError
from ollama_pack.budgets.period import PeriodName, period_at, site_zone
from ollama_pack.budgets.store import Limit, rolled
from ollama_pack.budgets.table import BudgetUser, parse_budgets

ROWS = """
everyone         200 requests/day           # each user
role=user        120 gpu-minutes/day  burst=10  then=queue-last
group=students   500000 tokens/week   then=llama3:8b
group="grade 7"  40.5 gpu-seconds/month  shared
user=Ann@Example.org  600 gpu-minutes/day
"""


def test_a_row_reads_as_it_was_written() -> None:
    """Would catch a setting that is lost on the way to the plugin."""
    rows = parse_budgets(ROWS).rows
    assert [row.text for row in rows] == [
        "everyone 200 requests/day then=refuse",
        "role=user 120 gpu-minutes/day burst=10 then=queue-last",
        "group=students 500000 tokens/week then=llama3:8b",
        'group="grade 7" 40.5 gpu-seconds/month shared then=refuse',
        "user=ann@example.org 600 gpu-minutes/day then=refuse",
    ]
    assert parse_budgets("\n".join(row.text for row in rows)).rows == rows


@pytest.mark.parametrize(
    ("written", "then"),
    [('"llama3:8b"', "llama3:8b"), ('"queue-last"', "queue-last"), ('"the small one"', "the small one")],
)
def test_an_action_between_quotes_is_that_action(written: str, then: str) -> None:
    """Would catch a model that is not found, or a model called `"refuse"`, for the quotes around it."""
    (row,) = parse_budgets(f"everyone 5 tokens/day then={written}").rows
    assert row.then == then
    assert parse_budgets(row.text).rows == (row,)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("students 120 requests/day", "'students' does not say whose budget"),
        ("group= 120 requests/day", "group= has no name"),
        ("role=boss 120 requests/day", "role=boss is not a known role"),
        ("user=ann 120 requests/day", "user=ann is not an e-mail address"),
        ("everyone requests/day", "not complete"),
        ("everyone 0 requests/day", "0 cannot be used"),
        ("everyone -5 requests/day", "-5 cannot be used"),
        ("everyone 1.5 requests/day", "1.5 cannot be used: requests need a whole number"),
        ("everyone 1e9 tokens/day", "1e9 cannot be used"),
        ("everyone nan tokens/day", "nan cannot be used"),
        ("everyone 999999999999999 gpu-minutes/day", "cannot be used"),
        ("everyone 5 gpus/day", "'gpus/day' is not a known unit"),
        ("everyone 5 tokens/hour", "'tokens/hour' names no known period"),
        ("everyone 5 tokens", "'tokens' names no known period"),
        ("everyone 5 tokens/day burst=6", "burst=6 is more than the amount 5"),
        ("everyone 5 tokens/day burst=", "burst= is empty"),
        ('everyone 5 tokens/day then=""', "then= is empty"),
        ("everyone 5 tokens/day then=refuse then=refuse", "then is set twice"),
        ("everyone 5 tokens/day twice", "'twice' is not known"),
        ("user=a@b 5 tokens/day shared", "leave shared out"),
        ("role=user 5 tokens/day\nrole=user 7 tokens/day", "row 1 has a budget of role=user"),
        ("role=user 5 gpu-minutes/day\nrole=user 7 gpu-seconds/day", "row 1 has a budget of role=user"),
    ],
)
def test_what_cannot_be_used_is_named(row: str, named: str) -> None:
    """Would catch a row that is read as something else than it says."""
    with pytest.raises(BudgetTableError, match="row") as caught:
        parse_budgets(row)
    assert named in str(caught.value)
    assert caught.value.line == row.count("\n") + 1


def held(user: BudgetUser, *rows: str) -> list[int]:
    return [row.line for row in parse_budgets("\n".join(rows)).rows_for(user)]


def test_the_row_that_names_a_user_most_closely_holds() -> None:
    """Would catch a general row that takes a special one's place."""
    rows = (
        "everyone 1 requests/day",
        "role=user 2 requests/day",
        "group=a 3 requests/day",
        "group=b 4 requests/day",
        "user=ann@example.org 5 requests/day",
        "everyone 9 requests/month",
        "everyone 1000 requests/day shared",
        "group=b 500 gpu-minutes/day shared",
    )
    ann = BudgetUser("1", "Ann@example.org", "user", frozenset("ab"))
    assert held(ann, *rows) == [5, 6, 7, 8]
    assert held(BudgetUser("2", "bob@x.y", "user", frozenset("ab")), *rows) == [4, 6, 7, 8]
    assert held(BudgetUser("3", "bob@x.y", "user", frozenset("a")), *rows) == [3, 6, 7]
    assert held(BudgetUser("4", "eve@x.y", "user"), *rows) == [2, 6, 7]
    assert held(BudgetUser("5", "root@x.y", "admin"), *rows) == [1, 6, 7]


def test_what_was_used_stays_when_the_table_changes() -> None:
    """Would catch a counter that begins anew when an admin raises an amount or names a user."""
    user = BudgetUser("1", "ann@example.org", "user")
    (before,) = parse_budgets("everyone 5 gpu-minutes/day").rows_for(user)
    (after,) = parse_budgets("user=ann@example.org 900 gpu-seconds/day").rows_for(user)
    assert before.counter(user) == after.counter(user)


BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("name", "now", "before", "start", "end"),
    [
        ("day", "2026-11-29T12:00", "2026-11-28T00:00", "2026-11-29T00:00", "2026-11-30T00:00"),
        ("day", "2026-03-29T12:00", "2026-03-28T00:00", "2026-03-29T00:00", "2026-03-30T00:00"),  # 23 hours
        ("week", "2026-11-29T23:59", "2026-11-16T00:00", "2026-11-23T00:00", "2026-11-30T00:00"),
        ("month", "2026-02-28T00:00", "2026-01-01T00:00", "2026-02-01T00:00", "2026-03-01T00:00"),
        ("month", "2026-01-31T05:00", "2025-12-01T00:00", "2026-01-01T00:00", "2026-02-01T00:00"),
    ],
)
def test_periods_begin_at_the_sites_midnight(
    name: PeriodName, now: str, before: str, start: str, end: str
) -> None:
    """Would catch a day of UTC, a day of 24 hours when the clocks change, and months of 30 days."""
    moment = datetime.fromisoformat(now).replace(tzinfo=BERLIN).timestamp()
    period = period_at(moment, name, site_zone("Europe/Berlin"))
    found = [datetime.fromtimestamp(each, BERLIN) for each in (period.before, period.start, period.end)]
    assert [each.strftime("%Y-%m-%dT%H:%M") for each in found] == [before, start, end]


@pytest.mark.parametrize(
    ("name", "moment"),
    [("Atlantic/Azores", "2026-10-25T00:30"), ("America/Havana", "2026-11-01T00:30")],
)
def test_an_hour_after_midnight_that_comes_twice_is_of_one_day(name: str, moment: str) -> None:
    """Would catch a budget that begins anew in the second one, on the day the clocks go back."""
    zone = site_zone(name)
    first = datetime.fromisoformat(moment).replace(tzinfo=zone).timestamp()
    assert period_at(first, "day", zone) == period_at(first + 3600, "day", zone)


def test_an_unknown_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="'Mars/Base' is not a known time zone"):
        site_zone("Mars/Base")


def at(day: int) -> float:
    return datetime(2026, 11, day, 12, tzinfo=UTC).timestamp()


def limit_on(day: int, burst: int = 10) -> Limit:
    return Limit("c", 100, burst, period_at(at(day), "day", ZoneInfo("UTC")))


@pytest.mark.parametrize(
    ("used", "now", "burst", "left_over"),
    [
        (100, 20, 10, 100),  # the same day
        (100, 21, 10, 0),
        (107, 21, 10, 7),  # what went beyond the amount
        (130, 21, 10, 10),  # but no more than a burst allows
        (130, 21, 0, 0),
        (130, 22, 10, 0),  # a day without use lies between
        (100, 19, 10, 100),  # the clock was set back: nothing is given twice
    ],
)
def test_a_new_period_begins_with_the_burst_of_the_one_before(
    used: int, now: int, burst: int, left_over: int
) -> None:
    """Would catch a burst that is a gift, or use that is counted twice or forgotten."""
    start = limit_on(20).period.start
    limit = limit_on(now, burst)
    assert rolled(start, used, limit, at(now)) == (limit.period.start, left_over)


def test_a_clock_that_is_a_little_behind_counts_for_the_new_day() -> None:
    """Would catch two replicas that throw each other's counts away around midnight."""
    tomorrow = limit_on(21).period.start
    assert rolled(tomorrow, 5, limit_on(20), tomorrow - 1.0) == (tomorrow, 5)
