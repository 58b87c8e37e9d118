"""Times of draft and target steps, over batch and context."""
