"""The tensors of a checkpoint, loaded, unpacked and rounded by torch."""
