"""Runs requests: from the chat's body to the last chunk.

1. `router.py` takes a chat in (`pending_chat.py`), lets the scheduler decide and waits for its node.
2. `attempt.py` sends it to one node, and watches for silence (`hang_delay.py`).
3. A node that fails before the first token is replaced: the request waits again, without that node.
4. `durations.py` turns the figures of the last chunk into what the scheduler learns from.
5. `explain.py`, `counts.py` and `report.py` say why, how often and how it stands.
"""
