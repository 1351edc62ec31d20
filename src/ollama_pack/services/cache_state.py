"""What `response_cache_filter` leaves for `response_cache_replay`: neither file can import the other."""

# Key in Open WebUI's `__metadata__`, which lives as long as the request. There stand: the `rounds` of it so
# far, and of the last one that the cache is for the `model` that was asked, the id of the `filter`, and the
# `ticket` that it gives the answer for. `cached`: nothing is generated for it, which usage_budgets looks at.
STATE = "ollama_pack_cache"
