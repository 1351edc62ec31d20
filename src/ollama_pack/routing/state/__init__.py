"""What is remembered between two decisions. No input, no output: others report what happens.

1. `scheduler.py` hears of requests: submitted, first token, finished, failed, cancelled.
2. `cluster.py` hears of nodes (probes, GPUs, engines' own figures) and keeps a `NodeState` for each.
3. `node_state.py` keeps a node's models, runners and breakers; `model_stats.py` what was learned of a model.
4. `returns.py` and `demand.py` learn over all nodes: which prompts go on, which models are asked for.
5. `events.py` are the facts that other workers hear; `peer_requests.py` applies theirs to our picture.
"""
