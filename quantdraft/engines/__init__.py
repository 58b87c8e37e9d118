"""Programs that run a target with a draft: our own, and engines with servers (see README.md)."""
