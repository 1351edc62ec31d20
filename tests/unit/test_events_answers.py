"""The parts of the routes that need no server: what is shown, how often it is asked for, and the page."""

import re

from hypothesis import given
from hypothesis import strategies as st

from ollama_pack.webui.budget_contact import usage_table
from ollama_pack.webui.dashboard import dashboard_html
from ollama_pack.webui.load import ADMIN_NODE_KEYS, GPU_KEYS, NODE_KEYS, system_load

KEYS = st.sampled_from(
    ["nodes", "gpus", "name", "url", "models", "gpu0_usage", "decisions", "key", "index", "recent"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.just("secret"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, JSON))
def test_plain_users_get_named_keys_only(told: dict[str, object]) -> None:
    """Would catch a key of a later router, or a nested one, shown to plain users."""
    shown = system_load(told, for_admin=False)
    assert shown.keys() <= {"nodes", "gpu0_usage"}
    for node in shown["nodes"]:
        assert node.keys() <= NODE_KEYS.keys()
        assert all(isinstance(model, str) for model in node.get("models", ()))
        for gpu in node.get("gpus", ()):
            assert gpu.keys() <= GPU_KEYS.keys()
            assert not any(isinstance(value, dict | list) for value in gpu.values())


def test_plain_users_get_no_addresses() -> None:
    """Would catch an address shown to plain users, as such or within what stands for a model's name."""
    node = {
        "name": "gpu0",
        "url": "http://gpu0",
        "models": ["a", {"url": "http://gpu0"}],
        "gpus": ["http://gpu0"],
    }
    expected = {"nodes": [{"name": "gpu0", "models": ["a"], "gpus": []}]}
    assert system_load({"nodes": [node]}, for_admin=False) == expected


def test_admins_get_addresses() -> None:
    """Would catch an admin who cannot tell which machine a node is."""
    assert ADMIN_NODE_KEYS.keys() == {"url", "breakers"}
    shown = {"name": "gpu0", "url": "http://gpu0:11434", "breakers": {"llama3:8b": "open"}}
    told = {"nodes": [shown | {"key": "secret"}], "recent": [1]}
    assert system_load(told, for_admin=True) == {"nodes": [shown], "recent": [1]}
    assert system_load(told, for_admin=False) == {"nodes": [{"name": "gpu0"}]}


def test_page_takes_nothing_from_elsewhere() -> None:
    """Would catch a page that loads from another host, or that makes HTML of what it is told."""
    page = dashboard_html("the-nonce")
    assert re.findall(r"%[A-Z]+%", page) == []  # nothing is left to be filled in
    assert page.count('nonce="the-nonce"') == 2
    assert re.findall(r"(?:src|href)\s*=\s*[\"'][^\"']*", page) == ['href="data:,']
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {
        "http://www.w3.org/2000/svg"
    }  # a name, not fetched
    for maker_of_html in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "style=",
    ):
        assert maker_of_html not in page


def test_spreadsheets_read_the_table_of_use() -> None:
    """Would catch Chinese names that Excel garbles, and a name that a spreadsheet calculates."""
    figures = {"shared": True, "unit": "requests", "period": "day", "used": 1.0, "under_way": 0.0}
    table = usage_table([{"whose": "group=学生", **figures}, {"whose": "=1+1", **figures}])
    rows = table.encode().decode("utf-8-sig").splitlines()
    assert table.startswith("\ufeffwhose,")
    assert rows[1:] == ["group=学生,True,requests,day,1.0,0.0", "'=1+1,True,requests,day,1.0,0.0"]
