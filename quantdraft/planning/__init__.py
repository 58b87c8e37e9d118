"""What can be said of speculation before any model is run: closed forms, and the byte model.

Everything here is a prediction, and says so. Nothing of it enters a verdict.
"""

from quantdraft.planning.curve import Curve, CurvePoint, plan_curve
from quantdraft.planning.devices import Device, device_names, load_device
from quantdraft.planning.lines import plan_lines
from quantdraft.planning.plan import Plan, PlanSettings, plan

__all__ = [
    "Curve",
    "CurvePoint",
    "Device",
    "Plan",
    "PlanSettings",
    "device_names",
    "load_device",
    "plan",
    "plan_curve",
    "plan_lines",
]
