"""Where a draft is run and timed: this process (native), later a server."""
