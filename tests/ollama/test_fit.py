"""Predicted memory next to what a real Ollama reports, before and after a load."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import requests

from harness.fixtures_ollama import RealServer
from local import ollama
from ollama_pack.engines.ollama.values import ShownModel
from ollama_pack.fit.learned import MemoryLearner, SeenLoad
from ollama_pack.fit.memory import RunOptions, memory_needed
from ollama_pack.fit.shapes import shape_of

CONTEXTS = (4096, 2048, 8192)  # the first one teaches


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ({}, RunOptions(0, on_gpu=False)),
        ({"OLLAMA_NUM_PARALLEL": "3"}, RunOptions(0, slots=3, on_gpu=False)),
        (
            {"OLLAMA_FLASH_ATTENTION": "1", "OLLAMA_KV_CACHE_TYPE": "q8_0"},
            RunOptions(0, cache="q8_0", flash=True, on_gpu=False),
        ),
        ({"OLLAMA_NEW_ENGINE": "1"}, RunOptions(0, engine="ollama", flash=False, on_gpu=False)),
        (
            {"OLLAMA_NEW_ENGINE": "1", "OLLAMA_FLASH_ATTENTION": "1"},
            RunOptions(0, engine="ollama", flash=True, on_gpu=False),
        ),
    ],
    ids=["default", "three slots", "8 bit cache", "own engine", "own engine, flash"],
)
def test_memory_is_predicted(
    real_server: RealServer, environment: Mapping[str, str], options: RunOptions
) -> None:
    """Within 5 % before anything was seen, and within 2 % at other contexts after one load."""
    folder = ollama.built()
    if folder is None or not real_server.ours:
        pytest.skip("no built Ollama to run with other settings: see `scripts/local/real-ollama`")
    learner, model = MemoryLearner(), real_server.model
    with ollama.serving(folder, settings=environment) as url, requests.Session() as http:
        shown = ShownModel.model_validate(http.post(f"{url}/api/show", json={"model": model}).json())
        shape = shape_of(shown.model_info, shown.tensors)
        for context in CONTEXTS:
            asked = {"model": model, "options": {"num_ctx": context, "num_thread": 1}}
            http.post(f"{url}/api/generate", json=asked, timeout=60).raise_for_status()
            (loaded,) = http.get(f"{url}/api/ps", timeout=10).json()["models"]
            before = memory_needed(shape, replace(options, context=context)).total
            assert before == pytest.approx(loaded["size"], rel=0.05)
            if context != CONTEXTS[0]:
                assert learner.expected("", shape, context) == pytest.approx(loaded["size"], rel=0.02)
            learner.seen("", SeenLoad(shape, context, loaded["size"]), on_gpu=loaded["size_vram"] > 0)
