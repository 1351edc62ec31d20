"""What the fleet should have where: seen by what people asked for.

1. `demand` reads the router's record of chats.
2. `report` puts together what fits where, what to pull, and what one more GPU would bring.
3. `replay` plays the record again, with the router's own scheduler over the nodes of `virtual_fleet`.

No input, no output: `scripts/plan.py` asks the nodes of a `pack.yaml`, the router knows its own.
"""
