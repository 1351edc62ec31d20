"""Aliases as people meet them in the browser."""

from pathlib import Path

import pytest
import requests
from playwright.sync_api import Page, expect

from browser.conftest import Open
from deploy.client import OpenWebUI
from harness.fixtures_webui import upload
from harness.ollama_node import OllamaNode
from local.webui import Account, RunningWebUI

ROOT = Path(__file__).resolve().parent.parent.parent
SLOW = 20_000  # milliseconds; the page itself may take long on a busy machine


@pytest.fixture
def functions_page(open_page: Open, webui: RunningWebUI) -> Page:
    """Admin → Functions, with the pack's function listed."""
    page = open_page(webui.admin, "/admin/functions")
    expect(page.get_by_text("Model aliases", exact=True)).to_be_visible(timeout=SLOW)
    return page


def ask(page: Page, text: str) -> None:
    page.locator("#chat-input").click()
    page.keyboard.type(text)
    page.keyboard.press("Enter")
    expect(page.get_by_text(f"You said: {text}")).to_be_visible(timeout=SLOW)


def test_plain_user_chats_with_an_alias(open_page: Open, student_account: Account, node: OllamaNode) -> None:
    """Would catch an alias that is not in the picker, or an answer that does not say which model gave it."""
    page = open_page(student_account, "/?models=gpt-4")
    ask(page, "hello from a browser")
    expect(page.get_by_text("gpt-4 → qwen2.5:32b")).to_be_visible()
    bodies = [request.body for request in node.requests if request.body]
    with_tools = [body for body in bodies if body.get("tools") and "hello from a browser" in str(body)]
    assert with_tools[0]["model"] == "qwen2.5:32b"  # Open WebUI offers its own tools in a browser


def test_model_without_tools_chats_in_a_browser(open_page: Open, student_account: Account) -> None:
    """Would catch Open WebUI offering tools to a model that Ollama refuses them for: no chat works."""
    page = open_page(student_account, "/?models=gpt-3.5-turbo")
    ask(page, "hello without tools")
    expect(page.get_by_text("gpt-3.5-turbo → llama3:8b")).to_be_visible()


def test_admin_edits_the_table(functions_page: Page, admin: OpenWebUI) -> None:
    """Would catch a valve that the dialog cannot show or save, or a bad table that it stores."""
    before = admin.valves("functions", "model_alias_filter")
    functions_page.get_by_role("button", name="Valves").click()
    table = functions_page.get_by_role("textbox", name="Aliases")
    expect(table).to_have_value(before["aliases"])
    try:
        table.fill(before["aliases"] + "\nfrom-the-page = llama3:8b")
        functions_page.get_by_role("button", name="Save").click()
        expect(functions_page.get_by_text("Valves updated successfully")).to_be_visible()
        assert "from-the-page = llama3:8b" in admin.valves("functions", "model_alias_filter")["aliases"]
    finally:
        admin.post("/api/v1/functions/id/model_alias_filter/valves/update", before)


def test_valves_in_chinese(functions_page: Page) -> None:
    """Would catch an admin who has set Open WebUI to Chinese and finds English names and texts of valves."""
    functions_page.evaluate("localStorage.setItem('locale', 'zh-CN')")
    functions_page.reload()
    expect(functions_page.get_by_text("模型别名", exact=True)).to_be_visible(timeout=SLOW)
    functions_page.get_by_role("button", name="配置项").first.click()
    dialog = functions_page.get_by_role("dialog")
    expect(dialog.get_by_role("textbox", name="别名")).to_be_visible(timeout=SLOW)
    expect(dialog.get_by_text("每行一个别名")).to_be_visible()
    expect(dialog.get_by_text("Default")).to_have_count(0)


def test_bad_table_is_not_stored(functions_page: Page, admin: OpenWebUI) -> None:
    """Would catch a bad table that seems to be saved: the page must show an error."""
    before = admin.valves("functions", "model_alias_filter")
    functions_page.get_by_role("button", name="Valves").click()
    functions_page.get_by_role("textbox", name="Aliases").fill("gpt-4 = gpt-4")
    functions_page.get_by_role("button", name="Save").click()
    expect(functions_page.get_by_text("Error updating function valves")).to_be_visible()
    assert admin.valves("functions", "model_alias_filter") == before


def test_import_of_the_release_file(
    functions_page: Page, admin: OpenWebUI, webui: RunningWebUI, pack_yaml: Path, tmp_path: Path
) -> None:
    """Would catch a `functions.json` that the admin page does not import."""
    built = build_release(tmp_path)
    url = f"{webui.url}/api/v1/functions/id/model_alias_filter/delete"
    requests.delete(url, headers={"Authorization": f"Bearer {admin.key}"}, timeout=60).raise_for_status()
    try:
        functions_page.reload()
        functions_page.locator("input[type=file]").set_input_files(built)
        functions_page.get_by_role("button", name="Confirm").click()
        expect(functions_page.get_by_text("Functions imported successfully")).to_be_visible(timeout=SLOW)
        made = admin.plugins("functions")["model_alias_filter"]
        assert (made["name"], made["is_active"], made["is_global"]) == ("Model aliases", False, False)
    finally:
        assert upload(webui, str(pack_yaml)).returncode == 0


def build_release(folder: Path) -> Path:
    """The list that `scripts/package.py` writes for the admin page."""
    import package  # noqa: PLC0415 - scripts/package.py, needed here only

    text = package.outputs(package.build(ROOT))["dist/functions.json"]
    file = folder / "functions.json"
    file.write_bytes(text)
    return file
