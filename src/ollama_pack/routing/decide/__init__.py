"""Which request begins where: pure functions of a `FleetView` and a queue.

1. `fair_queue.py` orders the waiting requests between users; background calls come after people.
2. `planner.py` takes them in this order. For each it finds the nodes worth asking by the weights they hold.
3. `node_timeline.py` answers when each could begin, given those that were placed before (`Quote`).
4. `prefix.py` says how much of the prompt a node still holds; `returns.py` how likely a prefix is used again.
5. `cost.py` adds all of it up in seconds, as `policy.py` weighs it; the cheapest node is the `Assignment`.
"""
