"""What can be said of speculation before any model is run: closed forms, and the byte model.

Everything here is a prediction, and says so. Nothing of it enters a verdict.
"""

from quantdraft.workflows.plan.curve import Curve, CurvePoint, plan_curve
from quantdraft.workflows.plan.devices import Device, device_names, load_device
from quantdraft.workflows.plan.plan import Plan, PlanSettings, plan
from quantdraft.workflows.plan.view import plan_lines

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
