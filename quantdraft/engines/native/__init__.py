"""The native engine: runs a model in this process with kernels in the checkpoint's own format."""
