"""A directory for an engine, with its launch line."""
