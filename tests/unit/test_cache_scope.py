"""Who shares an answer with whom."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.cache.scope import ScopeFacts, ScopeRule, is_deterministic, scope_for, uses_tools

PRIVATE = ("files", "knowledge", "memory", "tools")


@pytest.mark.parametrize(
    ("rule", "groups", "expected"),
    [
        ("user", ("g1",), "user:u1"),
        ("group", ("g1",), "group:g1"),
        ("group", ("g2", "g1", "g2"), "group:g1+g2"),
        ("group", (), "user:u1"),
        ("global", (), "global"),
    ],
)
def test_rule_decides(rule: ScopeRule, groups: tuple[str, ...], expected: str) -> None:
    """Would catch an answer that is shared further than the admin said."""
    assert scope_for(rule, ScopeFacts("u1", groups)) == expected


@pytest.mark.parametrize("private", PRIVATE)
@pytest.mark.parametrize("rule", ["user", "group", "global"])
def test_private_matters_stay_with_the_user(rule: ScopeRule, private: str) -> None:
    """Would catch an answer out of one user's files, memories or tools that another one gets."""
    assert scope_for(rule, ScopeFacts("u1", ("g1",), **{private: True})) == "user:u1"


def test_nobody_has_no_scope_of_a_user() -> None:
    """Would catch all requests without a user that share one cache."""
    assert scope_for("user", ScopeFacts("")) == ""
    assert scope_for("global", ScopeFacts("", files=True)) == ""


ids = st.text(alphabet="ab+%/:", min_size=1, max_size=4)
facts = st.builds(ScopeFacts, ids, st.lists(ids, max_size=3).map(tuple), *[st.booleans()] * 4)
rules = st.sampled_from(["user", "group", "global"])


@given(rules, facts, facts)
def test_users_share_only_with_the_same_groups(rule: ScopeRule, one: ScopeFacts, two: ScopeFacts) -> None:
    """Would catch ids that are put together so that two lists of groups look the same."""
    if scope_for(rule, one) != scope_for(rule, two) or rule == "global":
        return
    same_groups = set(one.group_ids) == set(two.group_ids) and rule == "group" and bool(one.group_ids)
    assert one.user_id == two.user_id or same_groups


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, False),
        ({"tools": [{"type": "function"}]}, True),
        ({"tools": []}, False),
        ({"messages": [{"role": "tool", "content": "1"}]}, True),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, True),
        ({"messages": "nonsense"}, False),
    ],
)
def test_tools_are_noticed(body: dict[str, Any], *, expected: bool) -> None:
    """Would catch the result of a tool, seen by one user, in a shared answer."""
    assert uses_tools(body) is expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, False),
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": 0.7}, False),
        ({"seed": 42}, True),
        ({"options": {"temperature": 0}}, True),
        ({"options": {"seed": 0}}, True),
        ({"options": None, "seed": None}, False),
        ({"temperature": False, "seed": True}, False),
    ],
)
def test_deterministic_requests_are_told_apart(body: dict[str, Any], *, expected: bool) -> None:
    """Would catch `cache_when: deterministic` that keeps what is meant to differ each time."""
    assert is_deterministic(body) is expected
