"""Which plugins go to the Pipelines server, and which stay functions."""

from pathlib import Path

import pytest

from deploy.client import OpenWebUI
from deploy.config import PackConfig
from deploy.errors import DeployError
from upload import left_out, wanted_plugins

WEBUI = OpenWebUI("http://open-webui.invalid")
FOLDER = Path("mounted")
CACHE = {"response_cache_filter", "response_cache_replay"}


@pytest.mark.parametrize(
    ("pipelines", "webui", "left"),
    [
        (None, None, set()),
        (None, WEBUI, {"gpu_router", *CACHE}),
        (["gpu_router"], WEBUI, {"model_alias_filter", *CACHE}),
        (["gpu_router"], None, {"model_alias_filter", *CACHE}),
        ([], WEBUI, {"gpu_router", "model_alias_filter", *CACHE}),
    ],
    ids=["alone", "both", "chosen", "chosen-alone", "none"],
)
def test_behind_open_webui_a_plugin_has_one_place(
    pipelines: list[str] | None, webui: OpenWebUI | None, left: set[str]
) -> None:
    """Would catch two routers behind one Open WebUI, which offer every model twice."""
    config = PackConfig(pipelines=pipelines)
    assert left_out(config, wanted_plugins(config, []), webui, FOLDER) == left


def test_without_a_pipelines_server_nothing_is_left_out() -> None:
    """Would catch notes about a server that nobody has named."""
    config = PackConfig()
    assert left_out(config, wanted_plugins(config, []), WEBUI, None) == set()


def test_what_is_no_pipeline_is_refused() -> None:
    """Would catch a mistyped id, for which a plugin would silently stay a function."""
    with pytest.raises(DeployError, match=r"pipelines: there is no 'voice' for it; there are gpu_router, "):
        wanted_plugins(PackConfig(pipelines=["voice"]), [])
