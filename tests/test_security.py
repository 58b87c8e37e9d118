"""What SECURITY.md promises: files of strangers run nothing, reach nothing and stay where they lie.

Fuzzing of every reader is `tests/tools/test_fuzz.py`; that servers of ours listen on the loopback
and end with their owner is in `tests/engines/test_vllm_server.py`; that a recipe alone downloads no
data set, in `tests/quantize/test_calibration.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from click.testing import CliRunner

from quantdraft import cli
from quantdraft.checkpoints.checkpoint import open_checkpoint
from quantdraft.checkpoints.links import place_weights, require_own_files
from quantdraft.checkpoints.tensors.loading import (
    load_config,
    load_model,
    load_tokenizer,
    resolve_model,
)
from quantdraft.checkpoints.weights import read_header, read_tensors, weight_files
from quantdraft.common.documents import MAX_YAML_BYTES, parse_json, parse_yaml
from quantdraft.engines.llamacpp.server import PASSED_ON as LLAMACPP_PASSED_ON
from quantdraft.engines.process import free_port
from quantdraft.engines.vllm.client import VllmClient
from quantdraft.engines.vllm.environment import CPU_REQUIREMENT, CUDA_REQUIREMENT, Environment
from quantdraft.engines.vllm.server import vllm_variables
from quantdraft.engines.vllm.settings import PASSED_ON as VLLM_PASSED_ON
from quantdraft.engines.vllm.settings import require_known_keys, require_users_keys
from quantdraft.errors import CheckpointError, EngineError, OptionError, QuantDraftError, one_line
from quantdraft.judge.verdict.policy import load_policy
from quantdraft.measure.models import source_of
from quantdraft.quantize.recipe import load_recipe
from quantdraft.record.provenance import command_line, environment
from quantdraft.report.sections.record import provenance_section
from quantdraft.report.views import html
from quantdraft.traffic.templates import chat_text
from quantdraft.traffic.traffic import read_traffic
from tests.conftest import Pair
from tests.example_evaluation import evaluation
from tests.pages import document
from tests.stored import LLAMA_CONFIG, write_checkpoint, write_safetensors

# Runs commands, up to one that fails; every attempt to reach another machine is told, and fails.
NO_NETWORK = """
import json, socket, sys
def refuse(*args, **kwargs):
    print('NETWORK', args[:2], file=sys.stderr, flush=True)
    raise OSError('no network here')
class Closed(socket.socket):
    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            refuse('connect', address)
        return super().connect(address)
socket.socket = Closed
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
from quantdraft.cli import main
for arguments in json.loads(sys.argv[1]):
    main(arguments, standalone_mode=False)
"""


def quantdraft(*commands: tuple[str, ...], **variables: str) -> subprocess.CompletedProcess[str]:
    """Commands with the network patched away, and no word that the Hub is offline."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", NO_NETWORK, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
        env={**kept, **variables},
        timeout=300,
    )


def copied(source: Path, directory: Path, **config: Any) -> Path:
    """A model directory with more in its config.json."""
    shutil.copytree(source, directory)
    plain = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(plain | config))
    return directory


# Pickles


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "a.ckpt", "a.pkl"])
def test_pickles_are_refused_with_the_way_to_convert(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_CONFIG))
    (tmp_path / name).write_bytes(b"cposix\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match=rf"{name}.*safe_serialization=True"):
        open_checkpoint(tmp_path)


def test_nothing_in_the_package_unpickles():
    root = Path(cli.__file__).parent.parent
    for path in root.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for call in ("pickle.load", "torch.load(", "allow_pickle=True", "joblib", "yaml.load("):
            assert call not in text, f"{path}: {call}"


# Code of a checkpoint, of a template, of a recipe


def test_code_of_a_checkpoint_is_never_run(tiny_pair: Pair, tmp_path):
    marker = tmp_path / "ran"
    hostile = copied(
        tiny_pair.draft,
        tmp_path / "hostile",
        model_type="mine",
        auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"},
    )
    (hostile / "mine.py").write_text(f"open({str(marker)!r}, 'w')\n")
    with pytest.raises(CheckpointError, match=r"code of its own .* not run"):
        load_config(hostile)
    done = quantdraft(("check", "--target", str(tiny_pair.target), "--draft", str(hostile)))
    assert "Traceback" not in done.stderr
    assert not marker.exists()


def test_remote_code_runs_by_its_flag_alone_and_the_record_says_so(tiny_pair: Pair, tmp_path):
    hostile = copied(
        tiny_pair.target,
        tmp_path / "custom",
        model_type="mine",
        auto_map={"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"},
    )
    (hostile / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class Mine(LlamaForCausalLM):\n    config_class = MineConfig\n"
    )
    given = ["capture", "-t", str(hostile), "-p", str(tiny_pair.prompts), "--limit", "1"]
    given += ["--max-new-tokens", "2", "-o", str(tmp_path / "t.jsonl")]
    refused = CliRunner().invoke(cli.main, given)
    assert (refused.exit_code, refused.output.count("\n")) == (1, 1)
    assert "--trust-remote-code" in refused.output
    done = CliRunner().invoke(cli.main, [*given, "--trust-remote-code"])
    assert done.exit_code == 0, done.output
    assert read_traffic(tmp_path / "t.jsonl").target["trust_remote_code"] is True


def test_the_report_says_that_code_of_a_checkpoint_was_run():
    target = {"name": "org/target", "trust_remote_code": True}
    made = evaluation()
    traffic = made.provenance["traffic"] | {"target": target}
    section = provenance_section(replace(made, provenance=made.provenance | {"traffic": traffic}))
    (table,) = section.blocks
    assert ("traffic.target.trust_remote_code", "True") in table.rows


def test_attention_that_a_config_names_is_not_fetched(tiny_pair: Pair, tmp_path):
    import torch

    for name in ("evil/kernel", "flash_attention_2"):
        hostile = copied(tiny_pair.draft, tmp_path / name, attn_implementation=name)
        assert "/" not in str(load_config(hostile)._attn_implementation)
        model = load_model(hostile, torch.float32, torch.device("cpu"))
        assert model.config._attn_implementation in {"sdpa", "eager"}


def test_an_adapter_does_not_replace_the_model(tiny_pair: Pair, tmp_path):
    hostile = copied(tiny_pair.draft, tmp_path / "adapter")
    (hostile / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        open_checkpoint(hostile)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for x in range(999999999) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{% if",
    ],
)
def test_chat_templates_stay_in_their_sandbox(tiny_pair: Pair, template):
    tokenizer = load_tokenizer(tiny_pair.draft)
    tokenizer.chat_template = template
    with pytest.raises(QuantDraftError, match="chat template refuses a chat") as caught:
        chat_text([{"role": "user", "content": "{{ 7 * 7 }}"}], tokenizer)
    assert "\n" not in str(caught.value)


def test_a_recipe_names_no_modifier_that_runs_its_text(tmp_path):
    path = tmp_path / "mine.yaml"
    scheduler = "calc(__import__('os').system('true'))"
    plain = {"name": "mine", "summary": "x", "backend": "llmcompressor"}
    plain["modifiers"] = {"MagnitudePruningModifier": {"update_scheduler": scheduler}}
    path.write_text(json.dumps(plain))
    with pytest.raises(QuantDraftError, match="MagnitudePruningModifier"):
        load_recipe(str(path))


def test_a_launch_script_stays_what_it_is(tmp_path):
    checkpoint = write_checkpoint(
        tmp_path, config={**LLAMA_CONFIG, "dtype": "float32); import os; os.system('true')#"}
    )
    with pytest.raises(CheckpointError, match="dtype"):
        open_checkpoint(checkpoint)


# YAML and JSON


@pytest.mark.parametrize("load", [load_recipe, lambda path: load_policy(Path(path))])
@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",  # a billion laughs
        "!!python/object/apply:os.system ['true']",
        "name: !!timestamp x",
        "[" * 2000,
        "1" * 5000,
        "x" * (MAX_YAML_BYTES + 1),
        "? [a]\n: b\n",
        "\x07",
    ],
)
def test_hostile_yaml_is_refused_in_one_line(tmp_path, load, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(QuantDraftError) as caught:
        load(str(path))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "deep"),
        ("[" * 65 + "]" * 65, "deep"),
        ("1" * 5000, "digits"),
        ('"\\ud800"', "surrogate"),
        ('{"a": 1e999}', "inf"),
        ('{"a": NaN}', "nan"),
        ('{"a": [1' + "0" * 400 + "]}", "bits"),
        ('{"a": 1, "a": 2}', "twice"),
    ],
)
def test_hostile_json_is_a_value_error_of_one_line(text, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        parse_json(text, is_finite=True, is_unique=True)
    assert "\n" not in str(caught.value)


def test_whole_pairs_of_surrogates_are_characters():
    assert parse_json('"\\ud83d\\ude00"') == "\U0001f600"
    assert parse_yaml("a: [1, {b: null}]") == {"a": [1, {"b": None}]}


def test_an_error_is_one_line_without_controls_whatever_it_quotes():
    hostile = "a\nb\x1b[2Jc\u202egnp.\ud800" + "x" * 10_000
    shown = str(CheckpointError(hostile))
    assert shown.isprintable()
    assert shown.startswith("a b\\x1b[2Jc\\u202egnp.\\ud800")
    assert len(shown) == 4000
    assert one_line("plain, é, 日本") == "plain, é, 日本"


# Safetensors


def header_file(path: Path, header: str, num_bytes: int, told: int | None = None) -> Path:
    raw = header.encode()
    size = len(raw) if told is None else told
    path.write_bytes(size.to_bytes(8, "little") + raw + bytes(num_bytes))
    return path


ENTRY = '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'


@pytest.mark.parametrize(
    ("header", "num_bytes", "reason"),
    [
        (f'{{"a": {ENTRY}, "a": {ENTRY}}}', 8, "twice"),
        (f'{{"a": {ENTRY}, "b": {ENTRY}}}', 8, "overlaps 'a'"),
        ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}', 16, "leaves a gap"),
        ('{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}', 8, "needs 12"),
        ('{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, -8]}}', 8, "no dtype, shape"),
        ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}', 8, "takes -8"),
        ('{"a": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}}', 8, "no dtype, shape"),
        ('{"a": {"dtype": "F32", "shape": [1e99], "data_offsets": [0, 8]}}', 8, "no dtype, shape"),
        ('{"a": {"dtype": "object", "shape": [2], "data_offsets": [0, 8]}}', 8, "unknown type"),
        ('{"a": 1}', 0, "no dtype, shape"),
        ('{"__metadata__": 1}', 0, "__metadata__"),
        (f'{{"a": {ENTRY}}}', 7, "truncated"),
        (f'{{"a": {ENTRY}}}', 9, "longer"),
        ("[" * 10_000, 0, "deep"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header, num_bytes, reason):
    with pytest.raises(CheckpointError, match=reason):
        read_header(header_file(tmp_path / "model.safetensors", header, num_bytes))


@pytest.mark.parametrize("told", [2**63, 2**64 - 1, 100_000_001, 500])
def test_a_header_longer_than_its_file_is_not_read(tmp_path, told):
    file = header_file(tmp_path / "model.safetensors", f'{{"a": {ENTRY}}}', 0, told)
    with pytest.raises(CheckpointError, match="truncated or not safetensors"):
        read_header(file)


# Paths


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "..", "a/b.safetensors", "x\0", 7, "n" * 300]
)
def test_an_index_names_no_file_outside_its_directory(tmp_path, name):
    write_safetensors(tmp_path / "outside.safetensors", {"a": ("F32", (2,))})
    directory = write_checkpoint(tmp_path / "model")
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError) as caught:
        weight_files(directory)
    assert str(caught.value).isprintable()
    with pytest.raises(CheckpointError):
        read_tensors(directory)


def test_links_that_lead_out_of_a_model_are_not_copied(tiny_pair: Pair, tmp_path):
    secret = tmp_path / "id_rsa"
    secret.write_text("PRIVATE KEY")
    for name in ("LICENSE", "tokenizer.model"):
        hostile = copied(tiny_pair.draft, tmp_path / name)
        (hostile / name).symlink_to(secret)
        out = tmp_path / f"out-{name}"
        applied = ["apply", "-r", "identity", "-d", str(hostile), "-o", str(out)]
        exported = ["export", str(hostile), "-e", "vllm", "-t", "org/t", "-o", str(out)]
        for given in (applied, exported):
            done = CliRunner().invoke(cli.main, given)
            assert (done.exit_code, done.output.count("\n")) == (1, 1)
            assert "outside the model's directory" in done.output
            assert not out.exists()


def test_the_hubs_own_links_and_weights_elsewhere_are_followed(tmp_path):
    blobs = tmp_path / "models--o--n" / "blobs"
    snapshot = tmp_path / "models--o--n" / "snapshots" / "abc"
    for directory in (blobs, snapshot):
        directory.mkdir(parents=True)
    (blobs / "1").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/1")
    elsewhere = tmp_path / "disk.safetensors"
    write_safetensors(elsewhere, {"a": ("F32", (2,))})
    (snapshot / "model.safetensors").symlink_to(elsewhere)
    (snapshot / "config.json").write_text("{}")
    require_own_files(snapshot)
    elsewhere.write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    with pytest.raises(CheckpointError, match="not safetensors"):
        require_own_files(snapshot)


def test_a_stray_link_named_as_weights_is_not_followed(tmp_path):
    secret = tmp_path / "id_rsa"
    secret.write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    directory = write_checkpoint(tmp_path / "model")
    (directory / "old.safetensors").symlink_to(secret)
    with pytest.raises(CheckpointError, match="outside the model's directory"):
        require_own_files(directory)


def test_weights_are_never_hard_linked_through_a_link(tmp_path):
    write_safetensors(tmp_path / "disk.safetensors", {"a": ("F32", (2,))})
    link = tmp_path / "model.safetensors"
    link.symlink_to(tmp_path / "disk.safetensors")
    place_weights(link, tmp_path / "copied.safetensors")
    assert (tmp_path / "disk.safetensors").stat().st_nlink == 1
    assert (tmp_path / "copied.safetensors").read_bytes() == link.read_bytes()
    place_weights(tmp_path / "disk.safetensors", tmp_path / "linked.safetensors")
    assert (tmp_path / "disk.safetensors").stat().st_nlink == 2


# Network


@pytest.mark.slow
def test_local_models_are_checked_and_quantized_without_a_network(tiny_pair: Pair, tmp_path):
    target, draft = ("--target", str(tiny_pair.target)), ("--draft", str(tiny_pair.draft))
    out, run, served = (str(tmp_path / name) for name in ("out", "run", "served"))
    quick = ("-k", "2", "--no-latency", "--live-prompts", "0", "--max-new-tokens", "8")
    done = quantdraft(
        ("check", *target, *draft),
        ("apply", "-r", "int8", *draft, "-o", out),
        ("evaluate", out, *target, "--prompts", str(tiny_pair.prompts), "-o", run, *quick),
        ("export", out, "-e", "vllm", *target, "--run", run, "-o", served),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "served" / "launch.sh").is_file()
    assert "NETWORK" not in done.stderr


def test_the_hub_is_asked_for_an_id_and_never_where_it_is_offline(tmp_path):
    given = ("check", "--target", "owner/target", "--draft", "owner/draft")
    alone = {"HF_HOME": str(tmp_path)}
    asked = quantdraft(given, **alone)
    assert "NETWORK" in asked.stderr  # the patch is in the way of the client
    offline = quantdraft(given, **alone, HF_HUB_OFFLINE="1", HF_TOKEN="hf_abcdefghijklmnop")
    assert "NETWORK" not in offline.stderr
    for done in (asked, offline):
        assert done.returncode == 1
        assert "Error: model 'owner/target' is neither a directory nor available" in done.stderr
        assert "hf_abcdefghijklmnop" not in done.stdout + done.stderr


def test_a_checkpoint_names_no_model_to_fetch(tiny_pair: Pair, tmp_path):
    hostile = copied(tiny_pair.draft, tmp_path / "hostile")
    manifest = {"schema_version": 1, "draft": {"name": "evil/model", "path": "/nowhere"}}
    (hostile / "quantdraft.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="Give --baseline"):
        source_of(open_checkpoint(hostile))


def test_names_that_look_like_paths_reach_no_hub(monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")  # where no file happens to have one of the names

    def unasked(*_args: object, **_options: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unasked)
    for name in ("./a/b", "/a/b", "../b", "~/b", "a", "a/b/c"):
        with pytest.raises(CheckpointError, match="no model directory"):
            resolve_model(name)


# Secrets


@pytest.mark.parametrize("args", ["--engine-args", "--vllm-args"])
def test_a_command_is_recorded_without_what_gives_access(args):
    shown = command_line(
        [
            *("evaluate", "out", "--engine-url", "baseline=http://me:s3cret@host:8000/v1"),
            *(args, "--api-key", args, "s3cret", f"{args}=--hf-token=s3cret"),
            *("--traffic", "hf_s3cretabcdefgh", "--max-new-tokens", "4"),
        ]
    )
    assert "s3cret" not in shown
    assert "baseline=http://host:8000/v1" in shown
    assert shown.endswith("--max-new-tokens 4")


def test_the_environment_is_recorded_without_its_variables(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_s3cretabcdefgh")
    assert "s3cret" not in json.dumps(environment("cpu"))


def test_a_password_in_a_url_is_sent_and_never_shown():
    client = VllmClient(f"http://me:s3cret%21@127.0.0.1:{free_port()}/base/")
    assert client.url.startswith("http://127.0.0.1:")
    assert client.http._credentials() == {"Authorization": "Basic bWU6czNjcmV0IQ=="}
    with pytest.raises(EngineError) as caught:
        client.version()
    assert "s3cret" not in str(caught.value)
    with pytest.raises(EngineError) as caught:
        VllmClient("ftp://me:s3cret@host")
    assert "s3cret" not in str(caught.value)


def test_no_text_of_a_record_becomes_markup():
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    page = html.render(document(evaluation(hostile)))
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "default-src 'none'" in page


# Servers of ours


def test_a_server_stays_on_this_machine_whatever_the_environment_says(monkeypatch, tmp_path):
    for name, value in {
        "HF_TOKEN": "hf_s3cret",
        "HUGGING_FACE_HUB_TOKEN": "hf_s3cret",
        "VLLM_API_KEY": "s3cret",
        "VLLM_HOST_IP": "10.0.0.1",
        "HF_HUB_OFFLINE": "0",
    }.items():
        monkeypatch.setenv(name, value)
    found = vllm_variables(tmp_path, "cpu")
    assert (found["VLLM_HOST_IP"], found["HF_HUB_OFFLINE"]) == ("127.0.0.1", "1")
    assert "s3cret" not in " ".join(found.values())


@pytest.mark.parametrize(
    "argument",
    ["--host", "--host=0.0.0.0", "--hos", "--port=1", "--api-key", "--api_key=x", "--uds"],
)
def test_arguments_that_open_a_server_are_refused(argument):
    for passed_on in (VLLM_PASSED_ON, LLAMACPP_PASSED_ON):
        with pytest.raises(OptionError, match="loopback alone"):
            passed_on.require(["--threads", "2", argument][-1:])


@pytest.mark.parametrize(
    "argument",
    [
        *("--trust-remote-code", "--trust-rem", "--trust_remote_code", "--t", "--middleware=a.b"),
        *("--served-model-name", "--served", "--config=x.yaml", "--load-format", "--load_f=pt"),
        *("--hf-overrides", "--hf-overrides.a=1", "--worker-cls", "--worker-extension-cls=a.B"),
        *("--scheduler-cls", "--logits-processors", "--reasoning-parser-plugin", "--model", "-O"),
        *(
            "--tool-parser-plugin",
            "--speculative-config",
            "-sc",
            "-cc",
            "-cc.backend=a.b",
            "-O.x=1",
        ),
        *("--compilation-config", "--kv-transfer-config", "--otlp-traces-endpoint", "-dpa", "-n"),
        *("@file", "--", "--enforce", "--log-config-file", "--lora-modules", "--generation-config"),
        *(
            "--enable-prefix-caching",
            "--dtype",
            "--tokenizer",
            "--download-dir",
            "-O4",
            "-O=3",
            "-O.x=1",
            "",
        ),
    ],
)
def test_arguments_that_load_or_run_something_else_are_refused(argument):
    with pytest.raises(OptionError, match="--engine-args"):
        VLLM_PASSED_ON.require(["--max-num-seqs=8", argument])


@pytest.mark.parametrize(
    "argument",
    [
        *("-m", "--model", "-md", "--model-url", "-hf", "--hf-repo", "--rpc", "--lora", "--tools"),
        *("--api-key-file", "--path", "--slot-save-path", "--chat-template-file", "-np", "-a"),
        *("--spec-draft-n-max", "--mmproj", "--models-dir", "--cache-ram", "--override-kv", "-dr"),
    ],
)
def test_llamacpp_is_given_no_other_model_and_no_door(argument):
    with pytest.raises(OptionError, match="--engine-args"):
        LLAMACPP_PASSED_ON.require(["-t", "2", argument, "x"])


def test_a_value_without_an_option_could_name_a_model():
    for given in (["evil/model"], ["--enforce-eager=1", "evil/model"], ["-tp", "2", "evil/model"]):
        with pytest.raises(OptionError, match="stands after no option"):
            VLLM_PASSED_ON.require(given)


def test_other_arguments_and_values_are_left_alone():
    VLLM_PASSED_ON.require(["--max-num-seqs", "8", "-O3", "--max_num_seqs=4", "-tp", "2", "-tp=2"])
    VLLM_PASSED_ON.require(["--cudagraph-capture-sizes", "1", "2", "4", "--no-async-scheduling"])
    LLAMACPP_PASSED_ON.require(["-t", "2", "--threads-batch", "4", "-fa", "on", "--no-mmap"])


def test_settings_of_an_engine_are_recorded_without_secrets(monkeypatch):
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "TRITON")
    monkeypatch.setenv("VLLM_S3_ACCESS_KEY", "s3cret")
    found = VLLM_PASSED_ON.recorded_variables()
    assert found["VLLM_ATTENTION_BACKEND"] == "TRITON"
    assert "s3cret" not in str(found)


def test_a_draft_is_not_replaced_by_a_setting_of_the_engine(tmp_path):
    vllm = Environment("python", "0.32.0", "cpu", ("method", "model"))
    with pytest.raises(OptionError, match="--engine-spec model: the draft is the candidate"):
        require_users_keys(["model"])
    require_users_keys(["method"])
    require_known_keys(["method"], vllm)


def test_no_plugin_is_loaded_into_a_server(monkeypatch, tmp_path):
    for name in ("VLLM_PLUGINS", "VLLM_MODEL_REDIRECT_PATH", "VLLM_SERVER_DEV_MODE"):
        monkeypatch.setenv(name, "evil")
    assert vllm_variables(tmp_path, "cuda")["VLLM_PLUGINS"] == ""
    assert "evil" not in vllm_variables(tmp_path, "xpu").values()


def test_what_is_installed_is_pinned():
    assert CUDA_REQUIREMENT.partition("==")[2] == CPU_REQUIREMENT.partition("==")[2] != ""


def test_ports_are_given_once():
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
