"""Train a draft to be accepted: from the target's distributions, through a recipe's rounding."""
