"""Will a model fit? How much memory it takes, in which quantization, on which node.

1. `shapes` makes a `ModelShape` of the metadata and the tensors that `/api/show` of an Ollama gives: bytes
   of the weights, and for each layer what it caches. Of a model that nobody has pulled yet, `planned_shape`
   makes one from its parameters and its quantization.
2. `memory` computes the bytes that a shape takes with a context, a number of slots and a type of cache.
3. `learned` corrects that for one node by what its `/api/ps` reports.

All of it is pure. Nothing here knows of nodes, requests or HTTP.
"""
