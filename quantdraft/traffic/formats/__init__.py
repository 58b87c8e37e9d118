"""The formats that logs and prompts come in: one reader each, all into one intermediate record."""
