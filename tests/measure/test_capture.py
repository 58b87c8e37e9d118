"""Captured responses against transformers' own generation, a teacher-forced pass, and a kill."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from quantdraft.checkpoints.checkpoint import end_token_ids, open_checkpoint
from quantdraft.engines.kernels import KERNELS
from quantdraft.engines.native.model import EXACT_KERNELS, NativeModel, load_native
from quantdraft.engines.native.session import Session
from quantdraft.engines.native.weight_sources import stored_weights
from quantdraft.errors import (
    NoKernelError,
    OptionError,
    OutputError,
    OutputExistsError,
    TrafficError,
    UndefinedMetricError,
)
from quantdraft.measure import answer_file, continuous_batch
from quantdraft.measure import answerers as answering
from quantdraft.measure import capture as capturing
from quantdraft.measure.capture import capture
from quantdraft.measure.continuous_batch import generate_in_turns
from quantdraft.measure.generation import generate
from quantdraft.measure.sampling import processed_logprobs
from quantdraft.measure.settings import CaptureSettings
from quantdraft.record.choices import Mode
from quantdraft.traffic.prompts import read_prompt_file
from quantdraft.traffic.traffic import Sampling, Traffic, read_traffic

END = 0
MAX_POSITIONS = 96
TEXTS = ("def f(x):", "a", "import os\nimport sys\n", "for i in range(10): pass", "\n", "class A")
CPU = torch.device("cpu")
GENERATORS = ("generate", "generate_in_turns")
GREEDY, WARM = Sampling(), Sampling(temperature=0.8, top_p=0.9, top_k=50, seed=3)
CHAT_TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers over 300 byte-level tokens; id 0 ends a response."""
    path = tmp_path_factory.mktemp("target")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=1,
        eos_token_id=END,
        initializer_range=0.2,  # peaked enough for responses that are no uniform noise
    )
    LlamaForCausalLM(config).save_pretrained(path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: id_ for id_, token in enumerate(["<end>", "<begin>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<end>",
        bos_token="<begin>",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(target: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(target, dtype=torch.float32).eval()


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    return path


def run(target: Path, prompts: Path, output: Path, **settings: Any) -> Traffic:
    settings = {"sampling": GREEDY, "max_new_tokens": 24, "dtype": "float32"} | settings
    return capture(CaptureSettings(str(target), prompts, output, device="cpu", **settings))


def test_greedy_tokens_are_those_of_transformers_own_unbatched_generation(
    target: Path, prompts: Path, model: Any, tmp_path: Path
) -> None:
    traffic = run(target, prompts, tmp_path / "t.jsonl", batch_size=4)
    assert len(traffic.responses) == len(TEXTS)
    for response in traffic.responses:
        ids = torch.tensor([response.prompt_token_ids])
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24
        )
        assert response.response_token_ids == tuple(found[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("sampling", [GREEDY, WARM])
def test_logprobs_are_those_of_a_teacher_forced_pass(
    target: Path, prompts: Path, model: Any, tmp_path: Path, sampling: Sampling
) -> None:
    traffic = run(target, prompts, tmp_path / "t.jsonl", sampling=sampling)
    for response in traffic.responses:
        ids = torch.tensor([response.prompt_token_ids + response.response_token_ids])
        with torch.inference_mode():
            logits = model(ids).logits[0, len(response.prompt_token_ids) - 1 : -1]
        expected = processed_logprobs(logits, sampling)
        picked = expected.gather(1, torch.tensor(response.response_token_ids)[:, None])[:, 0]
        assert response.logprobs == pytest.approx(picked.tolist(), abs=1e-4)


@pytest.mark.parametrize("sampling", [GREEDY, WARM])
def test_tokens_do_not_depend_on_the_batch(
    target: Path, prompts: Path, tmp_path: Path, sampling: Sampling
) -> None:
    one = run(target, prompts, tmp_path / "1.jsonl", sampling=sampling, batch_size=1)
    four = run(target, prompts, tmp_path / "4.jsonl", sampling=sampling, batch_size=4)
    first_two = run(target, prompts, tmp_path / "2.jsonl", sampling=sampling, limit=2)
    tokens = [response.response_token_ids for response in one.responses]
    assert tokens == [response.response_token_ids for response in four.responses]
    assert tokens[:2] == [response.response_token_ids for response in first_two.responses]
    for ours, theirs in zip(one.responses, four.responses, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


def test_another_seed_draws_other_tokens(target: Path, prompts: Path, tmp_path: Path) -> None:
    found = {
        run(target, prompts, tmp_path / f"{seed}", sampling=Sampling(1.0, seed=seed)).responses
        for seed in range(3)
    }
    assert len(found) == 3


def test_first_token_is_drawn_with_the_processed_frequencies(model: Any) -> None:
    trials, prompt = 4000, [1, 40, 41, 42]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt])).logits[0, -1]
    probs = processed_logprobs(logits, WARM).exp()
    counts = torch.zeros(300)
    for start in range(0, trials, 500):
        for answer in generate(model, [prompt] * 500, WARM, 1, range(start, start + 500)):
            counts[answer.token_ids[0]] += 1
    assert counts[probs == 0].sum() == 0
    likely = [token for token in range(300) if probs[token] * trials > 20]
    assert len(likely) >= 5
    for token in likely:
        p = float(probs[token])
        standard_error = math.sqrt(p * (1 - p) / trials)
        assert abs(float(counts[token]) / trials - p) <= 4 * standard_error


def test_response_ends_with_the_first_end_token(model: Any) -> None:
    sampling = Sampling(temperature=2.0, seed=1)
    prompts = [[1, 40 + i] for i in range(64)]
    answers = generate(model, prompts, sampling, 64, range(64))
    ended = [answer for answer in answers if END in answer.token_ids]
    assert ended
    assert all(answer.token_ids.index(END) == len(answer.token_ids) - 1 for answer in ended)
    assert all(len(answer.token_ids) == 64 for answer in answers if answer not in ended)
    assert all(len(answer.logprobs) == len(answer.token_ids) for answer in answers)


def test_every_end_token_of_the_generation_config_ends_a_response(model: Any) -> None:
    kept = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = [5, 7]
        assert end_token_ids(model) == (5, 7)
        model.generation_config.eos_token_id = None
        assert end_token_ids(model) == (END,)  # the config's
    finally:
        model.generation_config.eos_token_id = kept


@contextlib.contextmanager
def _killed_after(num_batches: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupt the block when `num_batches` batches are generated."""
    left = [num_batches]

    def dying(generates: Any) -> Any:
        def run(*arguments: Any, **others: Any) -> Any:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return generates(*arguments, **others)

        return run

    with monkeypatch.context() as patch:
        for name in GENERATORS:
            patch.setattr(answering, name, dying(getattr(answering, name)))
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.fixture(params=["native", "transformers"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let one engine answer, in batches that are kept one by one."""
    monkeypatch.setattr(answering, "TURNS", 1)
    if request.param == "transformers":
        monkeypatch.setattr(answering, "decoder_fault", lambda source: "the test says so")
    return str(request.param)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("torn", ["", '{"prompt_id": "line-5", "prompt_tok', "whole line"])
def test_resumed_run_writes_the_file_of_an_uninterrupted_one(
    target: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: str
) -> None:
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    partial = tmp_path / "resumed.jsonl.partial"
    settings: dict[str, Any] = {"sampling": WARM, "batch_size": 2}
    run(target, prompts, whole, **settings)
    with _killed_after(2, monkeypatch):
        run(target, prompts, resumed, **settings)
    assert not resumed.exists()
    assert len(partial.read_text().splitlines()) == 1 + 4
    if torn == "whole line":  # half a batch: both prompts of it are asked again
        torn = partial.read_text().splitlines(keepends=True)[-1]
    with open(partial, "a") as file:
        file.write(torn)
    asked = []

    def noting(generates: Any) -> Any:
        return lambda *a, **others: asked.append(len(a[1])) or generates(*a, **others)

    for name in GENERATORS:
        monkeypatch.setattr(answering, name, noting(getattr(answering, name)))
    run(target, prompts, resumed, **settings)
    assert asked == [2]
    assert resumed.read_bytes() == whole.read_bytes()
    assert not partial.exists()


def test_the_native_engine_writes_the_file_that_transformers_modules_write(
    target: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sampling in (GREEDY, WARM):
        files = [tmp_path / f"{name}-{sampling.temperature}" for name in ("native", "library")]
        native = run(target, prompts, files[0], sampling=sampling, batch_size=4)
        with monkeypatch.context() as patch:
            patch.setattr(answering, "decoder_fault", lambda source: "the test says so")
            patch.setattr(answering, "generate_in_turns", None)
            library = run(target, prompts, files[1], sampling=sampling, batch_size=4)
        assert native.target == library.target
        for ours, theirs in zip(native.responses, library.responses, strict=True):
            assert ours.response_token_ids == theirs.response_token_ids
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


@pytest.mark.parametrize("mode", ["eager", "fused"])
def test_a_row_that_ends_takes_the_next_prompt(
    target: Path, model: Any, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(temperature=2.0, seed=1)
    ends = tuple(range(30))  # so many that answers are of many lengths
    monkeypatch.setattr(model.generation_config, "eos_token_id", list(ends))
    prompts = [[1, *range(40, 40 + 3 * length)] for length in (1, 12, 5, 2, 9, 3, 20)]
    loaded = load_native(stored_weights(open_checkpoint(target)), torch.float32, CPU)
    native = replace(loaded, end_token_ids=ends)
    told: list[int] = []
    found = generate_in_turns(
        native, prompts, sampling, 24, range(7), batch_size=3, mode=mode, progress=told.append
    )
    alone = [
        generate(model, [prompt], sampling, 24, [seed])[0] for seed, prompt in enumerate(prompts)
    ]
    assert len({len(answer.token_ids) for answer in alone}) > 2
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in alone]
    assert sum(told) == 7


def test_a_long_prompt_is_read_in_pieces(
    target: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[1, *range(40, 90)], [1, 50]]
    native = load_native(stored_weights(open_checkpoint(target)), torch.float32, CPU)
    monkeypatch.setattr(continuous_batch, "PREFILL_CHUNK", 7)
    found = generate_in_turns(native, prompts, GREEDY, 8, [0, 1], batch_size=2)
    assert [answer.token_ids for answer in found] == [
        generate(model, [prompt], GREEDY, 8, [0])[0].token_ids for prompt in prompts
    ]


@pytest.mark.parametrize("mode", ["eager", "fused"])
def test_what_prompts_begin_with_is_read_once_while_a_row_holds_it(
    target: Path, model: Any, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, native = [1, *range(40, 70)], _native(target)
    first_turn = [*system, 80, 81, 82]
    answer = generate(model, [first_turn], GREEDY, 8, [0])[0].token_ids
    prompts = [
        [*system, 90, 91],
        [*first_turn, *answer, 83, 84],  # the next turn of the conversation
        first_turn,
        [*system, 92],
        [5, 6, 7],
        [*system, 92],
    ]
    read: list[int] = []
    forward = Session.forward

    def counting(session: Session, token_ids: torch.Tensor, *given: Any) -> torch.Tensor:
        if session.batch_size == 1:
            read.append(token_ids.shape[1])
        return forward(session, token_ids, *given)

    monkeypatch.setattr(Session, "forward", counting)
    found = generate_in_turns(native, prompts, GREEDY, 8, range(6), batch_size=3, mode=mode)
    alone = [generate(model, [prompt], GREEDY, 8, [0])[0] for prompt in prompts]
    assert [each.token_ids for each in found] == [each.token_ids for each in alone]
    for ours, theirs in zip(found, alone, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    assert sum(map(len, prompts)) > 160
    assert read[0] == len(prompts[1])  # the longest first, whole
    assert sum(read[1:]) == 1 + 2 + 1 + 1 + 3  # the last token is read in any case


def test_rows_without_a_given_number_are_as_many_as_memory_holds(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native, row = _native(target), 2 * 2 * 2 * 16 * 100 * 4  # of 100 slots
    for free, expected in ((None, 32), (400 * row, 32), (80 * row, 20), (row, 8)):
        monkeypatch.setattr(continuous_batch, "available_bytes", lambda device, free=free: free)
        assert continuous_batch.usual_rows(native, 100) == expected


def test_a_target_whose_kernels_would_round_is_loaded_once(
    target: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantized(checkpoint: Any) -> Any:
        return SimpleNamespace(formats={"model.layers.0.mlp.down_proj": "int4"})

    monkeypatch.setattr(answering, "stored_weights", quantized)
    monkeypatch.setattr(answering, "load_native", None)  # it would be called
    assert run(target, prompts, tmp_path / "t.jsonl", limit=1).responses


def test_every_float32_product_of_a_cpu_is_exact() -> None:
    """Else a target would be loaded twice: by `load_native`, and as transformers' modules."""
    for kind in KERNELS["cpu", "dense"]:
        for stored in (torch.float32, torch.bfloat16):
            with contextlib.suppress(ValueError, NoKernelError):
                assert kind(torch.zeros(64, 64, dtype=stored), None, torch.float32).kernel in (
                    EXACT_KERNELS
                )


def _native(target: Path) -> NativeModel:
    return load_native(stored_weights(open_checkpoint(target)), torch.float32, CPU)


def test_logits_that_are_not_finite_end_the_native_engine_too(target: Path) -> None:
    native = load_native(stored_weights(open_checkpoint(target)), torch.float32, CPU)
    native.model.norm.weight.fill_(float("nan"))
    native.model.norm.scaled.fill_(float("nan"))
    with pytest.raises(UndefinedMetricError, match="not finite after 0 tokens"):
        generate_in_turns(native, [[1, 2]], GREEDY, 4, [0], batch_size=1)


@pytest.mark.usefixtures("engine")
def test_unfinished_run_with_other_settings_is_refused(
    target: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "t.jsonl"
    with _killed_after(1, monkeypatch):
        run(target, prompts, output, batch_size=2)
    with pytest.raises(OutputExistsError, match="begun with other settings"):
        run(target, prompts, output, sampling=WARM)
    with pytest.raises(OutputExistsError, match="begun with other settings"):
        run(target, prompts, output, max_new_tokens=8)
    assert run(target, prompts, output, sampling=WARM, force=True).sampling == WARM


def test_existing_output_is_kept_unless_forced(target: Path, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    output.write_text("precious")
    with pytest.raises(OutputExistsError, match="exists"):
        run(target, prompts, output)
    assert output.read_text() == "precious"
    assert len(run(target, prompts, output, force=True).responses) == len(TEXTS)


def test_header_says_how_the_responses_came_about(
    target: Path, prompts: Path, tmp_path: Path
) -> None:
    traffic = run(target, prompts, tmp_path / "t.jsonl", sampling=WARM)
    assert traffic.sampling == WARM
    assert traffic.target["name"] == str(target)
    assert traffic.target["dtype"] == "float32"
    assert len(traffic.target["weights_sha256"]) == 64
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert lines[0]["num_prompts"] == len(TEXTS)
    assert lines[0]["max_new_tokens"] == 24
    assert lines[1]["prompt"] == TEXTS[0]
    assert traffic == read_traffic(tmp_path / "t.jsonl")


def test_chat_is_asked_through_the_template(target: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "chat.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    run(target, prompts, tmp_path / "t.jsonl")
    line = json.loads((tmp_path / "t.jsonl").read_text().splitlines()[1])
    assert line["prompt"] == "[user]hi[assistant]"


def test_prompt_without_room_for_an_answer_is_named_and_not_cut(
    target: Path, tmp_path: Path
) -> None:
    room = MAX_POSITIONS - 24
    prompts = tmp_path / "long.jsonl"
    texts = {"fits": "x" * room, "long": "x" * (room + 1)}
    lines = [json.dumps({"id": name, "prompt": text}) + "\n" for name, text in texts.items()]
    prompts.write_text("".join(lines))
    traffic = run(target, prompts, tmp_path / "t.jsonl")
    assert [response.prompt_id for response in traffic.responses] == ["fits"]
    assert len(traffic.responses[0].prompt_token_ids) == room
    assert traffic.skipped[0].startswith(f"prompt long: {room + 1} tokens leave no room for 24")
    prompts.write_text(lines[1])
    with pytest.raises(TrafficError, match="no prompt fits"):
        run(target, prompts, tmp_path / "u.jsonl")


def test_full_disk_keeps_what_is_finished(
    target: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(answer_file.os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device.*continue"):
        run(target, prompts, tmp_path / "t.jsonl")
    assert (tmp_path / "t.jsonl.partial").exists()
    monkeypatch.undo()
    assert len(run(target, prompts, tmp_path / "t.jsonl").responses) == len(TEXTS)


@pytest.mark.parametrize("wrong", [{"max_new_tokens": 1}, {"batch_size": 0}, {"limit": 0}])
def test_options_that_mean_nothing_are_refused(
    target: Path, prompts: Path, tmp_path: Path, wrong: dict[str, int]
) -> None:
    with pytest.raises(OptionError):
        run(target, prompts, tmp_path / "t.jsonl", **wrong)


@pytest.mark.parametrize("template", ["{{ messages }}", None])
def test_plain_text_for_a_target_with_a_chat_template_is_warned_of(
    template: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(capturing, "say", said.append)
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "What is the capital of France?"}\n', encoding="utf-8")
    found = read_prompt_file(path)
    tokenizer = SimpleNamespace(chat_template=template)
    capturing._tell_reading(found.reading, found.prompts, tokenizer)
    assert any("without the target's chat template" in line for line in said) == bool(template)
    path.write_text('{"messages": [{"role": "user", "content": "Paris?"}]}\n', encoding="utf-8")
    found, said[:] = read_prompt_file(path), []
    capturing._tell_reading(found.reading, found.prompts, tokenizer)
    assert not any(line.startswith("warning") for line in said)
