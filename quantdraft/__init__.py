"""quantdraft: quantize the draft of speculative decoding, and know whether it pays.

The functions are those of the commands, with the same defaults, and return the record that the
command prints. Each is imported when it is first used, so `import quantdraft` loads nothing heavy.
They raise `QuantDraftError` for what a user can mend, print nothing, and draw progress only inside
`with quantdraft.show_progress():`. `__init__.pyi` beside this file gives the types.
"""

from importlib import import_module

__version__ = "0.1.0"

_NAMES = {  # module -> what is taken from it
    "quantize.apply": ("apply",),
    "quantize.recipe": ("Recipe", "load_recipe"),
    "quantize.training.settings": ("TrainingSettings",),
    "measure.capture": ("capture",),
    "measure.settings": (
        *("CaptureSettings", "EvaluateSettings", "ModelSettings", "SharedSettings"),
        *("TimingSettings", "TrafficSettings"),
    ),
    "engines.serving_settings": ("ServingSettings",),
    "workflows.bench": ("BenchSettings", "bench"),
    "workflows.check": ("Preflight", "check"),
    "workflows.compare": ("compare",),
    "workflows.distill": ("DistillSettings", "distill"),
    "workflows.evaluate": ("evaluate",),
    "workflows.export.export": ("ExportSettings", "export"),
    "workflows.plan.plan": ("Plan", "PlanSettings", "plan"),
    "workflows.report": ("read_run",),
    "workflows.select.select": ("SelectSettings", "select"),
    "workflows.sweep.grid": ("SweepSettings",),
    "workflows.sweep.sweep": ("sweep",),
    "workflows.traffic": ("describe_traffic",),
    "record": ("Bench", "Evaluation", "Interval", "ComparedRuns", "Verdict"),
    "checkpoints.checkpoint": ("Checkpoint",),
    "traffic.contents": ("Contents",),
    "traffic.split": ("split_traffic",),
    "traffic.traffic": ("Sampling", "Traffic"),
    "common.progress": ("show_progress",),
    "errors": ("QuantDraftError",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> object:
    """Import a public name from the module that defines it. Raises AttributeError for others."""
    if name not in _HOMES:
        raise AttributeError(f"module 'quantdraft' has no attribute {name!r}")
    found = getattr(import_module(f"quantdraft.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the public names, imported or not."""
    return [*__all__, "__version__"]
