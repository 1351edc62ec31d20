"""Requests for vectors at a node, by the new path and by the old one."""

import asyncio

from harness.ollama_request import embed_input
from harness.ollama_state import NodeState
from harness.ollama_wire import JSON, Model, RefusalError, Usage, embedding, normalized
from harness.sim_records import Record


async def embed(state: NodeState, body: JSON, record: Record) -> JSON:
    """Answer /api/embed."""
    texts = embed_input(body)
    model = state.model_to_embed(body)
    metrics = (await _evaluate(state, model, body, texts, record)).metrics()
    answer: JSON = {"model": body["model"], "embeddings": []}
    if not texts:
        return answer
    length = min(body.get("dimensions") or model.embedding_length, model.embedding_length)
    answer["embeddings"] = [normalized(embedding(text, model.embedding_length)[:length]) for text in texts]
    return answer | {key: metrics[key] for key in ("total_duration", "load_duration", "prompt_eval_count")}


async def embeddings(state: NodeState, body: JSON, record: Record) -> JSON:
    """Answer /api/embeddings."""
    if not body.get("model"):
        raise RefusalError(400, "model is required")
    model = state.model_to_embed(body)
    prompt = body.get("prompt")
    await _evaluate(state, model, body, [prompt] if prompt else [], record)
    return {"embedding": embedding(prompt, model.embedding_length) if prompt else []}


async def _evaluate(state: NodeState, model: Model, body: JSON, texts: list[str], record: Record) -> Usage:
    """Take the time that a runner needs for these texts. Nothing is reused, and what a slot held is lost."""
    loop = asyncio.get_running_loop()
    came = loop.time()
    async with state.scheduler.lease(model, body) as lease:
        record.load, record.loaded = loop.time() - came, lease.loaded
        for text in texts:
            asked = loop.time()
            async with lease.runner.slot(text, reuse=False) as turn:
                record.wait += loop.time() - asked
                record.prompt_tokens += turn.prompt_tokens
                await asyncio.sleep(state.shape.prompt_seconds(model, turn.prompt_tokens))
    return Usage(record.prompt_tokens, 0, loop.time() - came, record.load, 0.0, 0.0)
