"""The Open WebUI Ollama Pack: what its plugins are made of."""
