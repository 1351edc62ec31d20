"""Looks at the nodes, at an interval that one node's silence does not stretch.

1. `poller.py` looks at each node while somebody uses the router, and tells the router what it saw.
2. `node_watch.py` asks one node for its models, what is in its memory, and its engine's own figures. It keeps
   what is known of the node between two looks, and when it counts as gone.
3. `gpus.py` and `gpu_nvml.py` read how busy GPUs are; `catalogue.py` joins the models of all nodes.
"""
