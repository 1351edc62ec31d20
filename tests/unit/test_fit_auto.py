"""`quantization: auto`: which variant each node answers with, on nodes as people have them."""

from dataclasses import replace

import pytest

from harness.gguf_headers import MODELS
from harness.virtual_world import World
from ollama_pack.aliases.facts import RequestFacts
from ollama_pack.aliases.resolve import resolve
from ollama_pack.aliases.table import parse_table
from ollama_pack.fit.choose import Variant, best_variant, quality_order, usable_memory
from ollama_pack.fit.memory import ModelShape, RunOptions, memory_needed
from ollama_pack.fit.shapes import in_other_bits, level_bits, shape_of
from ollama_pack.routing.decide.view import FleetRequest, InstalledModel
from ollama_pack.routing.naming import auto_name, auto_parts, fold_name, is_auto
from ollama_pack.routing.nodes import NodeRow, parse_nodes
from ollama_pack.routing.probe.catalogue import NodeModel, build_catalogue
from ollama_pack.routing.state.node_memory import NodeMemory
from ollama_pack.routing.state.node_state import ResidentModel
from ollama_pack.services.routed import models_for, weights_behind

SHAPES = {model.name: shape_of(model.header.metadata, model.header.tensors) for model in MODELS}
LEVELS = ("F16", "Q8_0", "Q6_K", "Q4_K_M", "Q3_K_S")
GB = 10**9


def in_level(model: str, level: str) -> ModelShape:
    return in_other_bits(SHAPES[model], 4.65, level_bits(level))


def installed(model: str, level: str) -> InstalledModel:
    return InstalledModel(f"{model} {level}", shape=in_level(model, level), bits=level_bits(level))


def fleet(**memory: str) -> World:
    """Nodes with so much memory, which have an 8B and a 14B model in five quantizations."""
    world = World(
        tuple(memory),
        slots=1,
        rows={
            name: {"memory": parse_nodes(f"x http://x memory={size}")[0].memory}
            for name, size in memory.items()
        },
    )
    models = {f"m:8b-{level}".lower(): installed("Llama 3.1 8B", level) for level in LEVELS}
    models |= {f"l:12b-{level}".lower(): installed("Gemma 3 12B", level) for level in LEVELS}
    models["other:7b"] = installed("Qwen 2.5 7B", "Q4_K_M")
    for name in memory:
        world.scheduler.cluster.probed(name, models, [])
    return world


def choices(world: World, model: str, context: int = 0) -> dict[str, str]:
    """The level that each node would answer with; nodes that are left out have none."""
    auto = auto_name(
        [f"{model}-{level}".lower() for level in ("Q8_0", "F16", "Q6_K", "Q4_K_M", "Q3_K_S")], context
    )
    world.scheduler.submit(FleetRequest(f"r{auto}", "u", (auto,), context=context))
    world.scheduler.cancel(f"r{auto}")
    views = world.scheduler.cluster.view().by_name
    found = {name: view.models.get(fold_name(auto)) for name, view in views.items()}
    return {name: one.name.partition("b-")[2] for name, one in found.items() if one}


@pytest.mark.parametrize(
    ("model", "context", "expected"),
    [
        # An 8B model takes 8.8, 7.0, 5.4 and 4.1 GB in 8, 6, 4 and 3 bits; with 16k 11.3, 9.5, 7.8, 6.6.
        ("m:8b", 4096, {"small": "q6_k", "middle": "q8_0", "large": "q8_0"}),
        ("m:8b", 16_384, {"small": "q3_k_s", "middle": "q8_0", "large": "q8_0"}),
        ("m:8b", 65_536, {"large": "q8_0"}),
        # A 12B model with windows takes 15.0, 11.8, 8.9 and 6.7 GB; with 32k 16.9, 13.8, 10.8 and 8.6.
        ("l:12b", 4096, {"small": "q3_k_s", "middle": "q8_0", "large": "q8_0"}),
        ("l:12b", 32_768, {"middle": "q6_k", "large": "q8_0"}),
    ],
)  # fmt: skip
def test_each_node_takes_what_a_person_would(model: str, context: int, expected: dict[str, str]) -> None:
    """Nodes of 8, 16 and 24 GB. One that would compute on the CPU while another need not is left out."""
    assert choices(fleet(small="8GB", middle="16GB", large="24GB"), model, context) == expected


def test_where_nothing_fits_the_smallest_is_taken() -> None:
    """Would catch an alias that nobody answers, as it fits nowhere."""
    assert choices(fleet(small="8GB", tiny="6GB"), "m:8b", 131_072) == {"small": "q3_k_s", "tiny": "q3_k_s"}


def test_what_is_in_memory_counts() -> None:
    """Would catch a variant that evicts what others use, or a second copy of one that is there."""
    world = fleet(middle="16GB")
    models = dict(world.scheduler.cluster.nodes["middle"].models)
    resident = ResidentModel("other:7b", 7 * GB, 4096, 1.0, vram=7 * GB)
    world.scheduler.cluster.probed("middle", models, [resident])
    assert choices(world, "m:8b") == {"middle": "q6_k"}
    both = [resident, ResidentModel("m:8b-q3_k_s", 5 * GB, 4096, 1.0, vram=5 * GB)]
    world.scheduler.cluster.probed("middle", models, both)
    assert choices(world, "m:8b") == {"middle": "q3_k_s"}


def test_what_is_in_memory_must_fit_as_it_is_asked_for() -> None:
    """Would catch a chat of 64k tokens that has q8_0 loaded again, in part on the CPU, as it fits with 4k."""
    world = fleet(middle="16GB")
    models = world.scheduler.cluster.nodes["middle"].models
    small = ResidentModel("m:8b-q8_0", 10 * GB, 4096, 1.0, vram=10 * GB)
    world.scheduler.cluster.probed("middle", models, [small])
    assert choices(world, "m:8b") == {"middle": "q8_0"}
    assert choices(world, "m:8b", 40_000) == {"middle": "q6_k"}


def test_a_variant_that_is_in_part_on_the_cpu_is_not_kept() -> None:
    """Would catch q8_0 that another client loaded, and that all chats keep in memory though q4 would fit."""
    world = fleet(small="8GB")
    models = world.scheduler.cluster.nodes["small"].models
    spilled = ResidentModel("m:8b-q8_0", 10 * GB, 4096, 1.0, vram=7 * GB)
    world.scheduler.cluster.probed("small", models, [spilled])
    assert choices(world, "m:8b") == {"small": "q4_k_m"}


def test_the_answer_comes_from_the_variant_that_fits() -> None:
    """Would catch a decision that quotes one variant and sends another."""
    world = fleet(small="8GB")
    auto = auto_name(["m:8b-q8_0", "m:8b-q4_k_m"])
    world.scheduler.submit(FleetRequest("r", "u", (auto,)))
    (binding,) = world.decide()
    assert binding.model == "m:8b-q4_k_m"
    assert binding.loads


def test_a_variant_that_is_removed_while_a_chat_waits_is_replaced() -> None:
    """Would catch a decision that names a model which the node no longer has."""
    world = fleet(middle="16GB")
    auto = auto_name(["m:8b-q8_0", "m:8b-q4_k_m"])
    world.scheduler.submit(FleetRequest("r", "u", (auto,)))
    models = dict(world.scheduler.cluster.nodes["middle"].models)
    del models["m:8b-q8_0"]
    world.scheduler.cluster.probed("middle", models, [])
    (binding,) = world.decide()
    assert binding.model == "m:8b-q4_k_m"
    del models["m:8b-q4_k_m"]
    world.scheduler.cancel("r")
    world.scheduler.cluster.probed("middle", models, [])
    assert choices(world, "m:8b") == {"middle": "q6_k"}


def test_a_spill_shows_how_much_memory_there_is() -> None:
    """Would catch a node without `memory=` whose model half on the CPU teaches nothing."""
    world = World(("x",), slots=1)
    models = {f"m:8b-{level}".lower(): installed("Llama 3.1 8B", level) for level in LEVELS}
    world.scheduler.cluster.probed("x", models, [])
    assert choices(world, "m:8b") == {"x": "q4_k_m"}  # nothing is known yet
    spilled = ResidentModel("m:8b-q4_k_m", 6 * GB, 4096, 1.0, vram=5 * GB)
    world.scheduler.cluster.probed("x", models, [spilled])
    world.scheduler.cluster.probed("x", models, [])
    assert world.scheduler.cluster.nodes["x"].memory.room == 5 * GB
    assert choices(world, "m:8b") == {"x": "q3_k_s"}


def test_a_model_that_is_split_on_purpose_says_nothing_of_the_memory() -> None:
    """Would catch a GPU of 24 GB that is taken for full with the ten layers that `num_gpu` puts there."""
    world = fleet(large="24GB")
    node = world.scheduler.cluster.nodes["large"]
    split = replace(installed("Llama 3.1 8B", "Q4_K_M"), options=(("num_gpu", 10),))
    models = {name: model for name, model in node.models.items() if "q4" not in name} | {"m:8b-q4_k_m": split}
    room = node.memory.room
    resident = ResidentModel("m:8b-q4_k_m", 6 * GB, 4096, 1.0, vram=2 * GB)
    world.scheduler.cluster.probed("large", models, [resident])
    assert node.memory.room == room
    models["m:8b-q4_k_m"] = replace(split, options=(("num_gpu", -1),))
    world.scheduler.cluster.probed("large", models, [resident])
    assert node.memory.room == 2 * GB


def test_gpus_tell_how_much_there_is_and_what_others_use() -> None:
    """Would catch a training run on the same GPU that is not seen, or one look that is taken for one."""
    memory = NodeMemory(NodeRow("x", "http://x"))
    memory.told(24 * GB, 1 * GB, 1, 0)
    assert memory.room == usable_memory(24 * GB)
    for _ in range(3):
        assert memory.room == usable_memory(24 * GB)
        memory.told(24 * GB, 13 * GB, 1, 0)
    assert memory.room < 13 * GB


def test_two_models_that_fit_together_are_loaded_next_to_each_other() -> None:
    """Would catch a router that evicts as if a node held one model."""
    world = fleet(large="24GB")
    world.scheduler.cluster.probed(
        "large",
        world.scheduler.cluster.nodes["large"].models,
        [ResidentModel("other:7b", 6 * GB, 4096, 1.0, vram=6 * GB)],
    )
    world.scheduler.submit(FleetRequest("r", "u", ("m:8b-q8_0",)))
    (binding,) = world.decide()
    assert binding.victims == ()
    world.scheduler.submit(FleetRequest("s", "u", ("m:8b-f16",), context=32_768))
    world.now += 60
    world.scheduler.first_token("r")
    world.finish("r")
    (binding,) = world.decide()
    assert binding.victims


def test_unknown_sizes_do_not_stop_anything() -> None:
    variants = [Variant("a", "a", 8.5, 0), Variant("b", "b", 0.0, 0)]
    assert best_variant(variants, 0, (), measured=False)[0].name == "a"
    assert best_variant(variants, GB, (), measured=True)[0].name == "a"


def test_eight_bits_come_before_sixteen() -> None:
    names = ["a:f16", "a:q4", "a:q8", "a:?"]
    assert quality_order(names, ["F16", "Q4_K_M", "Q8_0", ""]) == ["a:q8", "a:f16", "a:q4", "a:?"]


# --- names and tables ---


def test_automatic_names_are_read_back() -> None:
    name = auto_name(["M:8b-Q8_0", "m:latest"], 8192)
    assert is_auto(name)
    assert fold_name(name) == "m:8b-q8_0 | m @8192"
    assert auto_parts(fold_name(name)) == (("m:8b-q8_0", "m"), 8192)
    assert auto_parts("llama3:8b") == (("llama3:8b",), 0)
    assert auto_parts(f"x @{'9' * 5000}") == (("x",), 999_999_999)


@pytest.mark.parametrize("written", ["quant=auto", "quantization=auto", "quant = AUTO"])
def test_a_row_asks_for_it(written: str) -> None:
    (row,) = parse_table(f"gpt-4 = m:8b [{written}]").rows
    assert row.is_automatic
    assert row.text == "gpt-4 = m:8b [quant=auto]"


def test_auto_stands_alone() -> None:
    with pytest.raises(ValueError, match="no other level next to it"):
        parse_table("gpt-4 = m:8b [quant=q8_0>auto]")


def test_the_variants_become_one_name_for_the_router() -> None:
    """Would catch variants that are tried one after another, whatever fits where."""
    table = parse_table("gpt-4 = m:8b, other [quant=auto]")
    levels = {"m:8b-q4_0": "Q4_0", "m:8b-q8_0": "Q8_0", "other": "Q4_0"}
    nodes = {
        "x": [NodeModel(name, InstalledModel(name), f"d-{name}", level) for name, level in levels.items()]
    }
    catalogue = build_catalogue(nodes)
    models = models_for(table, RequestFacts("gpt-4"), catalogue)
    assert models == ("m:8b-q8_0 | m:8b-q4_0", "other")
    assert weights_behind(models[0], catalogue) == "m:8b-q8_0+d-m:8b-q8_0+m:8b-q4_0+d-m:8b-q4_0"
    assert models_for(table, RequestFacts("gpt-4"), catalogue, {"m:8b-q8_0"}) == ("m:8b-q4_0", "other")


def test_without_a_router_the_named_model_answers() -> None:
    """Nobody knows then what fits: the model as it is named, else the variant with the fewest bits."""
    table = parse_table("gpt-4 = m:8b [quant=auto]")
    for levels, expected in (
        ({"m:8b": "Q4_0", "m:8b-q8_0": "Q8_0"}, "m:8b"),
        ({"m:8b-q4_0": "Q4_0", "m:8b-q8_0": "Q8_0"}, "m:8b-q4_0"),
    ):
        found = resolve(table, RequestFacts("gpt-4"), levels)
        assert found
        assert found.model == expected


def test_needs_are_as_people_know_them() -> None:
    """Would catch shapes of this file that are not what their names say."""
    need = memory_needed(in_level("Llama 3.1 8B", "Q4_K_M"), RunOptions(4096)).total
    assert 4.8 * GB < need < 5.6 * GB
