"""Predictions of speculation before any model is run: closed forms, and the byte model.

Everything here is labelled as a prediction. None of it enters a verdict.
"""
