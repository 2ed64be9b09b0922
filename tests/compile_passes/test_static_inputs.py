from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compile_passes.backend as backend
from nanospec import DraftVocabulary

V, D, K = 50, 8, 12


class Draft(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.lm_head = nn.Linear(D, D), nn.Linear(D, V, bias=False)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.lm_head(self.layer(hidden))
        return logits, logits.argmax(-1)


@torch.no_grad()
def test_added_inputs_are_static_for_cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA graphs read static inputs where they are; of all others each replay makes a copy."""
    from torch._functorch.aot_autograd import aot_module_simplified

    seen: list[tuple[list[int], list[str]]] = []

    def compile_and_look(graph_module: torch.fx.GraphModule, inputs: list[Any], chosen: object) -> Callable:
        names = [node.name for node in graph_module.graph.find_nodes(op="placeholder")]

        def look(lowered: torch.fx.GraphModule, _: list[Any]) -> Callable:
            metadata = torch._guards.TracingContext.get().fw_metadata
            seen.append((metadata.static_input_indices, names))
            return lowered.forward

        return aot_module_simplified(graph_module, inputs, fw_compiler=look)

    monkeypatch.setattr(backend, "_compile_inner", compile_and_look)
    torch._dynamo.reset()
    torch.compile(
        Draft(), backend=lambda *args: backend.nanospec(*args, options={"vocabulary": DraftVocabulary(V, K)})
    )(torch.randn(2, D))
    (static, names), *others = seen
    assert not others
    added = {position for position, name in enumerate(names) if name.startswith("nanospec_")}
    assert len(added) == 3, "ids, count and rows"
    assert added <= set(static)
    assert names.index("l_hidden_") not in static


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: captures and replays a CUDA graph")
@torch.no_grad()
def test_a_captured_graph_sees_updates() -> None:
    torch._dynamo.reset()
    draft, vocabulary = Draft().cuda(), DraftVocabulary(V, K, "cuda")
    fast = torch.compile(draft, backend="nanospec", options={"vocabulary": vocabulary, "cudagraphs": True})
    hidden = torch.randn(2, D, device="cuda")
    for step in range(6):  # warm-up, capture, then replays
        ids = [(7 * step + offset) % V for offset in range(step, K)]
        vocabulary.update(ids)
        torch.compiler.cudagraph_mark_step_begin()
        logits, best = (output.clone() for output in fast(hidden))
        expected = draft(hidden)[0]
        torch.testing.assert_close(logits[:, ids], expected[:, ids])
        assert logits.isfinite().sum() == 2 * len(set(ids))
        assert all(token in ids for token in best.tolist())
