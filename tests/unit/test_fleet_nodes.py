"""The `nodes` valve: how it is read, and what it refuses in which words."""

import base64
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.errors import PackError
from ollama_pack.routing.errors import NodeTableError
from ollama_pack.routing.nodes import MAX_NODES, NodeRow, parse_nodes

FULL = "gpu0 http://gpu0:11434/ kind=openai weight=2.5 tier=1 slots=4 agent=http://gpu0:9400 key=s3cret"
TOO_MANY = "\n".join(f"n{number} http://n{number}" for number in range(MAX_NODES + 1))

# Text, number of the row that is wrong, words of the reason.
REFUSALS = {
    "no address": ("gpu0", 1, "write it as `gpu0 http://gpu0:11434 slots=2`"),
    "a setting for an address": ("gpu0 slots=2", 1, "write it as"),
    "not a name": ("gpu/0 http://a", 1, "'gpu/0' cannot be a name"),
    "not http": ("gpu0 ftp://a", 1, "'ftp://a' is no address"),
    "no host": ("gpu0 http://", 1, "is no address"),
    "port of no kind": ("gpu0 http://a:port", 1, "is no address"),
    "two ways to sign in": ("gpu0 http://me:pw@a key=k", 1, "a password in its address and a key=…"),
    "header without a value": ("gpu0 http://a header=X-Team", 1, "header= needs a name and a value"),
    "header with an odd name": ('gpu0 http://a header="X Team: blue"', 1, "header= needs a name and a value"),
    "query": ("gpu0 http://a?x=1", 1, "something after the path"),
    "unknown setting": ("gpu0 http://a colour=red", 1, "unknown setting 'colour': the known ones are kind,"),
    "no equals sign": ("gpu0 http://a slots", 1, "unknown setting 'slots'"),
    "setting twice": ("gpu0 http://a slots=1 slots=2", 1, "slots= is set twice"),
    "unknown kind": ("gpu0 http://a kind=vllm", 1, "kind=vllm is unknown: the known ones are ollama, openai"),
    "unknown placement": (
        "gpu0 http://a kind=openai placement=gpu1",
        1,
        "placement=gpu1 is unknown: the known ones are pack, own",
    ),
    "placement by an Ollama": ("gpu0 http://a placement=own", 1, "placement=own is for OpenAI-compatible"),
    "models of an Ollama": ("gpu0 http://a models=m", 1, "models= is for OpenAI-compatible servers"),
    "model without a name": ("gpu0 http://a kind=openai models=a,,b", 1, "models= needs names"),
    "weight below nothing": ("gpu0 http://a weight=-1", 1, "weight= needs a number from 0 to 100"),
    "weight that is none": ("gpu0 http://a weight=nan", 1, "weight= needs a number"),
    "tier too far": ("gpu0 http://a tier=10", 1, "tier= needs a whole number from 0 to 9"),
    "no slots": ("gpu0 http://a slots=0", 1, "slots= needs a whole number from 1 to 1024"),
    "half a slot": ("gpu0 http://a slots=1.5", 1, "slots= needs a whole number"),
    "agent that is none": ("gpu0 http://a agent=gpu0:9400", 1, "'gpu0:9400' is no address"),
    "empty key": ("gpu0 http://a key=", 1, "key= is empty"),
    "same name": ("# the first\ngpu0 http://a\n\ngpu0 http://b", 4, "row 2 is already called 'gpu0'"),
    "same address": ("a http://a\nb http://a/", 2, "row 1 (a) has the same address"),
    "too many": (TOO_MANY, MAX_NODES + 1, "at most 1024 nodes"),
}


def test_every_setting_is_read() -> None:
    """Would catch a setting that is read into another, or not at all."""
    (row,) = parse_nodes(FULL)
    url, agent = "http://gpu0:11434", "http://gpu0:9400"
    assert row == NodeRow("gpu0", url, "openai", 2.5, 1, 4, agent, "s3cret")


def test_a_gateway_gets_all_at_once_unless_its_row_says_otherwise() -> None:
    """Would catch a gateway that is learned from one slot upwards."""
    rows = parse_nodes(
        "a http://a kind=openai placement=own models=qwen3,llama3:8b\n"
        "b http://b kind=openai placement=own slots=8"
    )
    assert [(row.slots, row.models) for row in rows] == [(1024, ("qwen3", "llama3:8b")), (8, ())]


def test_defaults_comments_and_empty_lines() -> None:
    """Would catch a comment that is read as a row, or numbers of rows that count only some of them."""
    rows = parse_nodes("# nodes\n\n  gpu0 http://gpu0:11434  # the old one\ngpu1 https://gpu1\n")
    assert [(row.name, row.url, row.slots, row.weight, row.line) for row in rows] == [
        ("gpu0", "http://gpu0:11434", None, 1.0, 3),
        ("gpu1", "https://gpu1", None, 1.0, 4),
    ]


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_name_row_and_reason(case: str) -> None:
    """Would catch a wrong row that is taken, or refused without saying which and why."""
    text, line, reason = REFUSALS[case]
    with pytest.raises(NodeTableError) as caught:
        parse_nodes(text)
    assert caught.value.line == line
    assert reason in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, PackError)


def test_ways_in() -> None:
    """Would catch a gateway that is asked without what it wants, or an address that shows a password."""
    text = (
        'a http://me:p%40ss@a/ollama header="X-Team: blue {{USER_ID}} é" header=X-Key:1=2 slots=2 '
        "agent=http://me:pw@a/agent\nb http://b key=k\nc http://c header=Authorization:mine key=k"
    )
    a, b, c = parse_nodes(text)
    assert (a.url, a.login, a.slots, a.agent) == ("http://a/ollama", "me:p@ss", 2, "http://me:pw@a/agent")
    assert a.headers == (("X-Team", "blue {{USER_ID}} é"), ("X-Key", "1=2"))
    basic = base64.b64encode(b"me:p@ss").decode()
    assert a.way_in.fixed_headers == {
        "Authorization": f"Basic {basic}",
        "X-Team": "blue  %C3%A9",
        "X-Key": "1=2",
    }
    assert b.way_in.fixed_headers == {"Authorization": "Bearer k"}
    assert c.way_in.fixed_headers == {"Authorization": "mine"}
    assert "p@ss" not in repr((a, b, c))
    assert "pw" not in repr((a, b, c))


@pytest.mark.parametrize("secret", ['header="X-Key: s3cret here"', "header=X-Key:s3cret", "key=s3cret"])
def test_what_is_sent_is_shown_nowhere(secret: str) -> None:
    """Would catch the value of a header in an error message or in a log."""
    with pytest.raises(NodeTableError) as caught:
        parse_nodes(f"gpu0 http://me:s3cret@a {secret} colour=red")
    assert "s3cret" not in str(caught.value) + caught.value.row
    assert "here" not in str(caught.value) + caught.value.row


def test_keys_are_shown_nowhere() -> None:
    """Would catch a token in an error message or in a log."""
    with pytest.raises(NodeTableError) as caught:
        parse_nodes("gpu0 http://a key=s3cret colour=red")
    assert "s3cret" not in str(caught.value) + caught.value.row
    assert "s3cret" not in repr(parse_nodes(FULL))


@pytest.mark.parametrize(
    "settings",
    [
        *("http://a key=s3cret more", "http://a key=two s3cret", "http://a key=two s3cret=more"),
        *("http://a key=s3cret key=s3cret2", "http://a slots=x key=s3cret", "http://a key=s3cret slots=x"),
        *(
            "http://u:s3cret@a colour=red",
            "http://u:two s3cret@a",
            "http://u:two/s3cret@a",
            "http://u:s3cret@a:x",
        ),
        *(
            "http://a agent=http://u:s3cret@b colour=red",
            "http://a?token=s3cret",
            "://s3cret@a",
            "http://a:x key=s3cret",
        ),
        *("http://a key='two' s3cret'", 'http://a key="two s3cret'),
    ],
)
def test_no_part_of_a_key_or_a_password_is_shown(settings: str) -> None:
    """Would catch half of a key that has a space in it, or the password of an address that is mistyped."""
    with pytest.raises(NodeTableError) as caught:
        parse_nodes(f"gpu0 {settings}")
    assert "s3cret" not in str(caught.value) + caught.value.row


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    """Would catch a text that makes the parser fail in another way than by its own error."""
    with suppress(NodeTableError):
        assert all(row.url.startswith("http") for row in parse_nodes(text))
