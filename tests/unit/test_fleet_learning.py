"""What is learned from durations: rates, slots, kept prefixes, demand; and the mirror of prefixes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.virtual_world import World
from ollama_pack.routing.decide.prefix import (
    IMAGE_TOKENS,
    MAX_BLOCKS,
    MAX_KEPT,
    MAX_LOST,
    PIECE_BYTES,
    PIECE_SHARE,
    WHOLE_BYTES,
    MatchDepth,
    PrefixMirror,
    Retention,
    RetentionLearner,
    prompt_blocks,
)
from ollama_pack.routing.decide.view import ModelRates, PromptBlock
from ollama_pack.routing.state.demand import MAX_BLOBS, DemandMeter
from ollama_pack.routing.state.estimates import Durations, RatesLearner, SlotLearner

PRIORS = ModelRates()


def say(*texts: str) -> tuple[PromptBlock, ...]:
    roles = ("user", "assistant")
    return prompt_blocks([{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)])


def spent(prompt: float = 1.0, count: int = 700, wait: float = 0.0) -> Durations:
    return Durations(prompt + 2.0 + wait, 0.0, prompt, count, 2.0, 100)


texts = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=8)


@given(texts, texts)
def test_hit_is_the_common_beginning(first: list[str], second: list[str]) -> None:
    """Would catch a search that skips a block, or finds equal blocks behind different ones."""
    mirror = PrefixMirror()
    mirror.started(say(*first), 0.0)
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    expected = say(*second)[same - 1].upto if same else 0
    assert mirror.match(say(*second)).hit == expected


def test_nodes_that_have_measured_speak_for_those_that_have_not() -> None:
    """Would catch an idle node that is never tried, as it is believed to be slower than the others are."""
    world = World()
    world.ask(1)
    world.decide()
    world.finish("r1", prompt=0.5, prompt_count=2000, decode=1.0, decode_count=100, load=9.0, total=10.5)
    for node in world.scheduler.cluster.nodes.values():
        rates = node.known("blob-a")
        assert (rates.prompt, rates.token, rates.load, rates.learned) == (4000.0, 0.01, 9.0, False)
        assert node.known("blob-b").prompt == PRIORS.prompt


def test_a_node_that_measures_what_others_have_changes_nothing_of_them() -> None:
    """Would catch a large fleet that is looked at anew, all of it, at each node's first answers."""
    world = World()
    world.ask(1)
    world.ask(2)
    (idle,) = world.scheduler.cluster.nodes.keys() - {binding.node for binding in world.decide()}
    took = {"prompt": 0.5, "prompt_count": 2000, "decode": 1.0, "decode_count": 100, "load": 9.0}
    world.finish("r1", **took)
    before = world.scheduler.cluster.nodes[idle].known("blob-a")
    world.finish("r2", **took)
    assert world.scheduler.cluster.nodes[idle].known("blob-a") is before


def test_others_follow_what_a_node_goes_on_to_measure() -> None:
    """Would catch nodes that are judged for ever by the first answers that any node gave."""
    world = World(names=("x", "y"))
    for number in range(12):
        world.ask(number)
        (binding,) = world.decide()
        longer = 1.0 if number < 5 else 9.0
        world.finish(f"r{number}", prompt=0.5, decode=longer, decode_count=100, load=9.0, total=10.5 + longer)
        world.now += 20.0
    (other,) = {"x", "y"} - {binding.node}
    expected, measured = (
        world.scheduler.cluster.nodes[name].known("blob-a") for name in (other, binding.node)
    )
    assert not expected.learned
    assert expected.service == pytest.approx(measured.service, rel=0.1)


def test_the_answer_is_held_too() -> None:
    """Would catch a next turn that is predicted to evaluate the answer again."""
    mirror = PrefixMirror()
    mirror.started(say("question"), 0.0)
    mirror.finished(say("question"), 1000, 1.0)
    blocks = say("question", "a long answer", "thanks")
    assert mirror.match(blocks).hit == blocks[1].upto


def test_a_chat_takes_the_place_of_its_own_prefix() -> None:
    """Would catch a mirror in which a long chat pushes out all others."""
    mirror = PrefixMirror(retention=Retention(8))
    mirror.started(say("other"), 0.0)
    for turns in range(1, 20, 2):
        mirror.started(say(*"abcdefghijklmnopqrst"[:turns]), float(turns))
    assert len(mirror.state()) == 2


@given(st.lists(st.integers(0, 30), max_size=60))
def test_the_mirror_is_bounded(chats: list[int]) -> None:
    """Would catch a mirror that grows with the chats."""
    mirror = PrefixMirror(retention=Retention(4))
    for chat in chats:
        mirror.started(say(f"chat {chat}"), 0.0)
    assert len(mirror) == min(4, len(set(chats)))
    assert len(mirror.state()) <= 4 + MAX_LOST


def test_long_conversations_have_bounded_blocks() -> None:
    """Would catch a conversation of thousands of messages that costs as many looks."""
    blocks = say(*("word" for _ in range(3 * MAX_BLOCKS)))
    assert len(blocks) == MAX_BLOCKS
    assert blocks[-1].upto > 2 * MAX_BLOCKS


words = st.text("abc ", min_size=1, max_size=4000)


@given(words, words, words)
def test_a_beginning_that_messages_share_is_a_hit(begin: str, one: str, other: str) -> None:
    """Would catch title calls whose common instructions count as unknown: the GPU would seem to be faster."""
    first, second = f"{begin}x{one}", f"{begin}y{other}"
    mirror = PrefixMirror()
    mirror.started(say(first), 0.0)
    hit, shared = mirror.match(say(second)).hit, len(begin) / 4
    assert hit <= shared + 10  # the role and the quotes around the text
    short = min(len(one), len(other)) < WHOLE_BYTES and shared < WHOLE_BYTES / 2
    assert short or hit > shared - max(PIECE_BYTES, len(begin) * PIECE_SHARE, WHOLE_BYTES) / 4


def test_a_long_message_has_few_blocks() -> None:
    """Would catch a book in one message that makes each decision about it take a millisecond."""
    assert len(say("word " * 200_000)) < 100
    assert len(say("word " * 20, "word " * 200_000)) == 2  # an answer is held as a whole
    both = say("a" * 5000), say("a" * 5000, "answer", "go on")
    assert both[1][: len(both[0])] == both[0]  # the next turn begins with the same blocks
    assert both[1][len(both[0])].answer


def test_an_image_counts_as_one_however_large() -> None:
    """Would catch a photo that counts as a million tokens, and a node that is said to take an hour for it."""
    small, large = "data:image/png;base64,aaaa", "data:image/png;base64," + "a" * 4_000_000

    def shown(url: str) -> tuple[PromptBlock, ...]:
        part = {"type": "image_url", "image_url": {"url": url}}
        return prompt_blocks([{"role": "user", "content": [{"type": "text", "text": "what is it?"}, part]}])

    assert shown(small)[-1].upto == shown(large)[-1].upto < 2 * IMAGE_TOKENS
    assert shown(small)[-1].chain != shown(large)[-1].chain
    assert (
        prompt_blocks([{"role": "user", "content": "x", "images": ["a" * 10**6]}])[-1].upto < 2 * IMAGE_TOKENS
    )


def test_tools_and_images_tell_prompts_apart() -> None:
    """Would catch a hit between prompts that differ in what is not text."""
    message = {"role": "user", "content": "hello"}
    plain = prompt_blocks([message])
    assert prompt_blocks([message], tools=[{"name": "f"}])[-1].chain != plain[-1].chain
    assert prompt_blocks([{**message, "images": ["aGk="]}])[-1].chain != plain[-1].chain


def test_rates_are_trusted_after_five_samples() -> None:
    """Would catch predictions that go by the first, perhaps odd, request."""
    learner = RatesLearner()
    for number in range(5):
        assert learner.rates(PRIORS, 1, 1).learned == (number >= 5)
        learner.observe(spent(), 0, background=False, loaded=False)
    known = learner.rates(PRIORS, 1, 1)
    assert known.learned
    assert known.prompt == pytest.approx(700)
    assert known.token == pytest.approx(0.02)
    assert known.output == pytest.approx(100)


def test_likely_hits_do_not_make_a_node_look_fast() -> None:
    """Would catch a prompt rate that is far too high, after which no prompt seems to cost anything."""
    learner = RatesLearner()
    for _ in range(5):
        learner.observe(spent(), 0, background=False, loaded=False)
    learner.observe(
        spent(prompt=0.01), 0, background=False, loaded=False
    )  # not known to us, but plainly a hit
    learner.observe(spent(prompt=0.01), 690, background=False, loaded=False)
    assert learner.rates(PRIORS, 1, 1).prompt == pytest.approx(700)


def test_a_node_that_has_become_faster_is_believed() -> None:
    """Would catch a rate that can only fall."""
    learner = RatesLearner()
    for _ in range(5):
        learner.observe(spent(prompt=10.0), 0, background=False, loaded=False)
    for _ in range(40):
        learner.observe(spent(prompt=1.0), 0, background=False, loaded=False)
    assert learner.rates(PRIORS, 1, 1).prompt > 300


def test_slots_of_an_engine_that_batches_are_found_within_a_few_first_tokens() -> None:
    """Would catch a vLLM that serves 128 at once and is given one more after each answer."""
    slots = SlotLearner(None, 64)
    rounds = 0
    while slots.offered < 64:
        for beside in range(slots.offered):
            slots.began(beside, 0.08, 100)
        rounds += 1
    assert rounds <= 6


def test_an_engine_with_one_slot_is_not_flooded() -> None:
    """Would catch an Ollama with one slot in whose queue requests pile up, or that is tried too often."""
    slots = SlotLearner(None, 64)
    waited = 0
    for _ in range(300):
        offered = slots.offered
        slots.began(0, 0.2, 100)
        for beside in range(1, offered):
            waited += 1
            slots.began(beside, 0.2 + 3.0 * beside, 100)
            slots.observe(beside, 3.0 * beside)
        slots.observe(0, 0.01)
        assert slots.offered <= 2
    assert waited <= 8
    assert slots.slots == 1


def test_an_engine_that_holds_requests_back_gets_fewer() -> None:
    """Would catch an engine that was started again with fewer slots, and is believed to have as many."""
    slots = SlotLearner(None, 64)
    for beside in range(4):
        slots.began(beside, 0.2, 100)
        slots.observe(beside, 0.0)
    assert slots.slots >= 4
    for _ in range(5):
        slots.observe(2, 2.0)
    assert slots.slots == 2


def test_an_engine_s_own_figures_come_first() -> None:
    """Would catch slots that grow though the engine reports a queue, or that do not while it reports none."""
    slots = SlotLearner(None, 64)
    slots.counted(8, 0)
    assert slots.slots == 16
    for _ in range(2):
        slots.counted(6, 3)
    assert slots.slots == 6
    slots.began(5, 0.1, 100)
    assert slots.slots == 6


def test_an_engine_that_reports_no_queue_is_not_throttled_for_slow_first_tokens() -> None:
    """Would catch requests that are held back from a vLLM which batches them, since this machine is busy."""
    slots = SlotLearner(None, 64)
    slots.began(0, 0.1, 100)
    slots.counted(8, 0)
    for _ in range(20):
        slots.began(10, 3.0, 100)
    assert slots.slots == 16


def test_declared_slots_are_not_doubted() -> None:
    """Would catch learning that overrides what the admin wrote."""
    slots = SlotLearner(3, 64)
    for beside in (0, 1, 5):
        slots.observe(beside, 0.0)
    assert slots.offered == 3


def at(depth: int, tokens: int = 400, between: int = 0, *, held: bool = True) -> MatchDepth:
    return MatchDepth(depth, tokens, between, held)


def test_kept_prefixes_are_learned_up_and_down() -> None:
    """Would catch a newer engine's kept prefixes that are never used, or believed in when they are lost."""
    learner = RetentionLearner()
    learner.observe(at(2, held=False), 380.0)
    assert learner.retention.prompts == 3
    for _ in range(3):
        learner.observe(at(2), 0.0)
    assert learner.retention.prompts == 2
    learner.observe(MatchDepth(), 0.0)
    learner.observe(at(0, 10), 0.0)  # too short to tell
    assert learner.retention.prompts == 2
    learner.observe(at(MAX_KEPT * 2, held=False), 400.0)
    assert learner.retention.prompts == MAX_KEPT


def test_an_engine_that_keeps_tokens_is_told_from_one_that_keeps_prompts() -> None:
    """Would catch long prompts that are believed to stay in a cache of blocks as long as short ones."""
    learner = RetentionLearner()
    for depth in (3, 20, 40):
        learner.observe(at(depth, between=1000, held=False), 400.0)
    for _ in range(3):
        learner.observe(at(5, between=90_000), 0.0)
    assert learner.retention.prompts == 41
    assert learner.retention.tokens == 90_000


def test_what_is_lost_for_good_is_not_hoped_for() -> None:
    """Would catch chats that are sent back to a node for prefixes that it never holds."""
    learner = RetentionLearner()
    hope = [learner.retention.hope]
    for _ in range(4):
        learner.observe(at(1, held=False), 0.0)
        hope.append(learner.retention.hope)
    assert hope == sorted(hope, reverse=True)
    assert hope[-1] < 0.05


def test_reported_wait_is_what_is_left() -> None:
    """Would catch a wait that counts the load, or is below nothing for a clock's rounding."""
    assert Durations(10.0, 4.0, 1.0, 10, 2.0, 100).wait == pytest.approx(3.0)
    assert Durations(1.0, 0.0, 0.6, 10, 0.5, 5).wait == 0


def test_demand_fades_and_is_bounded() -> None:
    """Would catch a model that is protected though nobody asks for it any more, or entries kept for ever."""
    demand = DemandMeter()
    for number in range(3 * MAX_BLOBS):
        demand.add(f"b{number}", number / 100)
    assert len(demand.rates(60.0)) == MAX_BLOBS
    steady = DemandMeter()
    for second in range(600):
        steady.add("m", float(second))
    assert steady.rates(600.0)["m"] == pytest.approx(1.0, rel=0.02)
    assert steady.rates(3600.0)["m"] < 0.001
