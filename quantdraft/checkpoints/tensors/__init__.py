"""The tensors of a checkpoint: loaded, unpacked, rounded. Alone in `checkpoints`, it uses torch."""
