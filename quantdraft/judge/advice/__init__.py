"""Diagnoses: what the numbers of one evaluation point to, and what to do next. No model, no I/O.

Nothing here decides go or no-go: the verdict does. Left out: advice that no measured number bears.
"""
