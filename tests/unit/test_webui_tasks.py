"""Which of Open WebUI's own calls come behind people: checked against the installed Open WebUI."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from ollama_pack.services.webui_tasks import is_background_prompt, is_background_task

WAITED_FOR = {
    *("autocomplete_generation", "context_compaction", "function_calling", "image_prompt_generation"),
    *("moa_response_generation", "query_generation"),
}
NOBODY_WAITS = {
    *("emoji_generation", "follow_up_generation", "memory_review", "tags_generation", "title_generation"),
}


def source(name: str) -> str:
    """The text of a module of Open WebUI, which is not imported: that would make folders and files."""
    found = find_spec("open_webui")
    assert found
    assert found.origin
    return (Path(found.origin).parent / name).read_text()


@pytest.mark.parametrize("task", sorted(WAITED_FOR | NOBODY_WAITS))
def test_each_task_has_its_place(task: str) -> None:
    """Would catch a search query that waits behind people, or a title in front of them."""
    assert is_background_task(task) == (task in NOBODY_WAITS)


def test_no_task_of_the_installed_version_is_unknown() -> None:
    """Would catch a new version with a call that nobody has thought of."""
    constants = source("constants.py")
    tasks = constants[constants.index("class TASKS") :]
    named = set(re.findall(r"^    [A-Z_]+ = '([a-z_]+)'$", tasks, re.MULTILINE))
    assert named
    assert named <= WAITED_FOR | NOBODY_WAITS


def test_prompts_are_known_by_their_beginnings() -> None:
    """Would catch titles on a Pipelines server that no longer look like titles."""
    found = re.findall(r'DEFAULT_(\w+)_PROMPT_TEMPLATE = """(.*?)"""', source("config.py"), re.DOTALL)
    background = {
        name
        for name, text in found
        if is_background_prompt({"messages": [{"role": "user", "content": text}]})
    }
    assert background == {
        *("EMOJI_GENERATION", "FOLLOW_UP_GENERATION", "TAGS_GENERATION", "TITLE_GENERATION")
    }


@pytest.mark.parametrize("task", [None, "", 5, ["title_generation"], "anything else"])
def test_what_is_unknown_is_waited_for(task: object) -> None:
    """Would catch a person's request that waits since nobody knows what it is."""
    assert not is_background_task(task)
