"""`upload.py` on a real Open WebUI: the function, its code, its valves and its switches."""

from typing import Any

import pytest

from deploy.functions import plan_function
from deploy.plan import Plan
from deploy.plugin import AUTHOR, load_plugin
from harness.languages import CHINESE, english_in
from harness.recording_proxy import RecordingProxy
from harness.upload_target import FILTER, PACK, TABLE, Target

Json = dict[str, Any]

READABLE = "parse_table(text)  # an"  # where the plugin checks the valve `aliases`
NO_ALIASES = f"plugins: [{FILTER}]"
EVERYBODY = {("user", "*", "read")}


def test_first_install(target: Target) -> None:
    """Would catch a function left off or local, valves not set, or an alias that nobody may use."""
    printed = target.install()
    function = target.function
    assert (function["type"], function["is_active"], function["is_global"]) == ("filter", True, True)
    assert target.valves == {"aliases": TABLE}
    bases = {model: row["base_model_id"] for model, row in target.rows.items()}
    assert bases == {
        "gpt-3.5-turbo": "llama3:8b",
        "gpt-4": "qwen2.5:32b",
        "llama3:8b": None,
        "qwen2.5:32b": None,
    }
    assert all(target.grants(model) == EVERYBODY for model in bases)
    assert set(bases) <= set(target.api.models())  # without anybody refreshing the list
    assert f"done: create filter {FILTER}\n" in printed


def test_in_chinese(target: Target) -> None:
    """Would catch a sentence in English where the admin's shell speaks Chinese, whatever is done."""
    pack = f'{PACK}  - {{name: nobody, local_name: "nothing:1b"}}\n'
    for arguments, text in (
        (["--dry-run"], pack),
        ([], pack),
        ([], PACK),
        (["--check-valves"], PACK),
        (["--remove"], PACK),
        (["--remove"], PACK),
        (["--only", "nothing"], PACK),
        ([], "models: [{name: gpt-4, local_name: 5, audience: nobody}]"),
    ):
        done = target.upload(text, *arguments, **CHINESE)
        printed = done.stdout + done.stderr
        assert printed
        assert english_in(printed) == [], printed


def test_models_without_tools_are_marked_once(target: Target) -> None:
    """Would catch tools offered to a model that Ollama refuses them for, or an admin's choice undone."""
    target.install()
    rows = target.api.model_rows()
    assert rows["llama3:8b"]["meta"]["capabilities"] == {"builtin_tools": False}
    assert not rows["qwen2.5:32b"]["meta"].get("capabilities")
    mine = rows["llama3:8b"]["meta"] | {"capabilities": {"builtin_tools": True, "vision": False}}
    target.api.post("/api/v1/models/model/update", rows["llama3:8b"] | {"meta": mine})
    assert target.upload(PACK).stdout == "nothing to change\n"
    assert target.api.model_rows()["llama3:8b"]["meta"] == mine


def test_second_run_changes_nothing(target: Target, proxy: RecordingProxy) -> None:
    """Would catch an upload that writes what is there already, with events and reloads for nothing."""
    target.install()
    before = target.state()
    again = target.upload(PACK, url=proxy.url)
    assert (again.returncode, again.stdout, again.stderr) == (0, "nothing to change\n", "")
    assert proxy.posts == []
    assert target.state() == before


def test_dry_run_of_a_first_install(target: Target, proxy: RecordingProxy) -> None:
    """Would catch a dry run that changes something, or does not show what would be changed."""
    shown = target.upload(PACK, "--dry-run", url=proxy.url)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"create filter {FILTER}\n    + Model aliases" in shown.stdout
    assert (
        'create model row gpt-4\n    + access: ["everybody"]\n    + base_model_id: "qwen2.5:32b"'
        in shown.stdout
    )
    assert shown.stdout.endswith("8 changes to make; nothing was changed\n")
    assert proxy.posts == []
    assert target.state() == {"functions": {}, "valves": {}, "rows": {}}


def test_dry_run_of_a_change(target: Target) -> None:
    """Would catch a diff that does not show which row of the table changes."""
    target.install()
    before = target.state()
    shown = target.upload(PACK.replace("mixtral:8x7b", "phi3:mini"), "--dry-run")
    assert "    -gpt-4 = mixtral:8x7b, qwen2.5:32b\n    +gpt-4 = phi3:mini, qwen2.5:32b\n" in shown.stdout
    assert '    - meta.description: "→ mixtral:8x7b, qwen2.5:32b"\n' in shown.stdout
    assert shown.stdout.endswith("\n2 changes to make; nothing was changed\n")
    assert target.state() == before


def test_changed_valve_alone(target: Target) -> None:
    """Would catch an upload that resets what the admin set, or reinstalls code for a valve."""
    target.install()
    target.set_valves(aliases=TABLE, show_status=False, priority=7)
    before = target.function
    printed = target.install(PACK.replace("mixtral:8x7b", "phi3:mini"))
    assert printed == f"done: set valves of {FILTER}\ndone: update model row gpt-4\n"
    table = TABLE.replace("mixtral:8x7b", "phi3:mini")
    assert target.valves == {"aliases": table, "show_status": False, "priority": 7}
    assert target.function["content"] == before["content"]


def test_changed_code(target: Target) -> None:
    """Would catch an update that never comes, or one that loses valves or switches."""
    target.install()
    newest = target.function
    target.set_valves(aliases=TABLE, priority=7)
    target.change_code(READABLE, "pass  # an older release")
    printed = target.install()
    assert printed == f"done: update filter {FILTER}\n"
    function = target.function
    assert function["content"] == newest["content"]
    assert (function["is_active"], function["is_global"]) == (True, True)
    assert target.valves == {"aliases": TABLE, "priority": 7}


def test_code_diff_is_whole_in_a_file(target: Target) -> None:
    """Would catch a diff that is cut, or coloured, where nobody looks at a terminal."""
    target.install()
    target.change_code('"""\n', '"""\n' + "".join(f"note_{n}: x\n" for n in "abcdefghij" * 10))
    shown = target.upload(PACK, "--dry-run").stdout
    assert shown.count("\n    -note_") == 100
    assert "\x1b" not in shown


def test_switched_off_function_is_switched_on(target: Target) -> None:
    """Would catch a blind toggle: one that flips a function which is on, or leaves one off."""
    target.install()
    target.api.post(f"/api/v1/functions/id/{FILTER}/toggle")
    assert target.install() == f"done: switch on {FILTER}\n"
    target.api.post(f"/api/v1/functions/id/{FILTER}/toggle/global")
    assert target.install() == f"done: apply to all models: {FILTER}\n"
    assert (target.function["is_active"], target.function["is_global"]) == (True, True)


def _install_lax_release(target: Target) -> None:
    """An older release that took any table, with one that no release of today takes."""
    target.install()
    target.change_code(READABLE, "pass  # an")
    target.set_valves(aliases="gpt-4 llama3:8b", priority=7)


def test_stored_valves_that_no_longer_validate_are_replaced(target: Target) -> None:
    """Would catch an update that Open WebUI refuses for ever, for the valves that an older release stored."""
    _install_lax_release(target)
    target.install()
    assert target.valves == {"aliases": TABLE, "priority": 7}
    assert READABLE in target.function["content"]
    assert target.install() == "nothing to change\n"


def test_stored_valves_that_nothing_replaces(target: Target) -> None:
    """Would catch a refusal that leaves half a change, or does not tell which valve is wrong and why."""
    _install_lax_release(target)
    before = target.state()
    refused = target.upload(NO_ALIASES)
    assert refused.returncode == 1
    assert f"{FILTER}: valves that the plugin refuses: aliases = 'gpt-4 llama3:8b': row 1" in refused.stderr
    assert "write it as `alias = model, model [condition, condition]`" in refused.stderr
    assert "Correct them in pack.yaml, or where the server keeps them" in refused.stderr
    assert target.state() == before


def test_valves_that_only_the_new_code_knows(target: Target) -> None:
    """Would catch a valve lost to older code, which refuses the new form or drops what it does not know."""
    frontmatter = f'"""\ntitle: Sample\nauthor: {AUTHOR}\nversion: 1.0\ndescription: -\n"""\n'
    start = f"{frontmatter}from pydantic import BaseModel\nclass Filter:\n    class Valves(BaseModel):\n"
    file = target.folder / "sample.py"
    for fields, wanted in (
        ("rate: str = ''", {"rate": "often"}),
        ("rate: int = 0\n        burst: int = 0", {"rate": 5, "burst": 9}),
    ):
        file.write_text(f"{start}        {fields}\n")
        plan = Plan()
        plan_function(plan, target.api, load_plugin(file), wanted)
        for step in plan.steps:
            step.run()
    assert target.api.valves("functions", "sample") == {"rate": 5, "burst": 9}


def test_pack_without_models_leaves_aliases_alone(target: Target) -> None:
    """Would catch a file that is silent about models taking away those which an admin keeps by hand."""
    target.install()
    before = target.state()
    assert target.install(NO_ALIASES) == "nothing to change\n"
    assert target.state() == before
    target.install(f"{NO_ALIASES}\nmodels: []")
    assert (target.valves, target.rows) == ({"aliases": ""}, {})


@pytest.mark.parametrize("author", ["Somebody Else", ""])
def test_function_that_is_not_the_packs(target: Target, author: str) -> None:
    """Would catch somebody's own function of the same name being overwritten."""
    line = f"author: {author}\n" if author else ""
    content = f'"""\ntitle: Mine\n{line}"""\nclass Filter:\n    class Valves:\n        pass\n'
    form = {"id": FILTER, "name": "Mine", "content": content, "meta": {"description": ""}}
    target.api.post("/api/v1/functions/create", form)
    before = target.state()
    refused = target.upload(PACK)
    assert refused.returncode == 1
    assert f"a function with the id '{FILTER}' is installed already and is not the pack's" in refused.stderr
    assert "delete or rename it, or leave it out with `plugins:`" in refused.stderr
    assert target.state() == before


def test_only_what_is_the_packs_is_asked(target: Target, proxy: RecordingProxy) -> None:
    """Would catch an uploader that deletes functions, replaces them all, or meddles with connections."""
    done = target.upload(PACK, url=proxy.url)
    assert done.returncode == 0
    target.upload(f"{NO_ALIASES}\nmodels: []", url=proxy.url)
    paths = {path for _, path in proxy.requests}
    assert {method for method, _ in proxy.requests} == {"GET", "POST"}
    assert not [
        path
        for path in paths
        if "sync" in path
        or "config" in path
        or path.startswith(("/openai", "/ollama/config", "/ollama/urls"))
    ]
    assert [path for path in paths if "delete" in path] == ["/api/v1/models/model/delete"]
