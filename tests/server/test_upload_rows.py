"""`upload.py` and Open WebUI's models: which aliases are published, for whom, and what is never touched."""

from typing import Any

import pytest

from deploy.client import OpenWebUI
from deploy.errors import ServerError
from harness.upload_target import FILTER, PACK, Target
from local.webui import Account

Json = dict[str, Any]

EVERYBODY = {("user", "*", "read")}
NOT_FOUND = (400, "Model not found")


def pack(*models: str) -> str:
    """A pack.yaml with these entries."""
    return "\n".join([f"plugins: [{FILTER}]", "models:", *(f"  - {{{model}}}" for model in models)])


def ask(target: Target, account: Account, model: str) -> str:
    """What a user gets for hello."""
    api = OpenWebUI(target.webui.url, account.token)
    try:
        form = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        return str(api.post("/api/chat/completions", form)["choices"][0]["message"]["content"])
    finally:
        api.close()


def refusal(target: Target, account: Account, model: str) -> tuple[int, str]:
    with pytest.raises(ServerError) as refused:
        ask(target, account, model)
    return refused.value.status, refused.value.detail


def test_audience_group(target: Target, pupil: Account) -> None:
    """Would catch an alias of a group that its members cannot use, or that others can."""
    staff, guests = target.add_group("staff", pupil.id), target.add_group("guests")
    target.install(
        pack(
            'name: for-staff, local_name: "llama3:8b", audience: "group:staff"',
            'name: for-guests, local_name: "qwen2.5:32b", audience: ["group:guests", admin]',
        )
    )
    assert target.grants("for-staff") == target.grants("llama3:8b") == {("group", staff, "read")}
    assert target.grants("for-guests") == {("group", guests, "read")}
    assert ask(target, pupil, "for-staff") == "You said: hello"
    assert refusal(target, pupil, "for-guests") == NOT_FOUND


def test_unknown_group(target: Target) -> None:
    """Would catch a misspelt group found out only when half of the upload is done."""
    target.add_group("staff")
    refused = target.upload(
        pack('name: gpt-4, local_name: "llama3:8b", audience: ["group:staff", "group:stuff"]')
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "audience: Open WebUI has no group 'stuff' (it has: staff)\n"
    assert target.state() == {"functions": {}, "valves": {}, "rows": {}}


def test_narrowed_audience(target: Target, pupil: Account) -> None:
    """Would catch a model that stays open to everybody although no alias opens it any more."""
    model = 'name: gpt-4, local_name: "llama3:8b"'
    target.install(pack(model))
    assert ask(target, pupil, "gpt-4") == "You said: hello"
    target.install(pack(f"{model}, audience: admin"))
    assert target.grants("llama3:8b") == set()
    assert target.grants("gpt-4") == set()
    assert refusal(target, pupil, "gpt-4") == refusal(target, pupil, "llama3:8b") == NOT_FOUND
    assert ask(target, target.webui.admin, "gpt-4") == "You said: hello"
    target.install(pack(model))
    assert ask(target, pupil, "gpt-4") == "You said: hello"


def test_removed_alias(target: Target) -> None:
    """Would catch an alias that outlives its entry, or an admin's own models deleted with it."""
    target.install()
    target.add_row("my-helper", "llama3:8b", meta={"description": "mine"})
    target.add_row("llava:13b", meta={"description": "mine"})
    clone = target.api.model_row("gpt-4") | {"id": "gpt-4-clone", "base_model_id": "gpt-4"}
    target.api.post("/api/v1/models/create", clone)  # what the page does: `meta` is copied
    target.install(PACK.rsplit("\n", 2)[0])
    assert set(target.rows) == {"gpt-3.5-turbo", "llama3:8b", "my-helper", "llava:13b", "gpt-4-clone"}


def test_admins_settings_survive(target: Target) -> None:
    """Would catch an upload that takes away the system prompt, name or icon that an admin gave an alias."""
    target.install()
    row = target.api.model_row("gpt-4")
    meta = row["meta"] | {"description": "The big one", "tags": [{"name": "big"}]}
    target.change_row("gpt-4", name="Big", params={"system": "Be brief."}, meta=meta)
    target.install(PACK.replace("qwen2.5:32b", "llava:13b"))
    changed = target.api.model_row("gpt-4")
    assert changed["base_model_id"] == "llava:13b"
    assert (changed["name"], changed["params"]) == ("Big", {"system": "Be brief."})
    assert (changed["meta"]["description"], changed["meta"]["tags"]) == ("The big one", [{"name": "big"}])


def test_removed_alias_with_an_admins_settings(target: Target) -> None:
    """Would catch an admin's work deleted, or an alias that everybody keeps although it was taken out."""
    target.install()
    target.change_row("gpt-4", params={"system": "Be brief."})
    without = PACK.rsplit("\n", 2)[0]
    assert "leave model row gpt-4, with an admin's settings, to admins" in target.install(without)
    assert target.rows["gpt-4"]["params"] == {"system": "Be brief."}
    assert target.grants("gpt-4") == set()
    assert target.install(without) == "nothing to change\n"


def test_switched_off_alias_is_switched_on(target: Target, pupil: Account) -> None:
    """Would catch an upload that says "done" while the alias that it names answers nobody."""
    target.install()
    target.change_row("gpt-4", is_active=False)
    assert target.install() == "done: update model row gpt-4\n"
    assert ask(target, pupil, "gpt-4") == "You said: hello"


def test_name_taken_by_a_model_made_by_hand(target: Target) -> None:
    """Would catch an admin's own model overwritten by an alias of its name."""
    target.add_row("gpt-4", "llava:13b", params={"system": "Mine."})
    before = target.rows["gpt-4"]
    done = target.upload(PACK)
    assert done.returncode == 1
    assert "not done: gpt-4: a model with this id was made by hand, so it is not published" in done.stderr
    assert "delete or rename it under Workspace → Models, or take the alias out of pack.yaml" in done.stderr
    assert target.rows["gpt-4"] == before
    assert target.grants("gpt-3.5-turbo") == EVERYBODY  # the rest is done


def test_model_that_an_admin_keeps_closed(target: Target) -> None:
    """Would catch an alias that opens to everybody a model which an admin has restricted."""
    target.add_row("llama3:8b", access_grants=[])
    before = target.rows["llama3:8b"]
    done = target.upload(PACK)
    assert done.returncode == 1
    assert "not done: llama3:8b: an admin has set who may use it" in done.stderr
    assert target.rows["llama3:8b"] == before
    assert target.upload(PACK).returncode == 1


def test_model_that_an_admin_has_opened(target: Target) -> None:
    """Would catch an upload that rewrites or complains about a grant which is wide enough already."""
    everybody = [{"principal_type": "user", "principal_id": "*", "permission": "read"}]
    target.add_row("llama3:8b", access_grants=everybody)
    before = target.rows["llama3:8b"]
    target.install()
    assert target.rows["llama3:8b"] == before


def test_alias_with_the_name_of_a_real_model(target: Target, pupil: Account) -> None:
    """Would catch a row that hides a connection's model, or one that plain users do not reach."""
    target.install(pack('name: "llava:13b", local_name: "llama3:8b"'))
    assert target.rows["llava:13b"]["base_model_id"] is None
    assert target.grants("llava:13b") == target.grants("llama3:8b") == EVERYBODY
    assert not target.api.models()["llava:13b"].get("preset")
    assert ask(target, pupil, "llava:13b") == "You said: hello"


def test_real_model_with_a_row_made_by_hand_is_no_name_taken(target: Target) -> None:
    """Would catch advice to delete a connection's model, when all that it lacks is a grant."""
    target.add_row("llava:13b", access_grants=[])
    done = target.upload(pack('name: "llava:13b", local_name: "llama3:8b"'))
    assert done.returncode == 1
    assert "not done: llava:13b: an admin has set who may use it" in done.stderr
    assert "delete or rename" not in done.stderr


def test_no_candidate_is_installed(target: Target) -> None:
    """Would catch silence about an alias that nothing answers, or one such alias holding up the others."""
    done = target.upload(
        pack('name: gpt-4, local_name: ["a:1b", "b:1b"]', 'name: gpt-3.5-turbo, local_name: "llama3:8b"')
    )
    assert done.returncode == 1
    assert (
        "not done: gpt-4: none of its models is there (a:1b, b:1b): pull one (`ollama pull`)" in done.stderr
    )
    assert set(target.rows) == {"gpt-3.5-turbo", "llama3:8b"}
    assert target.valves["aliases"].startswith("gpt-4 = a:1b, b:1b\n")


ROUTER = """
class Pipe:
    def pipes(self):
        return [{"id": "alone:1b", "name": "alone:1b"}]
"""


def test_model_that_the_router_alone_has(target: Target) -> None:
    """Would catch an alias published on a router that pack.yaml leaves out, or an upload that it breaks."""
    form = {"id": "gpu_router", "name": "gpu_router", "meta": {"description": ""}, "content": ROUTER}
    target.api.post("/api/v1/functions/create", form)
    target.api.post("/api/v1/functions/id/gpu_router/toggle")
    done = target.upload(pack('name: gpt-4, local_name: "alone:1b"'))
    assert done.returncode == 1
    assert "gpt-4: none of its models is there (alone:1b)" in done.stderr
    assert "gpt-4" not in target.rows


def test_models_of_all_cases_are_reached(target: Target) -> None:
    """Would catch a model that only images, tools or a group bring in, without a grant or open to others."""
    staff = target.add_group("staff")
    target.install(
        pack(
            'name: gpt-4, local_name: "llama3:8b"',
            'name: gpt-4, local_name: "llava:13b", when: {vision: true, groups: staff}',
            "name: gpt-4, local_name: smart, when: {tools: true, context: 8192}",
            'name: smart, local_name: "qwen2.5:32b", audience: admin',
        )
    )
    assert all(target.grants(model) == EVERYBODY for model in ("gpt-4", "llama3:8b", "qwen2.5:32b"))
    assert target.grants("llava:13b") == {("group", staff, "read")}  # asking for it itself is no way round
    assert target.grants("smart") == set()


def test_connection_that_is_down_for_a_while(target: Target) -> None:
    """Would catch grants withdrawn, and users locked out, because Ollama was restarted during an upload."""
    target.install()
    before = target.rows
    target.node.stop()
    try:
        done = target.upload(PACK)
        assert done.returncode == 1
        assert "see whether Open WebUI reaches its connections" in done.stderr
    finally:
        target.node.start()
    assert target.rows == before


def test_an_admins_change_to_who_may_use_a_row_of_ours(target: Target, pupil: Account) -> None:
    """Would catch a model that an admin has narrowed, opened again by the next upload."""
    target.install()
    form = {"id": "llama3:8b", "name": "llama3:8b", "access_grants": []}
    target.api.post("/api/v1/models/model/access/update", form)
    done = target.upload(PACK)
    assert done.returncode == 1
    assert "not done: llama3:8b: an admin has set who may use it" in done.stderr
    assert target.grants("llama3:8b") == set()
    assert refusal(target, pupil, "gpt-3.5-turbo") == refusal(target, pupil, "llama3:8b") == NOT_FOUND


def test_a_group_that_is_not_there_opens_nothing(target: Target) -> None:
    """Would catch a model for a group alone, open to everybody because the group is not there yet."""
    done = target.upload(
        pack(
            'name: gpt-4, local_name: "llama3:8b"',
            'name: gpt-4, local_name: "llava:13b", when: {groups: staff}',
        )
    )
    assert done.returncode == 1
    assert "not done: gpt-4: llava:13b is only for members of 'staff'" in done.stderr
    assert target.grants("llava:13b") == set()


ROUTED = """\
plugins: [model_alias_filter, gpu_router]
models:
  - {name: gpt-4, local_name: ["llama3:8b", "llava:13b"]}
"""


def test_the_dry_run_says_what_an_alias_opens(target: Target) -> None:
    """Would catch a model that an upload opens without a word, or one that an admin closed and it opens."""
    target.add_row("llava:13b", access_grants=[])
    shown = target.upload(ROUTED, "--dry-run")
    assert shown.returncode == 1
    assert '+ access: ["everybody"]' in shown.stdout
    assert '+ opens to them: ["llama3:8b"]' in shown.stdout
    assert (
        "not done: llava:13b: an admin has set who may use it, and not all who may use gpt-4" in shown.stderr
    )
    assert set(target.rows) == {"llava:13b"}


def test_the_picker_shows_what_answers_and_nothing_twice(target: Target, pupil: Account) -> None:
    """Would catch an alias named by itself, a model shown twice, or a row that hides and closes a model."""
    target.install(f"{ROUTED}router: {{hide_models: true}}\n")
    rows = target.rows
    assert rows["gpt-4"]["meta"]["description"] == "→ llama3:8b, llava:13b"
    assert all(rows[model]["meta"]["hidden"] for model in ("llama3:8b", "llava:13b", "qwen2.5:32b"))
    assert ask(target, pupil, "gpt-4") == "You said: hello"  # which the row of llama3:8b does not close
    again = f"{ROUTED}router: {{hide_models: true}}\n".replace('"llama3:8b", ', "")
    assert "done: update model row gpt-4" in target.install(again)
    assert target.rows["gpt-4"]["meta"]["description"] == "→ llava:13b"
    assert "nothing to change" in target.install(again)
    assert "done: delete model row qwen2.5:32b" in target.install(ROUTED)
    assert "qwen2.5:32b" not in target.rows


def test_the_router_answers_with_what_the_user_may_use(target: Target, pupil: Account) -> None:
    """Would catch the models of an alias open to everybody through the router, though an admin closed one."""
    target.add_row("llama3:8b", access_grants=[])
    assert target.upload(ROUTED).returncode == 1  # it says so
    before = len(target.node.requests)
    assert ask(target, pupil, "gpt-4") == "You said: hello"
    chats = [request.body for request in target.node.requests[before:] if request.path == "/api/chat"]
    assert [(chat or {})["model"] for chat in chats] == ["llava:13b"]
    assert refusal(target, pupil, "gpu_router.llava:13b") == NOT_FOUND
    target.add_row("llava:13b", access_grants=[])
    with pytest.raises((ServerError, KeyError)):
        ask(target, pupil, "gpt-4")
    assert ask(target, target.webui.admin, "gpt-4") == "You said: hello"
