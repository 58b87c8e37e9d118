"""A sweep: its grid of jobs, and their run in this process or on a Ray cluster."""
