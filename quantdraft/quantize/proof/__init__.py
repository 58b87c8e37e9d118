"""Prove that a written checkpoint is what its recipe promised; `proof.prove` is the door."""
