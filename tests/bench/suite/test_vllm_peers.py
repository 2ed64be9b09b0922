from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.suite import vllm_peers
from bench.suite.vllm_peers import (
    CHAINS,
    FIRST_CHAIN,
    FREQUENT_IDS,
    VllmEnvironment,
    VllmPair,
    VllmPeers,
    climb,
    decoded_from,
    describe_environment,
    pair_of,
    what_lacks,
)  # fmt: skip
from nanospec.demo import DRAFT_DIRECTORIES, DRAFT_DIRECTORY, TARGET_DIRECTORY
from nanospec.drafters.eagle import EagleDrafter
from nanospec.drafters.eagle3 import Eagle3Drafter
from nanospec.drafters.medusa import MedusaDrafter
from tests.bench.suite.fake_interpreter import DESCRIBED, write_interpreter

NUM_POSITIONS = 300
PROMPTS = [torch.tensor([[5, 6, 7]]), torch.tensor([[8]])]
ENVIRONMENT = VllmEnvironment("/somewhere/python", {"vllm": "1.0"}, True, [])


def drafter_of(kind):
    return kind.__new__(kind)


def decoder_of(kind=EagleDrafter, dtype=torch.bfloat16, device="cpu"):
    return SimpleNamespace(drafter=drafter_of(kind), target=SimpleNamespace(dtype=dtype, device=torch.device(device)))


@pytest.fixture
def draft(tmp_path) -> Path:
    directory = tmp_path / "draft"
    directory.mkdir()
    for name in ("config.json", "model.safetensors", FREQUENT_IDS):
        (directory / name).touch()
    return directory


@pytest.fixture
def open_peers(tmp_path, draft):
    opened = []

    def open_peers(frequent_ids=True, **plan) -> VllmPeers:
        pair = VllmPair(tmp_path / "target", draft, "eagle", draft / FREQUENT_IDS if frequent_ids else None)
        environment = describe_environment(write_interpreter(tmp_path, plan.pop("answers", {}), **plan))
        opened.append(VllmPeers(environment, pair, torch.bfloat16, NUM_POSITIONS, tmp_path / "logs"))
        return opened[-1]

    yield open_peers
    for peers in opened:
        peers.close()


def started_with(peers: VllmPeers, name: str) -> list[dict]:
    return [json.loads(line) for line in (peers.logs / f"{name}.log").read_text().splitlines()]


def test_rows_differ_in_draft_and_plugin_and_in_nothing_else(open_peers, draft, monkeypatch):
    monkeypatch.setenv("NANOSPEC_CAPACITY", "17")
    monkeypatch.setenv("LD_PRELOAD", "")
    peers = open_peers()
    chains = {"vllm": None, "vllm-eagle": 3, "vllm-nanospec": 4}
    for name, chain in chains.items():
        peers.row(name, chain)(PROMPTS[0], 4)
    started = {name: started_with(peers, name)[0] for name in chains}
    plain, eagle, plugin = (started[name]["engine"] for name in chains)
    assert plain == {
        "model": str(draft.parent / "target"), "dtype": "bfloat16", "max_model_len": NUM_POSITIONS, "max_num_seqs": 1,
        "enable_prefix_caching": False, "kv_cache_memory_bytes": 2**30, "skip_tokenizer_init": True, "seed": 0,
    }  # fmt: skip
    for engine, chain in ((eagle, 3), (plugin, 4)):
        speculative = engine.pop("speculative_config")
        assert speculative.pop("model") != str(draft), "vLLM would read the list as weights"
        assert speculative == {"method": "eagle", "num_speculative_tokens": chain}
        assert engine.pop("per_request_spec_decode_metrics") == "summary"
        assert engine == plain
    environment = {
        name: {key: value for key, value in row["environment"].items() if key.startswith("NANOSPEC_")}
        for name, row in started.items()
    }
    assert environment["vllm"] == environment["vllm-eagle"] == {"NANOSPEC_OFF": "1"}
    assert environment["vllm-nanospec"] == {
        "NANOSPEC_VOCAB": "hybrid:1024", "NANOSPEC_FREQUENT_IDS": str(draft / FREQUENT_IDS),
    }  # fmt: skip
    assert [row["draft_files"] for row in started.values()] == [[], *[["config.json", "model.safetensors"]] * 2]
    assert all(row["environment"]["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0" for row in started.values())


def test_links_to_the_draft_go_with_the_processes(open_peers):
    peers = open_peers()
    peers.row("vllm-eagle", 3)(PROMPTS[0], 4)
    links = Path(started_with(peers, "vllm-eagle")[0]["engine"]["speculative_config"]["model"])
    assert links.exists()
    peers.close()
    assert not links.exists()


def test_without_a_list_the_plugin_drafts_in_context_from_the_drafts_own_directory(open_peers, draft):
    (draft / FREQUENT_IDS).unlink()
    peers = open_peers(frequent_ids=False)
    assert peers.settings("vllm-nanospec", 4)["environment"]["NANOSPEC_VOCAB"] == "in-context"
    peers.row("vllm-nanospec", 4)(PROMPTS[0], 4)
    assert started_with(peers, "vllm-nanospec")[0]["engine"]["speculative_config"]["model"] == str(draft)


@pytest.mark.parametrize(
    ("own", "expected"), [(None, "/a/libiomp5.so:/b/libtcmalloc.so"), ("/my/lib.so", "/my/lib.so")]
)
def test_libraries_are_preloaded_unless_somebody_chose_others(monkeypatch, own, expected, tmp_path):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    if own:
        monkeypatch.setenv("LD_PRELOAD", own)
    environment = ENVIRONMENT._replace(preload=["/a/libiomp5.so", "/b/libtcmalloc.so"])
    peers = VllmPeers(environment, VllmPair(tmp_path, None, None, None), torch.float32, 1, tmp_path)
    assert peers._inherited()["LD_PRELOAD"] == expected


def test_a_process_decodes_any_number_of_prompts(open_peers):
    peers = open_peers(answers={"[5, 6, 7]": [1, 2, 3, 4, 5, 6], "[8]": [9, 9, 9]})
    decode = peers.row("vllm-eagle", 2)
    assert decode(PROMPTS[0], 6).token_ids == [1, 2, 3, 4, 5, 6]
    assert decode(PROMPTS[1], 2).token_ids == [9, 9]
    assert len(started_with(peers, "vllm-eagle")) == 1


def test_an_answer_counts_what_was_drafted_before_the_cut():
    answer = {
        "token_ids": list(range(8)), "seconds": 4.5, "pieces": [[1.0, 1], [2.0, 3], [3.0, 3], [4.0, 1]],
        "num_accepted": 6, "rows": [100, 200, 300, 400],
    }  # fmt: skip
    found = decoded_from(answer)
    assert (found.seconds, found.ttft, found.first_tokens, found.steps, found.step_tokens) == (4.5, 1.0, 1, 3, 9)
    assert (found.active_rows, found.stages) == (600, None)
    plain = decoded_from(answer | {"num_accepted": None, "rows": None})
    assert (plain.step_tokens, plain.active_rows) == (7, None)


def test_the_longest_chain_that_pays_is_found_in_processes_that_end(open_peers):
    peers = open_peers()
    assert peers.find_chain("vllm-eagle", PROMPTS) == 3  # as the stand-in's clock says
    tried = [row["engine"]["speculative_config"]["num_speculative_tokens"] for row in started_with(peers, "vllm-eagle")]
    assert tried == [FIRST_CHAIN + 1, FIRST_CHAIN, FIRST_CHAIN - 1, FIRST_CHAIN - 2]
    assert peers._workers == {}


@pytest.mark.parametrize("best", [1, 2, 4, 5, 10])
def test_climbing_ends_at_the_top_and_asks_for_nothing_twice(best):
    asked = []

    def rate(number):
        asked.append(number)
        return -abs(number - best)

    assert climb(rate, FIRST_CHAIN, CHAINS) == best
    assert len(asked) == len(set(asked)) <= 2 + abs(best - FIRST_CHAIN) + 1
    assert set(asked) <= set(CHAINS)


def test_a_crash_names_the_row_and_ends_its_log(open_peers):
    peers = open_peers(do={"vllm-eagle": "crash"})
    with pytest.raises(ChildProcessError, match="^vllm-eagle ended with exit status 1; .*RuntimeError: out of cheese$"):
        peers.row("vllm-eagle", 3)(PROMPTS[0], 4)
    assert len(peers.row("vllm", None)(PROMPTS[0], 4).token_ids) == 4


def test_an_answer_that_does_not_come_is_an_error(open_peers, monkeypatch):
    monkeypatch.setattr(vllm_peers, "ANSWER_SECONDS", 0.2)
    with pytest.raises(TimeoutError, match="^vllm did not answer within 0.2 s; the end of .*vllm.log"):
        open_peers(do={"vllm": "hang"}).row("vllm", None)(PROMPTS[0], 4)


def test_other_threads_than_those_of_all_rows_are_an_error(open_peers, monkeypatch):
    peers = open_peers()
    monkeypatch.setattr(peers, "settings", lambda *_: {"engine": {}, "environment": {"OMP_NUM_THREADS": "999"}})
    with pytest.raises(ChildProcessError, match=f"vllm must run with {torch.get_num_threads()} threads, got 999"):
        peers.row("vllm", None)(PROMPTS[0], 4)


class TestEnvironment:
    def test_it_says_what_is_installed(self, tmp_path):
        python = write_interpreter(tmp_path, {})
        assert describe_environment(python) == VllmEnvironment(python, **DESCRIBED)

    def test_a_program_that_is_none_and_an_environment_without_vllm_are_refused(self, tmp_path):
        with pytest.raises(
            FileNotFoundError, match="vllm must be a Python interpreter, but no/such/python is no program"
        ):
            describe_environment("no/such/python")
        with pytest.raises(ValueError, match="vllm must be a Python interpreter, got /bin/false"):
            describe_environment("/bin/false")
        python = write_interpreter(tmp_path, {}, described=DESCRIBED | {"versions": {}})
        with pytest.raises(ValueError, match="in whose environment vLLM is installed, got .*python-with-vllm"):
            describe_environment(python)

    @pytest.mark.parametrize(
        ("decoder", "has_plugin", "expected"),
        [
            (decoder_of(), True, {}),
            (decoder_of(), False, {"vllm-nanospec": "nanospec is not installed beside /somewhere/python"}),
            (decoder_of(dtype=torch.float64), True, dict.fromkeys(vllm_peers.VLLM_ROWS, "vLLM has no dtype float64")),
            (
                decoder_of(device="cuda"),
                True,
                dict.fromkeys(vllm_peers.VLLM_ROWS, "its rows run on the CPU, the others on cuda"),
            ),
            (
                decoder_of(MedusaDrafter),
                True,
                dict.fromkeys(
                    ("vllm-eagle", "vllm-nanospec"), "the pair's draft must be EAGLE or EAGLE-3, got MedusaDrafter"
                ),
            ),
        ],
    )
    def test_rows_that_cannot_take_part_say_why(self, decoder, has_plugin, expected):
        pair = pair_of(decoder, None, None)
        assert what_lacks(ENVIRONMENT._replace(has_plugin=has_plugin), pair, decoder) == expected

    def test_the_embedded_drafts_share_a_list_and_another_pair_has_its_own(self, draft, tmp_path):
        frequent_ids = DRAFT_DIRECTORY / FREQUENT_IDS
        assert pair_of(decoder_of(), None, None) == (TARGET_DIRECTORY, DRAFT_DIRECTORY, "eagle", frequent_ids)
        eagle3 = pair_of(decoder_of(Eagle3Drafter), None, "eagle3")
        assert eagle3 == (TARGET_DIRECTORY, DRAFT_DIRECTORIES["eagle3"], "eagle3", frequent_ids)
        (tmp_path / "target").mkdir()
        given = (str(tmp_path / "target"), str(draft))
        assert pair_of(decoder_of(), *given) == (tmp_path / "target", draft, "eagle", draft / FREQUENT_IDS)
        (draft / FREQUENT_IDS).unlink()
        assert pair_of(decoder_of(), *given).frequent_ids is None
        assert pair_of(decoder_of(MedusaDrafter), *given) == (tmp_path / "target", None, None, None)
