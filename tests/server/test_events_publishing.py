"""The events function's models on the real Open WebUI: what plain users see, and what is left alone."""

from collections.abc import Iterator

import pytest

from deploy.client import OpenWebUI
from harness.events_target import EVENTS, EVERYBODY, ROUTER, EventsTarget, eventually, plugin_text
from harness.upload_target import FILTER, Target
from local.webui import Account

HASTY = plugin_text().replace("GRACE_SECONDS = 900.0", "GRACE_SECONDS = 0.0")
ALIASES = "gpt-4 = mixtral:8x7b, llama3:8b\ngpt-* = llama3:8b"
PUBLIC = [{"principal_type": "user", "principal_id": "*", "permission": "read"}]
TOLD = {"models": ["llama3:8b"], "aliases": ["gpt-4"]}


@pytest.fixture
def user(target: Target, pupil: Account) -> Iterator[OpenWebUI]:
    """The API as a plain user."""
    api = OpenWebUI(target.webui.url, pupil.token)
    yield api
    api.close()


def ask(api: OpenWebUI, model: str) -> str:
    form = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    return str(api.post("/api/chat/completions", form)["choices"][0]["message"]["content"])


def is_published(events: EventsTarget, model: str) -> bool:
    return model in events.target.rows


def test_plain_user_uses_router_and_aliases(events: EventsTarget, user: OpenWebUI) -> None:
    """Would catch models of the router that only admins can use, or an alias that clients cannot ask for."""
    events.target.add_row("llama3:8b", access_grants=PUBLIC)
    events.install_router(table=ALIASES, **TOLD)
    events.install(audience="public")
    eventually(lambda: events.grants("gpt-4") == EVERYBODY)
    assert events.grants("gpu_router.llama3:8b") == EVERYBODY
    assert events.target.rows["gpt-4"]["base_model_id"] == "gpu_router.gpt-4"
    eventually(lambda: "gpt-4" in user.models())  # the list is made anew after the rows are written
    assert ask(user, "gpt-4") == "gpu_router.gpt-4 answers"
    assert ask(user, "gpu_router.llama3:8b") == "gpu_router.llama3:8b answers"
    shown = {model for model, about in user.models().items() if not about["info"]["meta"].get("hidden")}
    assert shown == {"gpt-4", "gpu_router.llama3:8b", "llama3:8b"}  # in the picker the alias stands once


def test_clients_need_no_refresh(events: EventsTarget, user: OpenWebUI) -> None:
    """Would catch a published alias that API clients get 400 for until somebody opens the browser."""
    events.install_router(table=ALIASES, **TOLD)
    events.install(audience="public")
    eventually(lambda: events.looked_at() is not None)
    assert ask(user, "gpt-4") == "gpu_router.gpt-4 answers"


def test_looking_again_changes_nothing(events: EventsTarget) -> None:
    """Would catch rows that are written at every look: two replicas would write for ever."""
    events.install_router(table=ALIASES, **TOLD)
    events.install()
    eventually(lambda: is_published(events, "gpt-4"))
    before = events.target.rows
    for _ in range(3):
        events.wait_for_look()
    assert events.target.rows == before


def test_models_come(events: EventsTarget) -> None:
    """Would catch a model that is pulled later and stays hidden from plain users until a restart."""
    events.install_router(table="gpt-4 = mixtral:8x7b", models=["llama3:8b"])
    events.install()
    eventually(lambda: is_published(events, "gpu_router.llama3:8b"))
    events.wait_for_look()
    assert "gpt-4: no node has any of its models" in str(events.data()["publishing"]["problems"])
    events.router.tell(models=["llama3:8b", "mixtral:8x7b"], aliases=["gpt-4"])
    eventually(lambda: is_published(events, "gpt-4"))  # nothing tells of it: found at a look
    assert events.grants("gpu_router.mixtral:8x7b") == set()  # the model has no row: it is for admins


def test_a_restarting_node_takes_nothing_away(events: EventsTarget) -> None:
    """Would catch an alias that vanishes from everybody's picker because a node is away for a minute."""
    events.install_router(table=ALIASES, **TOLD)
    events.install()
    eventually(lambda: is_published(events, "gpt-4"))
    events.router.tell(models=[], aliases=[])
    events.wait_for_look()
    assert is_published(events, "gpt-4")
    assert is_published(events, "gpu_router.llama3:8b")
    shown = {row["id"]: row["missing_seconds"] for row in events.data()["publishing"]["rows"]}
    assert shown["gpt-4"] is not None


def test_a_router_that_fails_takes_nothing_away(events: EventsTarget) -> None:
    """Would catch published models withdrawn because the router could not be asked."""
    events.install_router(table=ALIASES, **TOLD)
    events.install(HASTY)
    eventually(lambda: is_published(events, "gpt-4"))
    events.router.tell(failing=["routed_models"])
    events.wait_for_look()
    events.wait_for_look()
    assert is_published(events, "gpt-4")
    assert "stays" in str(events.data()["publishing"]["problems"])


def test_models_go_after_the_grace_and_come_back(events: EventsTarget) -> None:
    """Would catch dead names in the picker for ever, and a model that is not published when it is back."""
    events.install_router(table=ALIASES, **TOLD)
    events.install(HASTY)
    eventually(lambda: is_published(events, "gpt-4"))
    events.router.tell(models=[], aliases=[])
    events.wait_for_look()
    assert not is_published(events, "gpt-4")
    assert not is_published(events, "gpu_router.llama3:8b")
    events.router.tell(**TOLD)
    events.wait_for_look()
    assert events.grants("gpt-4") == set()


def test_an_alias_taken_out_of_the_table_goes_at_once(events: EventsTarget) -> None:
    """Would catch a name that an admin took back and that stays for the length of the grace."""
    events.install_router(table=ALIASES, **TOLD)
    events.install()
    eventually(lambda: is_published(events, "gpt-4"))
    events.router.tell(aliases=[])
    events.set_valves(ROUTER, script=str(events.router.path), aliases="")
    eventually(lambda: not is_published(events, "gpt-4"))
    assert is_published(events, "gpu_router.llama3:8b")


def test_rows_of_admins_are_left_alone(events: EventsTarget) -> None:
    """Would catch an admin's own model adopted, changed or removed, or the dashboard keeping quiet of it."""
    events.install_router(table=ALIASES, **TOLD)
    target = events.target
    target.add_row("gpt-4", "llama3:8b", params={"system": "Be kind."})
    target.add_row("gpu_router.llama3:8b", access_grants=[])
    before = {model: target.rows[model] for model in ("gpt-4", "gpu_router.llama3:8b")}
    events.install(HASTY)
    events.wait_for_look()
    assert {model: target.rows[model] for model in before} == before
    assert {"gpt-4", "gpu_router.llama3:8b"} == set(events.left())
    events.set_valves(EVENTS, publish_aliases=False)
    events.wait_for_look()
    assert {model: target.rows[model] for model in before} == before


def test_a_clone_of_ours_is_its_admins(events: EventsTarget) -> None:
    """Would catch a clone, which has our mark in it, taken away with the original."""
    events.install_router(table=ALIASES, **TOLD)
    events.install()
    eventually(lambda: is_published(events, "gpt-4"))
    original = events.target.rows["gpt-4"]
    events.target.add_row("my-clone", "gpu_router.gpt-4", meta=original["meta"])
    events.set_valves(EVENTS, publish_aliases=False)
    eventually(lambda: not is_published(events, "gpt-4"))
    assert is_published(events, "my-clone")


def test_rows_of_the_uploader_are_left_alone(events: EventsTarget) -> None:
    """Would catch the two publishers of the pack working against each other."""
    events.target.install("plugins: [model_alias_filter]\nmodels: [{name: gpt-4, local_name: 'llama3:8b'}]")
    before = events.target.rows["gpt-4"]
    events.install_router(table=ALIASES, **TOLD)
    events.install()
    events.wait_for_look()
    assert is_published(events, "gpu_router.llama3:8b")
    assert events.target.rows["gpt-4"] == before
    assert "upload.py" in events.left()["gpt-4"]


def test_a_name_of_a_connection_is_not_given_away(events: EventsTarget, user: OpenWebUI) -> None:
    """Would catch an alias whose grants open another connection's model, to everybody."""
    events.install_router(table="llama3:8b = other", models=[])
    events.router.tell(aliases=["llava:13b"])
    events.install()
    events.wait_for_look()
    assert events.grants("llava:13b") is None
    assert "connection" in events.left()["llava:13b"]
    assert "llava:13b" not in user.models()


def test_an_admins_changes_to_ours_are_kept(events: EventsTarget) -> None:
    """Would catch grants, a switch or a prompt that an admin set and that the next look undoes."""
    events.install_router(table="gpt-4 = llama3:8b\ngpt-5 = llama3:8b", models=[])
    events.router.tell(aliases=["gpt-4", "gpt-5"])
    events.install(HASTY, audience="public")
    eventually(lambda: is_published(events, "gpt-5"))
    events.api.post(
        "/api/v1/models/model/access/update", {"id": "gpt-4", "name": "gpt-4", "access_grants": []}
    )
    events.target.change_row("gpt-5", params={"system": "Be kind."})
    events.wait_for_look()
    assert events.grants("gpt-4") == set()
    assert "an admin changed" in events.left()["gpt-4"]
    events.router.tell(aliases=[])
    events.wait_for_look()
    assert events.grants("gpt-4") == events.grants("gpt-5") == set()  # both are there, for admins
    events.router.tell(aliases=["gpt-4", "gpt-5"])
    events.wait_for_look()
    assert (events.grants("gpt-4"), events.grants("gpt-5")) == (set(), EVERYBODY)
    assert events.api.model_row("gpt-5")["params"]["system"] == "Be kind."


def test_switched_off_by_an_admin_stays_off(events: EventsTarget) -> None:
    """Would catch a model that an admin switches off and that is on again half a minute later."""
    events.install_router(table=ALIASES, **TOLD)
    events.install()
    eventually(lambda: is_published(events, "gpt-4"))
    events.api.post("/api/v1/models/model/toggle?id=gpt-4")
    events.wait_for_look()
    assert events.target.rows["gpt-4"]["is_active"] is False
    assert "switched it on or off" in events.left()["gpt-4"]


def test_audience_of_a_group(events: EventsTarget, pupil: Account, user: OpenWebUI) -> None:
    """Would catch models published for others than the audience, or a change of it without effect."""
    staff = events.target.add_group("staff", pupil.id)
    events.install_router(table=ALIASES, **TOLD)
    events.install(audience="group:staff, group:missing")
    eventually(lambda: events.grants("gpt-4") == {("group", staff, "read")})
    events.wait_for_look()
    assert "no group 'missing'" in str(events.data()["publishing"]["problems"])
    assert ask(user, "gpt-4") == "gpu_router.gpt-4 answers"
    events.set_valves(EVENTS, audience="admin")
    eventually(lambda: events.grants("gpt-4") == set())
    assert events.grants("gpu_router.gpt-4") == events.grants("gpu_router.llama3:8b") == set()
    assert "gpt-4" not in user.models()
    events.set_valves(EVENTS, audience="public")
    eventually(lambda: events.grants("gpt-4") == EVERYBODY)


def test_publishing_switched_off(events: EventsTarget) -> None:
    """Would catch rows that an admin cannot get rid of."""
    events.install_router(table=ALIASES, **TOLD)
    events.install()
    eventually(lambda: is_published(events, "gpt-4"))
    events.set_valves(EVENTS, publish_aliases=False)
    eventually(lambda: events.target.rows == {})


def test_aliases_of_the_filter(events: EventsTarget, user: OpenWebUI) -> None:
    """Would catch a deployment without a router whose names are not published."""
    text = plugin_text(FILTER)
    events.create(FILTER, text)
    events.set_valves(FILTER, aliases="gpt-4 = mixtral:8x7b, llava:13b\nnone = mixtral:8x7b")
    events.toggle(FILTER)
    events.install(audience="public")
    eventually(lambda: events.grants("gpt-4") == EVERYBODY)
    assert events.target.rows["gpt-4"]["base_model_id"] == "llava:13b"
    assert events.grants("llava:13b") == EVERYBODY  # Open WebUI checks every hop
    assert not is_published(events, "none")
    eventually(lambda: "gpt-4" in user.models())
    assert ask(user, "gpt-4") == "You said: hello"


def test_switching_it_on_opens_nothing(events: EventsTarget, user: OpenWebUI) -> None:
    """Would catch private models that become public because the function is switched on by hand."""
    text = plugin_text(FILTER)
    events.create(FILTER, text)
    events.set_valves(FILTER, aliases="gpt-5 = llava:13b")
    events.toggle(FILTER)
    events.install_router(table=ALIASES, **TOLD)
    events.install()
    eventually(lambda: events.grants("gpt-4") is not None and events.grants("gpt-5") is not None)
    events.wait_for_look()
    granted = {model: events.target.grants(model) for model in events.target.rows}
    assert {model for model, grants in granted.items() if grants} == set()
    assert user.models() == {}


def test_the_models_row_is_followed(events: EventsTarget, user: OpenWebUI) -> None:
    """Would catch a published name that keeps the access which its model had when it was published."""
    target = events.target
    target.add_row("llama3:8b", access_grants=PUBLIC)
    events.install_router(table="gpt-4 = llama3:8b", **TOLD)
    events.install()
    eventually(lambda: events.grants("gpt-4") == EVERYBODY)
    eventually(lambda: "gpt-4" in user.models())
    assert ask(user, "gpt-4") == "gpu_router.gpt-4 answers"
    form = {"id": "llama3:8b", "name": "llama3:8b", "access_grants": []}
    events.api.post("/api/v1/models/model/access/update", form)  # an event tells of it: no wait for a look
    names = ("gpt-4", "gpu_router.gpt-4", "gpu_router.llama3:8b")
    eventually(lambda: all(events.grants(name) == set() for name in names))
    events.api.post("/api/v1/models/model/toggle?id=llama3:8b")
    eventually(lambda: not any(target.rows[name]["is_active"] for name in names))
    assert "gpu_router.llama3:8b" not in events.api.models(
        refresh=True
    )  # nor for admins, as the model itself
    events.api.post("/api/v1/models/model/toggle?id=llama3:8b")
    eventually(lambda: all(target.rows[name]["is_active"] for name in names))
    events.api.post("/api/v1/models/model/access/update", form | {"access_grants": PUBLIC})
    eventually(lambda: all(events.grants(name) == EVERYBODY for name in names))
    target.api.post("/api/v1/models/model/delete", {"id": "llama3:8b"})  # without a row: for admins
    eventually(lambda: all(events.grants(name) == set() for name in names))


def test_a_stated_audience_says_what_it_opens(events: EventsTarget) -> None:
    """Would catch a model opened to everybody without a word on the dashboard, or a closed one opened."""
    events.target.add_row("llava:13b", access_grants=[])
    events.install_router(table="gpt-4 = llama3:8b, llava:13b", models=["llama3:8b", "llava:13b"])
    events.router.tell(aliases=["gpt-4"])
    events.install(audience="public")
    eventually(lambda: events.grants("gpt-4") == EVERYBODY)
    events.wait_for_look()
    shown = {row["id"]: row for row in events.data()["publishing"]["rows"]}
    assert (shown["gpt-4"]["audience"], shown["gpt-4"]["opens"]) == (["everybody"], ["llama3:8b"])
    assert events.grants("gpu_router.llama3:8b") == events.grants("gpu_router.llava:13b") == set()
    assert "gpt-4: llava:13b stays closed" in str(events.data()["publishing"]["problems"])


def test_a_condition_on_groups_is_kept_by_the_models_rows(events: EventsTarget, pupil: Account) -> None:
    """Would catch a model for a group alone, opened to everybody so that the alias can be asked."""
    staff = events.target.add_group("staff", pupil.id)
    events.create(FILTER, plugin_text(FILTER))
    events.set_valves(FILTER, aliases="gpt-4 = llava:13b [group=staff]\ngpt-4 = llama3:8b")
    events.toggle(FILTER)
    events.install(audience="public")
    eventually(lambda: events.grants("llama3:8b") == EVERYBODY)
    assert events.grants("llava:13b") == {("group", staff, "read")}
    events.set_valves(EVENTS, audience="")
    eventually(lambda: not is_published(events, "llava:13b") and not is_published(events, "llama3:8b"))
