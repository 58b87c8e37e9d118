"""A pair run in a server and counted by it, and replay held against the counters."""
