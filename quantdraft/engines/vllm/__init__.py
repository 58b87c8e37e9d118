"""vLLM as an engine: its own environment, its own server, its own counters.

Nothing of vLLM is imported here: its Python is run, and its server is asked over HTTP.
"""
