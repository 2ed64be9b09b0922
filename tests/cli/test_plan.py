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
