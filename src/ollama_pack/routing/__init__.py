"""Which node answers a request.

One decision, in order:

1. `dispatch/router.py` takes a chat; `dispatch/request.py` makes a `FleetRequest` of it: blocks, options.
2. `state/scheduler.py` puts it into the fair queue (`decide/fair_queue.py`), and decides after every event.
3. Its `state/cluster.py` shows the nodes as they are: a `FleetView` of frozen values, kept true by `probe/`.
4. `decide/planner.py` goes through the queue over virtual timelines (`decide/node_timeline.py`). A `Quote` is
   what a node offers to any request, a `NodeCost` what it costs this one, an `Assignment` where it goes.
5. What can begin is started: `peers/` asks other workers, `dispatch/attempt.py` sends it to the node.
6. What the node reports teaches rates and slots (`state/estimates.py`), retention and returns.

Six folders: `decide` is pure and imports none of the others; `state` remembers; `plan` plays a record of
chats again over simulated nodes; `probe` looks at nodes; `peers` talks to other workers; `dispatch` runs the
requests and ties them together.
"""
