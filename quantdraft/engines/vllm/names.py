"""Names in a quantization config that vLLM does not match in a draft.

vLLM loads a draft under the prefix 'draft_model.' (v1/spec_decode/draft_model.py of 0.32), so that
a module's full name and a pattern from its beginning match nothing there: a layer that was kept
would be read as quantized, or the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from quantdraft.engines.findings import Draft, Finding

PREFIX = "vLLM loads a draft under the prefix 'draft_model.', where it matches nothing"
# Lists of modules that stay in floats, which these loaders compare with whole names.
EXACT_LISTS = ("ignored_layers", "modules_to_not_convert", "ignore")
WHOLE_NAMES = frozenset({"fp8", "fbgemm_fp8"})


def unmatched_names(draft: Draft) -> Iterator[Finding]:
    """Yield a refusal for each list of the draft's config with a name that matches nothing."""
    own = draft.quantization
    method = str(own.get("quant_method"))
    if method.startswith("modelopt"):
        yield from _modelopt(own)
    elif method in WHOLE_NAMES:
        names = [name for key in EXACT_LISTS for name in own.get(key) or ()]
        yield from _kept([name for name in names if not _is_no_matrix(name)], "")
    elif method == "gptq":
        yield from _kept([rule for rule in own.get("dynamic") or () if _is_anchored(rule)], "")
    else:
        yield from _targets(draft)
        ignored = [n for n in own.get("ignore") or () if n != "lm_head" and _is_exact(n)]
        yield from _kept(ignored, "re:")


def _targets(draft: Draft) -> Iterator[Finding]:
    for group in draft.groups:
        exact = [name for name in group.get("targets") or [] if _is_exact(name)]
        if exact:
            yield Finding(
                "refuse",
                f"the quantization targets {exact[0]!r}: {PREFIX}. Use a recipe that targets "
                "['Linear'] and ignores the rest.",
            )


def _kept(names: list[str], mark: str) -> Iterator[Finding]:
    """Yield a refusal for the first of the names of layers that are kept.

    mark: what stands before a pattern in this list; "": the list has no patterns
    """
    if not names:
        return
    end = names[0].removeprefix("re:").removeprefix("^")
    advice = (
        f"Write '{mark}.*{end}' in the draft's config.json."
        if mark
        else "Use a draft in which every layer is quantized, or `apply --recipe fp8`."
    )
    yield Finding(
        "refuse",
        f"the quantization ignores {names[0]!r}: {PREFIX}, and the layer would be read as "
        f"quantized. {advice}",
    )


def _modelopt(quantization: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what ModelOpt's loader does not match: it looks for parts of names, and for wildcards.

    A list of layers, each with its own algorithm, is looked up by whole names.
    """
    nested = quantization.get("quantization")
    own = {**quantization, **(nested if isinstance(nested, dict) else {})}
    if str(own.get("quant_algo")).upper() == "MIXED_PRECISION":
        layer = next(iter(own.get("quantized_layers") or ()), "none")
        yield Finding(
            "refuse",
            f"its layers have algorithms of their own (quantized_layers: {layer!r}): {PREFIX}, and "
            "the layer would be read as floats. Use a draft with one algorithm.",
        )
    kept = [*(own.get("exclude_modules") or ()), *(own.get("ignore") or ())]
    anchored = [name for name in kept if "*" in name and not name.startswith("*")]
    if anchored:
        yield Finding(
            "refuse",
            f"the quantization excludes {anchored[0]!r}: {PREFIX}, and the layer would be read as "
            f"quantized. Write '*{anchored[0]}' where the draft's configs have it.",
        )


def _is_exact(name: str) -> bool:
    """Return True for a module's full name or an anchored pattern, not for a class or 're:.*'."""
    if name.startswith("re:"):
        return not name.startswith(("re:.*", "re:(.*"))
    return "." in name or name == "lm_head"


def _is_anchored(rule: str) -> bool:
    """Return True for a rule of GPTQModel's `dynamic` that begins with a module's name."""
    return not rule.removeprefix("-:").removeprefix("+:").startswith((".*", "(.*"))


def _is_no_matrix(name: str) -> bool:
    """Return True for a name that no loader looks for among matrices: head, embedding, norm."""
    last = name.rpartition(".")[2]
    return last.startswith(("lm_head", "embed")) or last.endswith("norm")
