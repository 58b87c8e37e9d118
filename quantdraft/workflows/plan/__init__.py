"""What can be said of speculation before any model is run: closed forms, and the byte model.

Everything here is a prediction, and says so. Nothing of it enters a verdict.
"""
