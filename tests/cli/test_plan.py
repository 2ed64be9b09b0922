"""`nanospec plan`: a table or one object from two configs, and errors of one line."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner, Result

from nanospec.cli.main import app
from nanospec.planning import calibrate

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256, "hidden_act": "silu",
}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_8B))
    return str(path)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments])


def plan_of(*arguments: str) -> dict:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_an_8b_pair_has_the_sizes_of_its_published_weights(config):
    plan = plan_of("--target", config)
    assert plan["target_bytes"] == pytest.approx(15.0e9, rel=0.01)
    assert plan["draft_body_bytes"] == pytest.approx(504e6, rel=0.01)
    assert plan["draft_head_bytes"] == 2 * 4096 * 128_256
    assert plan["tree"] == {"depth": 6, "branching": 10, "num_nodes": 60}
    assert [one["policy"] for one in plan["policies"]] == ["full", "static:32768", "in-context", "hybrid:1024"]


def test_fewer_rows_draft_faster_and_a_larger_vocabulary_gains_more(config):
    small, large = (plan_of("--target", config, "--vocab-size", str(size)) for size in (32_000, 1_048_576))
    for plan in (small, large):
        full, hybrid = plan["policies"][0], plan["policies"][-1]
        assert hybrid["draft_ms"] < full["draft_ms"]
    assert large["policies"][-1]["draft_vs_full"] < small["policies"][-1]["draft_vs_full"]
    assert large["policies"][-1]["level_ms"] == small["policies"][-1]["level_ms"]


def test_accept_lengths_are_taken_as_given(config):
    plan = plan_of(
        "--target", config, "--vocab", "full", "--vocab", "hybrid:64", "--accept-length", "4", "--accept-length",
        "hybrid:64=3.5",
    )  # fmt: skip
    assert [(one["accept_length"], one["accept_length_source"]) for one in plan["policies"]] == [
        (4.0, "given"),
        (3.5, "given"),
    ]


def test_devices_share_a_target(config):
    one, eight = (plan_of("--target", config, "--tp", tp) for tp in ("1", "8"))
    assert eight["autoregressive_ms"] < one["autoregressive_ms"]
    assert eight["policies"][0]["floor_ms"] == pytest.approx(one["policies"][0]["floor_ms"] / 8)


def test_a_table_says_what_is_assumed(config):
    result = invoke("--target", config, "--draft", "eagle3", "--device", "cpu", "--tree", "4,6,20", "--batch", "4")
    assert result.exit_code == 0, result.output
    for text in (
        "hybrid:1024",
        "EAGLE-3",
        "depth 4, branching 6, 20 nodes",
        "batch 4",
        "published: FR-Spec",
        "device cpu",
    ):
        assert text in result.output


def test_a_device_of_a_data_sheet_is_planned_and_said_to_be_given(config):
    arguments = ["--target", config, "--device", "a100"]
    slow = plan_of(*arguments, "--bandwidth", "2", "--tflops", "312")
    fast = plan_of(*arguments, "--bandwidth", "4", "--tflops", "312")
    assert (slow["device"], slow["tree"]["num_nodes"]) == ("a100", 60)
    assert slow["device_source"].startswith("2 TB/s and 312 TFLOP/s of dense 16-bit products, given, not measured")
    assert slow["policies"][0]["floor_ms"] == pytest.approx(2 * fast["policies"][0]["floor_ms"])


def test_accept_lengths_of_another_family_are_said_to_be_just_that(config):
    table = " ".join(invoke("--target", config, "--draft", "eagle3").stdout.split())
    assert "these accept lengths are an EAGLE-1/2 draft's, and yours is EAGLE-3: --accept-length gives" in table
    for arguments in (["--draft", "eagle"], ["--draft", "eagle3", "--accept-length", "4"]):
        assert "these accept lengths" not in invoke("--target", config, *arguments).stdout


def test_a_language_model_has_no_speed_without_an_accept_length(config, tmp_path):
    draft = tmp_path / "small.json"
    draft.write_text(json.dumps({**LLAMA_8B, "num_hidden_layers": 2}))
    arguments = ["--target", config, "--draft", str(draft), "--vocab", "full", "--vocab", "in-context"]
    needs_one = ["accept_length", "accept_length_source", "tokens_per_second", "speedup_vs_autoregressive"]
    needs_one += ["speedup_vs_full", "floor_speedup"]
    without, given = plan_of(*arguments), plan_of(*arguments, "--accept-length", "4")
    for unknown, known in zip(without["policies"], given["policies"], strict=True):
        assert [unknown[name] for name in needs_one] == [None] * len(needs_one)
        assert None not in known.values()
        assert (unknown["level_ms"], unknown["verify_ms"]) == (known["level_ms"], known["verify_ms"])
        assert unknown["draft_ms"] == pytest.approx(known["draft_ms"], rel=0.01)
    table = " ".join(invoke(*arguments).stdout.split())
    assert "no accept length of a causal language model as draft is known: --accept-length gives your own" in table
    one = plan_of(*arguments, "--accept-length", "in-context=4")["policies"][1]
    assert (one["accept_length"], one["speedup_vs_full"]) == (4.0, None)


def test_a_draft_of_another_vocabulary_is_refused_unless_both_are_planned_over_one(config, tmp_path):
    draft = tmp_path / "other.json"
    for layers in (1, 2):  # EAGLE, a language model
        draft.write_text(json.dumps({**LLAMA_8B, "num_hidden_layers": layers, "vocab_size": 32_000}))
        result = invoke("--target", config, "--draft", str(draft))
        assert result.exit_code == 2
        assert "draft vocab_size must be the target's 128256, got 32000" in result.stderr
        assert plan_of("--target", config, "--draft", str(draft), "--vocab-size", "64000")["vocab_size"] == 64_000


def test_a_size_that_transformers_fills_in_is_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({name: value for name, value in LLAMA_8B.items() if name != "hidden_size"}))
    assert plan_of("--target", str(path))["notes"] == [
        "target hidden_size is not in the config: transformers' default 4096"
    ]
    assert "note: target hidden_size is not in" in invoke("--target", str(path)).stdout


def test_this_machine_is_measured_when_asked(config, monkeypatch):
    monkeypatch.setattr(calibrate, "Effort", lambda: calibrate.SMALL_EFFORT)
    plan = plan_of("--target", config, "--device", "measured")
    assert plan["device"] == "measured"
    assert plan["policies"][0]["step_ms"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "device must be one of h200, cpu, measured, got 'tpu'"),
        (["--tp", "0"], "batch and tp must be at least 1, got 1 and 0"),
        (["--tp", "2", "--device", "measured"], "tp must be 1 with device measured, which stands alone, got 2"),
        (["--batch", "0"], "batch and tp must be at least 1, got 0 and 1"),
        (["--context-length", "0"], "context_length must be at least 1, got 0"),
        (["--vocab-size", "0"], "vocab-size must be at least 1, got 0"),
        (["--tree", "deep"], "tree must be 'auto' or 'DEPTH,BRANCHING,NODES'"),
        (["--vocab", "routed"], "vocab must be full, in-context"),
        (["--accept-length", "many"], "accept-length must be TOKENS or VOCAB=TOKENS, got 'many'"),
        (["--accept-length", "static:7=3"], "accept-length must name one of"),
        (["--accept-length", "0.5"], "accept_length must be between 1 and 7"),
        (["--draft", "nowhere"], "draft must be a checkpoint directory or a hub id, got 'nowhere'"),
        (["--draft", "/nowhere/c.json"], "draft must be a config.json, a directory or a hub id, but /nowhere/c.json"),
        (["--draft", "prompt-lookup"], "draft must be a model, got prompt-lookup, which has no weights to plan"),
        (
            ["--vocab", "hybrid:auto"],
            "vocab hybrid:auto cannot be planned, as its size follows the text: give hybrid:N",
        ),
        (["--device", "a100"], "got 'a100': any other needs --bandwidth TB/s and --tflops"),
        (["--device", "a100", "--tflops", "312"], "--bandwidth and --tflops must be given together, got None and 312"),
        (["--bandwidth", "-1", "--tflops", "312"], "bandwidth must be a positive number, got -1"),
        (["--device", "h200", "--bandwidth", "2", "--tflops", "312"], "must be left out with --device h200"),
    ],
)
def test_what_cannot_be_planned_is_one_line(config, arguments, message):
    result = invoke("--target", config, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_config_that_is_none_is_one_line(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("[]")
    result = invoke("--target", str(path))
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "must hold a JSON object" in result.stderr
