"""The package's own engine: a model run in this process by kernels in its own format."""
