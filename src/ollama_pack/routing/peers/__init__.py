"""Several workers on the same nodes, each with a scheduler of its own.

1. A worker that decides claims the slot in the shared place before it sends (`share.py`).
2. The claim is one script inside of Redis (`scripts.py`), so a slot is never taken twice.
3. Whoever is refused learns who holds the slot, and its request waits again.
4. What happens to requests is told to all (`messages.py`): each worker keeps its own picture of the nodes.
5. `redis.py` carries both. Without a connection each worker goes on alone, and joins again later.
"""
