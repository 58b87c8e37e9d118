"""Who does a sweep's jobs: this process, one after another, or a Ray cluster."""
