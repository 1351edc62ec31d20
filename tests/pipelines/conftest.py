"""The fixtures of this tier: a Pipelines server, alone and behind an Open WebUI of its own."""

from harness.fixtures_pipelines import admin, alone, filter_api, node, pack_yaml, pipelines, student, webui
from harness.fixtures_pipelines_router import routed_pipelines
from harness.fixtures_pipelines_webui import piped

__all__ = [
    "admin",
    "alone",
    "filter_api",
    "node",
    "pack_yaml",
    "piped",
    "pipelines",
    "routed_pipelines",
    "student",
    "webui",
]
