"""The events function's routes on the real Open WebUI: who gets what, and when they are there."""

from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import pytest
import requests

from harness.events_target import DASHBOARD, EVENTS, LOAD, ROUTER, EventsTarget, eventually, plugin_text
from local.webui import Account

LOAD_PATH, PAGE, DATA = "/api/system/load", "/ollama-pack", "/ollama-pack/data"
FOREIGN = """
class Event:
    async def event(self, __app__, __event_name__):
        from fastapi.routing import APIRoute

        async def answer():
            return "another plugin's"

        routes = __app__.router.routes
        if not any(getattr(route, "path", "") == "/api/foreign" for route in routes):
            routes.insert(0, APIRoute("/api/foreign", answer))
"""


def is_routed(events: EventsTarget, path: str = LOAD_PATH) -> bool:
    """Whether a path is answered by our route, and not by the page that answers all that is left."""
    answer = events.get(path, events.admin)
    return answer.ok and "text/html" not in answer.headers["content-type"]


def test_load_without_token(events: EventsTarget) -> None:
    """Would catch a load endpoint that tells strangers of the machines."""
    events.install()
    assert events.get(LOAD_PATH, None).status_code == 401
    assert events.get(LOAD_PATH, Account("", "", "not-a-token", "")).status_code == 401


def test_whoever_shows_nothing_is_nobody(events: EventsTarget, pupil: Account) -> None:
    """Would catch a stranger taken for the user before, who had shown a key in the header of API keys."""
    events.install()
    url = events.target.webui.url + LOAD_PATH
    for _ in range(3):
        assert requests.get(url, headers={"x-api-key": pupil.token}, timeout=60).status_code == 200
        assert requests.get(url, timeout=60).status_code == 401


def test_load_for_an_admin(events: EventsTarget) -> None:
    """Would catch an answer that is not the contract's."""
    events.install_router()
    events.install()
    assert events.get(LOAD_PATH, events.admin).json() == LOAD


def test_load_for_a_plain_user_has_no_more_than_it_should(events: EventsTarget, pupil: Account) -> None:
    """Would catch an address, a model that is not theirs, or anything new shown to plain users."""
    node: dict[str, Any] = {
        **LOAD["nodes"][0],
        "key": "secret",
        "models": ["llama3:8b", "mine", {"url": "secret"}],
    }
    node["gpus"] = [{**node["gpus"][0], "agent": "http://secret:9400"}]
    events.install_router(load={**LOAD, "nodes": [node], "decisions": ["secret"], "recent": ["secret"]})
    events.install()
    grant = {"principal_type": "user", "principal_id": "*", "permission": "read"}
    row: dict[str, Any] = {"id": "mine", "base_model_id": None, "name": "mine", "meta": {}, "params": {}}
    events.target.api.post("/api/v1/models/create", row | {"access_grants": [grant]})
    try:
        told = events.get(LOAD_PATH, pupil)
    finally:
        events.target.api.post("/api/v1/models/model/delete", {"id": "mine"})
    assert told.status_code == 200
    assert "secret" not in told.text
    expected = {**LOAD["nodes"][0], "models": ["mine"]}
    del expected["url"]
    assert told.json() == {"gpu0_usage": 37.0, "nodes": [expected]}


def test_load_without_a_router(events: EventsTarget, pupil: Account) -> None:
    """Would catch an error where gpu_router is not installed, or is switched off."""
    events.install()
    assert events.get(LOAD_PATH, pupil).json() == {"nodes": []}
    assert "not installed" in events.data()["fault"]
    events.install_router()
    events.toggle(ROUTER)
    eventually(lambda: "switched off" in events.data()["fault"])


def test_load_of_a_failing_or_older_router(events: EventsTarget, pupil: Account) -> None:
    """Would catch a 500 that the router's fault makes, or a fault that the admin is not told."""
    events.install_router(failing=["system_load", "dashboard"])
    events.install()
    assert events.get(LOAD_PATH, pupil).json() == {"nodes": []}
    assert "the script says so" in events.data()["fault"]
    source = events.target.api.plugin("functions", ROUTER)["content"]
    events.update(ROUTER, source.replace("def dashboard", "def other").replace("def system_load", "def also"))
    eventually(lambda: "update it" in events.data()["fault"])
    assert events.get(LOAD_PATH, pupil).json() == {"nodes": []}


def test_many_askers_cost_one_question(events: EventsTarget, pupil: Account) -> None:
    """Would catch a router that is asked as often as the endpoint is: once a second is enough."""
    events.install_router()
    events.install()
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: events.get(LOAD_PATH, pupil), range(100)))
    taken = sum(answer.elapsed.total_seconds() for answer in answers) / 10  # ten at a time
    assert {answer.status_code for answer in answers} == {200}
    assert 1 <= events.router.asked("system_load") <= taken + 2


def test_page_is_for_admins(events: EventsTarget, pupil: Account) -> None:
    """Would catch a dashboard that plain users or strangers can read."""
    events.install_router()
    events.install()
    for path in (PAGE, DATA):
        assert events.get(path, None).status_code == 401
        assert events.get(path, pupil).status_code in {401, 403}
    page = events.get(PAGE, events.admin)
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert events.data()["router"] == DASHBOARD


def test_routes_come_and_go_with_the_function(events: EventsTarget) -> None:
    """Would catch routes that outlive a function which is switched off or deleted, or do not come back."""
    assert not is_routed(events)
    events.install()
    assert is_routed(events)
    events.toggle(EVENTS)
    assert not is_routed(events)
    events.toggle(EVENTS)
    assert is_routed(events)
    events.delete(EVENTS)  # of which nobody tells the function
    eventually(lambda: not is_routed(events))  # an event before that may just be loading it once more


def test_routes_can_be_switched_off(events: EventsTarget) -> None:
    """Would catch a valve without effect."""
    events.install(routes=False)
    assert not is_routed(events)
    events.set_valves(EVENTS, routes=True)
    eventually(lambda: is_routed(events))
    events.set_valves(EVENTS, routes=False)
    eventually(lambda: not is_routed(events))


def test_routes_are_there_once(events: EventsTarget) -> None:
    """Would catch routes that pile up with each event, and other plugins' routes that are lost."""
    events.create("foreign", FOREIGN)
    events.toggle("foreign")
    counted = COUNTING.format(path=LOAD_PATH)
    events.create("counting", counted)
    events.toggle("counting")
    events.install()
    for _ in range(3):
        events.wait_for_look()
    eventually(lambda: events.get("/api/count", None).json() == 1)
    events.update(EVENTS, plugin_text() + "\n# the next version\n")
    events.toggle(EVENTS)
    events.toggle(EVENTS)
    assert events.get("/api/count", None).json() == 1
    assert events.get("/api/foreign", None).json() == "another plugin's"


COUNTING = """
class Event:
    async def event(self, __app__, __event_name__):
        from fastapi.routing import APIRoute

        routes = __app__.router.routes

        async def answer():
            return sum(getattr(route, "path", "") == "{path}" for route in routes)

        if not any(getattr(route, "path", "") == "/api/count" for route in routes):
            routes.insert(0, APIRoute("/api/count", answer))
"""


def test_update_replaces_what_answers(events: EventsTarget) -> None:
    """Would catch the code before an update answering on, until a restart."""
    events.install_router()
    events.install()
    assert events.get(LOAD_PATH, events.admin).json() == LOAD
    new = plugin_text().replace('return {**usage, "nodes": nodes', 'return {"version": 2, "nodes": nodes')
    assert new != plugin_text()
    events.update(EVENTS, new)
    eventually(lambda: events.get(LOAD_PATH, events.admin).json().get("version") == 2)


def test_bad_audience_is_refused(events: EventsTarget) -> None:
    """Would catch a valve that is stored and then publishes for nobody, and a reason that nobody can read."""
    events.install()
    with pytest.raises(Exception, match="400"):
        events.set_valves(EVENTS, audience="everyone")
    is_shown = version("open-webui") != "0.11.2"  # the page does not know there what was refused
    if is_shown:
        (refused,) = events.get(DATA, events.admin).json()["refused_valves"]
        assert refused["plugin"] == EVENTS
        assert "'everyone'" in refused["reason"]
    events.set_valves(EVENTS, audience="admin")
    assert events.get(DATA, events.admin).json()["refused_valves"] == []


def test_an_admin_drains_a_node(events: EventsTarget, pupil: Account) -> None:
    """Would catch a node that is drained in one worker alone, or by anybody."""
    events.install_router()
    events.install()
    url = f"{events.target.webui.url}/ollama-pack/nodes/drain"

    def drain(account: Account, **body: Any) -> requests.Response:
        bearer = {"Authorization": f"Bearer {account.token}"}
        return requests.post(url, json=body, headers=bearer, timeout=60)

    def drained() -> str:
        return str(events.target.api.valves("functions", ROUTER).get("drained"))

    assert drain(pupil, node="gpu0").status_code == 401
    assert drain(events.admin, node="gpu0").json()["fault"] == ""
    assert drained() == "gpu0"
    assert "There is no node gpu7. The nodes are: gpu0." in drain(events.admin, node="gpu7").json()["fault"]
    assert drain(events.admin, node="gpu0", drain=False).json()["fault"] == ""
    assert drained() == ""
