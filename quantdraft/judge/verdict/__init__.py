"""go, no-go or inconclusive: limits as data, checks against intervals, alarms that stop a verdict.

Knows no model and no measurement, only their numbers.
"""
