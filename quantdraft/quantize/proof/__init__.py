"""Whether a written checkpoint is the model that its recipe promised."""
