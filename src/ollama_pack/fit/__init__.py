"""Will a model fit? How much memory it takes, in which quantization, on which node.

1. `gguf` reads the header of a GGUF file: metadata and tensors. `/api/show` of an Ollama gives the same.
2. `shapes` makes a `ModelShape` of them: the bytes of the weights, and for each layer what it caches. Of a
   model that nobody has pulled yet, `planned_shape` makes one from its parameters and its quantization.
3. `memory` computes the bytes that a shape takes with a context, a number of slots and a type of cache.
4. `learned` corrects that for one node by what its `/api/ps` reports.

All of it is pure. Nothing here knows of nodes, requests or HTTP.
"""
