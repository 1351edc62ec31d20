"""plan.py: what fits, what to pull, and what that saves, on nodes that answer as an Ollama does."""

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

import plan
from deploy.config import Endpoint
from harness.gguf_headers import MODELS, Header
from ollama_pack.base.messages import message
from ollama_pack.engines.ollama.values import ShownModel
from ollama_pack.fit.memory import RunOptions, memory_needed
from ollama_pack.fit.planning import PlannedModel, PlannedNode, PlannedVariant, plan_fleet, state_of
from ollama_pack.fit.shapes import in_other_bits, level_bits, planned_shape, shape_of
from ollama_pack.routing.plan.demand import Asked, Speeds, asked_in, busiest_hour
from ollama_pack.routing.plan.replay import ReplayNode, replay
from ollama_pack.services.dashboard import translated
from ollama_pack.services.fleet_plan import FleetPlans
from ollama_pack.webui.errors import RouterUnavailableError
from planning.nodes import look_at
from planning.record import read_record

GB = 10**9
HEADERS = {model.name: model.header for model in MODELS}
LLAMA, QWEN, GEMMA = "llama3.1:8b", "qwen2.5:7b", "gemma3:12b"
BEHIND = {LLAMA: "Llama 3.1 8B", QWEN: "Qwen 2.5 7B", GEMMA: "Gemma 3 12B"}


@contextmanager
def ollama(
    models: Mapping[str, str],
    encoder: int = 0,
    silent: Sequence[str] = (),
    recipes: Mapping[str, str] | None = None,
    others: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """A node that has these models: its name → a header's. It lists and shows them as Ollama does.

    Args:
        models: those.
        encoder: parameters of a vision encoder that each has in a file of its own.
        silent: models that it hangs up on.
        recipes: their own options, one on a line.
        others: answers of other paths.
    """

    def answer(path: str, body: Mapping[str, Any]) -> Any:
        if others and path in others:
            return others[path]
        match path[path.index("/api/") :]:
            case "/api/tags":
                details = {"quantization_level": "Q4_K_M"}
                return {
                    "models": [
                        {"name": name, "size": HEADERS[model].size, "details": details}
                        for name, model in models.items()
                    ]
                }
            case "/api/ps":
                return {"models": []}
        apart = {"projector_info": {"general.parameter_count": encoder}} if encoder else {}
        name = str(body["model"])
        own = {"parameters": (recipes or {}).get(name, "")}
        return shown(HEADERS[models[name]]) | apart | own

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send({})

        def do_POST(self) -> None:
            self._send(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _send(self, body: Mapping[str, Any]) -> None:
            if body.get("model") in silent:
                return
            raw = json.dumps(answer(self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def shown(header: Header) -> dict[str, Any]:
    info = {name: [] if isinstance(value, list) else value for name, value in header.metadata.items()}
    tensors = [{"name": one.name, "type": one.type, "shape": one.shape} for one in header.tensors]
    blob = f"FROM /blobs/sha256-{sha256(repr(header.metadata).encode()).hexdigest()}"
    return {"model_info": info, "tensors": tensors, "capabilities": ["completion"], "modelfile": blob}


def day(shares: Mapping[str, float], chats: int = 400, seed: int = 1) -> list[dict[str, Any]]:
    """A day's record: chats of some models, spread over eight hours."""
    dice = Random(seed)  # noqa: S311 - seeded on purpose
    return [
        {
            "at": dice.uniform(0, 8 * 3600),
            "model": dice.choices(list(shares), list(shares.values()))[0],
            "user": f"u{dice.randrange(40)}",
            "prompt": dice.randint(50, 1500),
            "written": dice.randint(20, 300),
            "took": 6.0,
            "waited": 0.0,
            "background": False,
        }
        for _ in range(chats)
    ]


@pytest.fixture(autouse=True)
def _no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPEN_WEBUI_URL", "PIPELINES_URL", "PIPELINES_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def pack(tmp_path: Path) -> Iterator[Path]:
    """Two nodes of 12 and 24 GB, one of which has no model yet."""
    with ollama(BEHIND) as full, ollama({}) as empty:
        file = tmp_path / "pack.yaml"
        file.write_text(
            "model_provider:\n  endpoints:\n"
            f'  - {{name: small, url: "{full}", memory: 12GB}}\n'
            f'  - {{name: large, url: "{empty}", memory: 24GB}}\n'
            "models:\n"
            f'- {{name: gpt-4, local_name: "{GEMMA}"}}\n'
            f'- {{name: gpt-3.5, local_name: ["{LLAMA}", "{QWEN}"]}}\n'
        )
        yield file


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = plan.main(arguments)
    return status, capsys.readouterr().out


def test_the_plan_says_what_fits_and_what_to_pull(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a plan that pulls what is there, or that does not fit by its own figures."""
    record = tmp_path / "record.jsonl"
    record.write_text("\n".join(json.dumps(one) for one in day({LLAMA: 0.5, QWEN: 0.3, GEMMA: 0.2})))
    status, text = run(capsys, str(pack), "--record", str(record), "--json")
    assert status == 0
    told = json.loads(text)
    rooms = {node["name"]: node["room_bytes"] for node in told["nodes"]}
    for node, room in rooms.items():
        assert sum(one["bytes"] for one in told["plan"] if one["node"] == node) <= room
    assert {one["model"] for one in told["plan"]} == {LLAMA, QWEN, GEMMA}
    assert told["pulls"] == [
        f"OLLAMA_HOST={line.partition('=')[2].partition(' ')[0]} ollama pull {one['variant']}"
        for line, one in zip(told["pulls"], (one for one in told["plan"] if one["pull"]), strict=True)
    ]
    states = {(row["level"], row["node"]): row["state"] for row in told["fits"] if row["model"] == GEMMA}
    assert states["Q8_0", "small"] == "spills"
    assert states["Q8_0", "large"] in {"fits", "fits beside"}
    fleets = {one["fleet"]: one for one in told["replays"]}
    assert fleets["with the plan"]["loads"] < fleets["as it is"]["loads"]
    assert fleets["with the plan"]["p95_seconds"] <= fleets["as it is"]["p95_seconds"]
    assert any("one more GPU" in name for name in fleets)


def test_a_vision_encoder_in_a_file_of_its_own_takes_memory() -> None:
    """Would catch a plan in which a model such as LLaVA fits, and which then is on the CPU in part."""
    with (
        ollama({LLAMA: BEHIND[LLAMA]}) as alone,
        ollama({LLAMA: BEHIND[LLAMA]}, encoder=312_000_000) as seeing,
    ):
        rows = [Endpoint(url=url, memory="24GB") for url in (alone, seeing)]
        without, with_it = (look_at(row, 0).variants[LLAMA].shape for row in rows)
    assert with_it == replace(without, projector=624_000_000)
    sizes = [ShownModel(projector_info={"general.parameter_count": 1}).shape(size).weights for size in (5, 7)]
    assert sizes == [5, 7]  # without tensors only the size of all files is known, which has the encoder


@pytest.mark.parametrize(("broken", "found"), [(1, 5), (4, 0)])
def test_a_model_that_is_not_shown_leaves_its_node_in_the_plan(broken: int, found: int) -> None:
    """Would catch a node that is left out for one model, and one that is asked for an hour."""
    models = {f"m{number}": "Llama 3.1 8B" for number in range(5)}
    with ollama(models, silent=list(models)[:broken]) as url:
        seen = look_at(Endpoint(url=url, name="a", memory="24GB"), 0)
    assert len(seen.variants) == found
    assert bool(seen.fault) == (not found)


def gpu(total: int, used: int) -> dict[str, Any]:
    return {"nodes": [{"gpus": [{"index": 0, "memory_total": total, "memory_used": used}]}]}


def test_what_other_programs_have_of_a_gpu_is_not_planned_with() -> None:
    """Would catch models that fit into memory which a vLLM on the same GPU has."""
    rooms = []
    for used in (1 * GB, 19 * GB):
        with ollama({LLAMA: BEHIND[LLAMA]}, others={"/api/system/load": gpu(24 * GB, used)}) as url:
            rooms.append(look_at(Endpoint(url=url, name="a", agent=url), 0).room)
    assert rooms[0] > 22 * GB
    assert rooms[1] < 5 * GB


def test_gpus_of_two_nodes_are_planned_with_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch two Ollamas on one machine that get its memory each."""
    with ollama({LLAMA: BEHIND[LLAMA]}, others={"/api/system/load": gpu(24 * GB, GB)}) as url:
        rows = [f"  - {{name: {name}, url: '{url}/{name}', agent: '{url}'}}" for name in "ab"]
        (tmp_path / "pack.yaml").write_text("\n".join(["model_provider:", "  endpoints:", *rows]))
        _, text = run(capsys, str(tmp_path / "pack.yaml"), "--json")
    assert [node["room_bytes"] for node in json.loads(text)["nodes"]] == [0, 0]


@pytest.mark.parametrize(
    ("version", "engine"), [("0.17.4", None), ("0.32.1", "llama.cpp"), ("1.0.0-rc1", "llama.cpp"), (7, None)]
)
def test_a_newer_ollama_runs_models_with_another_program(version: object, engine: str | None) -> None:
    """Would catch 128k tokens that do not fit, as Ollama 0.17 computes their attention without flash."""
    with ollama({LLAMA: BEHIND[LLAMA]}, others={"/api/version": {"version": version}}) as url:
        seen = look_at(Endpoint(url=url, name="a", memory="24GB"), 0)
    assert seen.options is not None
    assert seen.options.engine == engine


def test_what_is_loaded_shows_how_a_server_is_set_up() -> None:
    """Would catch a plan for one slot and a cache of 16 bits where the node shows four and 8."""
    real = RunOptions(16_384, slots=4, cache="q8_0", flash=True, engine="llama.cpp")
    size = memory_needed(
        shape_of(HEADERS[BEHIND[LLAMA]].metadata, HEADERS[BEHIND[LLAMA]].tensors), real
    ).total
    loaded = {"name": LLAMA, "size": size, "size_vram": size, "context_length": 16_384}
    with ollama({LLAMA: BEHIND[LLAMA]}, others={"/api/ps": {"models": [loaded]}}) as url:
        seen = look_at(Endpoint(url=url, name="a", memory="24GB"), 0)
    assert seen.options is not None
    assert (seen.slots, seen.options.cache) == (4, "q8_0")


def test_a_recipe_that_asks_for_more_context_takes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a model that fits with the plan's 8,192 tokens, and that Ollama loads with 131,072."""
    models = {LLAMA: BEHIND[LLAMA], "long:8b": "Mixtral 8x7B"}
    with ollama(models, recipes={"long:8b": "num_ctx    131072"}) as url:
        file = tmp_path / "pack.yaml"
        file.write_text(f"model_provider:\n  endpoints:\n  - {{name: a, url: '{url}', memory: 24GB}}\n")
        _, usual = run(capsys, str(file), "--json")
        _, asked = run(capsys, str(file), "--json", "--context", "131072")
    needs = [
        {row["model"]: row["bytes"] for row in json.loads(text)["fits"] if row["installed"]}
        for text in (usual, asked)
    ]
    assert needs[0]["long:8b"] == needs[1]["long:8b"]
    assert needs[0][LLAMA] < needs[1][LLAMA]


def test_names_of_the_same_weights_are_in_memory_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch an assistant made of a model (`FROM llama3.1:8b`) that fits nowhere next to it."""
    models = {LLAMA: BEHIND[LLAMA], "assistant:latest": BEHIND[LLAMA]}
    record = tmp_path / "record.jsonl"
    chats = day({LLAMA: 0.5, "assistant:latest": 0.5}, 20)
    record.write_text("\n".join(map(json.dumps, chats)))
    with ollama(models) as url:
        file = tmp_path / "pack.yaml"
        file.write_text(f"model_provider:\n  endpoints:\n  - {{name: a, url: '{url}', memory: 8GB}}\n")
        _, text = run(capsys, str(file), "--json", "--record", str(record))
    told = json.loads(text)
    assert len(told["plan"]) == 1
    assert told["unplaced"] == []
    assert [one["refused"] for one in told["replays"]] == [0] * len(told["replays"])


def test_models_that_run_elsewhere_are_not_pulled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch 70 GB that are planned for a model of Ollama's cloud, or for one that a vLLM has."""
    vllm, mine, cloud = "meta-llama/Llama-3.1-70B-Instruct", "mine:70b", "gpt-oss:120b-cloud"
    tags = {
        "models": [{"name": LLAMA, "size": 5 * GB}, {"name": mine, "size": 9, "remote_host": "https://x"}]
    }
    record = tmp_path / "record.jsonl"
    record.write_text("\n".join(map(json.dumps, day({LLAMA: 0.1, vllm: 0.3, mine: 0.3, cloud: 0.3}, 20))))
    with ollama({LLAMA: BEHIND[LLAMA]}, others={"/api/tags": tags}) as url:
        (tmp_path / "pack.yaml").write_text(
            f"model_provider:\n  endpoints:\n  - {{name: a, url: '{url}', memory: 160GB}}\n"
            f"  - {{name: b, url: '{url}/b', kind: openai, models: ['{vllm}']}}\n"
        )
        _, text = run(capsys, str(tmp_path / "pack.yaml"), "--json", "--record", str(record))
    told = json.loads(text)
    assert {row["model"] for row in told["fits"]} == {LLAMA}
    assert (told["pulls"], told["unplaced"]) == ([], [])
    assert {one["refused"] for one in told["replays"]} == {0}


def test_people_get_a_table(pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = run(capsys, str(pack), "--users", "40")
    assert status == 0
    for part in (
        "small",
        "11.3 GB for models, as its row says",
        GEMMA,
        "fits alone",
        "ollama pull",
        "Demand: the same",
    ):
        assert part in text


def test_a_table_in_a_pipe_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch names that are cut where there is no terminal, and a name that is read as markup."""
    long = "hf.co/bartowski/Meta-Llama-3.1-8B-Instruct-GGUF:Q4_K_M"
    with ollama({long: BEHIND[LLAMA], "odd[/b]:7b": BEHIND[QWEN]}) as node:
        rows = [
            f"  - {{name: gpu-node-{number:02}, url: '{node}/{number}', memory: 24GB}}" for number in range(9)
        ]
        (tmp_path / "pack.yaml").write_text("\n".join(["model_provider:", "  endpoints:", *rows]))
        status, text = run(capsys, str(tmp_path / "pack.yaml"))
    assert status == 0
    assert len([line for line in text.splitlines() if long in line and line.count("✓✓") == 9]) == 4
    assert text.count("odd[/b]:7b") >= 4
    (head,) = (line for line in text.splitlines() if "bits" in line)
    assert "gpu-node-00" in head
    assert "gpu-node-08" in head


def test_a_node_that_is_down_and_one_of_unknown_memory_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a plan that is silent about nodes that it could not look at."""
    with ollama({LLAMA: "Llama 3.1 8B"}) as url:
        file = tmp_path / "pack.yaml"
        file.write_text(
            "model_provider:\n  endpoints:\n"
            '  - {name: down, url: "http://127.0.0.1:9"}\n'
            f'  - {{name: unknown, url: "{url}"}}\n'
        )
        status, text = run(capsys, str(file))
    assert status == 0
    assert "down: does not answer as an Ollama" in text
    assert "its memory is not known. Add `memory: 24GB`" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "names no node"),
        ("model_provider: {endpoint: 'http://127.0.0.1:9'}", "does not answer"),
    ],
)
def test_what_cannot_be_planned_is_said(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pack.yaml"
    file.write_text(content)
    status, text = run(capsys, str(file))
    assert status == 1
    assert said in text


@pytest.mark.parametrize("line", ["no json", "[1]", "[" * 100_000])
def test_a_record_that_cannot_be_read_is_named(
    line: str, pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "record.jsonl"
    record.write_text(f"{json.dumps(day({LLAMA: 1.0}, 1)[0])}\n{line}")
    status, text = run(capsys, str(pack), "--record", str(record))
    assert status == 1
    assert "record.jsonl, line 2" in text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_record_may_be_written_by_powershell(encoding: str, tmp_path: Path) -> None:
    """Would catch a mark of the encoding that is taken for a part of the first line."""
    record = tmp_path / "record.jsonl"
    record.write_bytes("\r\n".join(map(json.dumps, day({"助手": 1.0}, 2))).encode(encoding))
    assert [asked.model for asked in read_record(record)] == ["助手", "助手"]


def test_odd_records_are_passed_over() -> None:
    """Would catch a record of another version that stops the plan."""
    odd: list[dict[str, Any]] = [
        {},
        {"model": 3, "at": 1},
        {"model": "a", "at": float("nan")},
        {"model": "a", "at": 5, "prompt": "x"},
    ]
    (one,) = asked_in(odd)
    assert (one.model, one.prompt, one.written) == ("a", 1, 1)
    assert busiest_hour(asked_in([])) == {}


# --- the plan itself ---


def variant(name: str, parameters: float, level: str) -> PlannedVariant:
    bits = level_bits(level)
    return PlannedVariant(f"{name}-{level}", level, bits, planned_shape(parameters, bits))


def model(name: str, parameters: float, busy: float, *levels: str) -> PlannedModel:
    return PlannedModel(
        name, tuple(variant(name, parameters, level) for level in levels or ("Q8_0", "Q4_K_M")), busy
    )


def placed(nodes: list[PlannedNode], models: list[PlannedModel]) -> set[tuple[str, str, str]]:
    found = plan_fleet(nodes, models, 8192)
    for node in nodes:
        assert found.used(node.name) <= node.room
    return {(one.node, one.model, one.variant.level) for one in found.placements}


def test_plans_are_what_a_person_would_do() -> None:
    """Would catch a plan that gives a model away for a better quantization of another."""
    small, large = PlannedNode("small", 8 * GB), PlannedNode("large", 23 * GB)
    eight = model("8b", 8e9, 0.4)
    assert placed([small], [eight]) == {("small", "8b", "Q4_K_M")}
    assert placed([large], [eight]) == {("large", "8b", "Q8_0")}
    fourteen = model("14b", 14e9, 0.2)
    assert placed([large], [eight, fourteen]) == {("large", "8b", "Q8_0"), ("large", "14b", "Q4_K_M")}
    assert placed([small, large], [eight, fourteen]) in (
        {("small", "8b", "Q4_K_M"), ("large", "14b", "Q8_0")},
        {("large", "8b", "Q8_0"), ("large", "14b", "Q4_K_M")},
    )


def test_a_crowded_model_gets_more_copies() -> None:
    nodes = [PlannedNode(f"n{number}", 12 * GB) for number in range(3)]
    found = plan_fleet(nodes, [model("8b", 8e9, 1.5)], 4096)
    assert len(found.of("8b")) == 3


def test_what_fits_nowhere_is_said() -> None:
    found = plan_fleet([PlannedNode("small", 8 * GB)], [model("70b", 70e9, 1.0)], 4096)
    assert (found.placements, found.unplaced) == ([], ["70b"])


def test_states() -> None:
    assert [state_of(need, 10, beside) for need, beside in ((4, 5), (4, 7), (12, 0), (41, 0))] == [
        "fits beside",
        "fits",
        "spills",
        "cannot",
    ]


def test_a_planned_day_has_fewer_loads() -> None:
    """Would catch a plan that is worth nothing: three nodes, four models, three working days."""
    models = [
        PlannedModel(name, (PlannedVariant(name, "Q4_K_M", 4.84, in_other_bits(shape, 4.65, 4.84)),), busy)
        for (name, header, busy) in (
            ("a", "Llama 3.1 8B", 0.5), ("b", "Qwen 2.5 7B", 0.3),
            ("c", "Gemma 3 12B", 0.2), ("d", "Gemma 2 9B", 0.1),
        )
        for shape in (shape_of(HEADERS[header].metadata, HEADERS[header].tensors),)
    ]  # fmt: skip
    nodes = [PlannedNode(f"n{number}", 15 * GB) for number in range(3)]
    found = plan_fleet(nodes, models, 8192)
    sizes = {one.model: one.need for one in found.placements}
    warm = {node.name: tuple(one.model for one in found.on(node.name)) for node in nodes}
    figures = []
    for seed in (1, 2, 3):
        record = asked_in(day({"a": 0.5, "b": 0.25, "c": 0.15, "d": 0.1}, 800, seed))
        today, then = (
            replay(
                [ReplayNode(node.name, node.room, 1, sizes, has(node.name)) for node in nodes],
                record,
                Speeds(),
            )
            for has in (lambda _: (), warm.__getitem__)
        )
        assert then.refused == today.refused == 0
        assert then.figures["p95_seconds"] < today.figures["p95_seconds"] / 2
        figures.append((today.loads, then.loads))
    without, planned = (sum(loads) / 3 for loads in zip(*figures, strict=True))
    assert (without, planned) == (pytest.approx(131, abs=6), pytest.approx(8, abs=2))  # as in docs/fit.md


def test_a_recorded_model_that_is_gone_is_refused_in_the_replay() -> None:
    """Would catch a plan that cannot be made at all for one model that was deleted since."""
    fleet = [ReplayNode("gpu0", 24 * 10**9, 2, {"here": 5 * 10**9})]
    record = [Asked(at, model, "anna", 50, 0, 10, 1.0, False) for at, model in ((0.0, "here"), (1.0, "gone"))]  # noqa: FBT003 - `background`
    played = replay(fleet, record, Speeds())
    assert (played.refused, len(played.waits)) == (1, 1)


def test_a_replay_is_the_same_each_time() -> None:
    record = [Asked(float(number), "a", f"u{number % 3}", 300, 100, 50, 3.0, False) for number in range(50)]  # noqa: FBT003 - `background`
    fleet = [ReplayNode("x", 10, 2, {"a": 5})]
    assert replay(fleet, record, Speeds()).figures == replay(fleet, record, Speeds()).figures


# --- the dashboard's plan ---


class Planner:
    """A router that makes plans, and a history without chats. Counts those that are made at once."""

    def __init__(self) -> None:
        self.made = self.at_once = self.most_at_once = 0
        self.fails = False

    async def plan(self, context: int, _users: int, _chats: list[Any]) -> Mapping[str, Any]:
        if self.fails:
            raise RouterUnavailableError(
                message(
                    "gpu_router did not answer {method} within {seconds:g} s: see the server's log",
                    method="plan",
                    seconds=55.0,
                )
            )
        self.made, self.at_once = self.made + 1, self.at_once + 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        return {"context": context, "fits": [{"state": word} for word in ("fits", "spills", "cannot")]}

    async def store(self) -> None:
        """There is none."""


def asked_plan(plans: FleetPlans, language: str = "en", **query: str) -> Any:
    request = SimpleNamespace(query_params={"language": language, **query}, headers={})
    return plans.route.answer(request, None)


def test_plans_are_made_one_at_a_time_and_kept() -> None:
    """Would catch a plan that is made again in the background, beside another one."""

    async def play() -> tuple[int, int, list[Any]]:
        planner = Planner()
        plans = FleetPlans(planner, planner)  # type: ignore[arg-type] # as far as they are used
        asked = [asked_plan(plans, context=context) for context in ("8192", "8192", "4096")]
        answers = await asyncio.gather(*asked)
        odd = await asked_plan(plans, users="000000001" + "9" * 5000)
        assert "people" in odd["fault"]
        return planner.made, planner.most_at_once, [one["context"] for one in answers]

    assert asyncio.run(play()) == (2, 1, [8192, 8192, 4096])


def test_a_plan_says_its_sentences_in_chinese_and_keeps_its_codes() -> None:
    """Would catch a cell of the table that says nothing in Chinese, as the page compares `spills`."""

    async def play() -> None:
        planner = Planner()
        plans = FleetPlans(planner, planner)  # type: ignore[arg-type] # as far as they are used
        found = await asked_plan(plans, "zh-CN")
        assert [one["state"] for one in found["fits"]] == ["fits", "spills", "cannot"]
        planner.fails = True
        found = await asked_plan(plans, "zh-CN", context="4096")
        assert found["fault"] == "gpu_router 在 55 秒内没有回应 plan：请查看服务器日志"

    asyncio.run(play())
    pulls = [{"state": word} for word in ("waiting", "done", "failed", "stopped")]
    assert translated(pulls, "zh-CN") == pulls
