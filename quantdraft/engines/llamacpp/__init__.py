"""llama.cpp as an engine: its own `llama-server`, its own counters, GGUF files alone.

Nothing of llama.cpp is imported or linked: its server is started and asked over HTTP.
"""
