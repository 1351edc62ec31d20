"""How models are called that `gpu_router` answers, on Open WebUI and on the Pipelines server."""

ROUTER = "gpu_router."  # begins their ids
