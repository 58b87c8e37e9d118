"""The launch line of `export`, read by the parser of the vLLM that is installed."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from quantdraft.engines.engine import LaunchPair
from quantdraft.engines.registry import engine_named
from quantdraft.engines.vllm.environment import Environment
from quantdraft.record import AcceptanceRule

pytestmark = pytest.mark.engine

# The parser has moved between versions; its name has not.
PARSE = """
import importlib, json, sys
for place in ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args"):
    try:
        make = importlib.import_module(place).make_arg_parser
        break
    except ImportError:
        continue
from vllm.utils.argparse_utils import FlexibleArgumentParser
found = make(FlexibleArgumentParser()).parse_args(sys.argv[1:])
config = found.speculative_config
config = json.loads(config) if isinstance(config, str) else config
print(json.dumps({"model": found.model, "dtype": found.dtype, "config": config}))
"""


@pytest.mark.parametrize("rule", ["greedy", "rejection"])
def test_the_installed_vllm_reads_the_launch_line(vllm: Environment, rule: AcceptanceRule) -> None:
    line = engine_named("vllm").launch(
        LaunchPair("org/T", Path("/srv/my draft"), 5, "bfloat16", rule)
    )
    words = shlex.split(line)[2:]
    # The wheel's `vllm serve` takes the model first, its server by --model.
    done = subprocess.run(
        [vllm.python, "-c", PARSE, "--model", *words], capture_output=True, text=True, check=True
    )
    read = json.loads(done.stdout.splitlines()[-1])
    assert read["model"] == "org/T"
    assert read["dtype"] == "bfloat16"
    assert read["config"]["model"] == "/srv/my draft"
    assert read["config"]["num_speculative_tokens"] == 5
    assert set(read["config"]) <= set(vllm.speculative_keys)
