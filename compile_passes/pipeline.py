"""The passes and their order; cleaning up behind them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import fx

from compile_passes.compact_head_consumers import compact_head_consumers
from compile_passes.gather_output_head import gather_output_head
from compile_passes.gather_selected_linear import gather_selected_linear
from compile_passes.graph_edits import erase_orphans
from compile_passes.share_gathered_rows import share_gathered_rows

log = logging.getLogger(__name__)

Pass = Callable[[fx.GraphModule], bool]

PASSES: tuple[Pass, ...] = (
    gather_selected_linear,  # first: a selection from a head is exact and needs no vocabulary
    gather_output_head,
    compact_head_consumers,  # what the gathered heads have made wide
    share_gathered_rows,  # last: every gathered product is there
)

_TRANSFORMS = frozenset(("_vmap_increment_nesting", "_grad_increment_nesting", "_jvp_increment_nesting"))


def run_passes(graph_module: fx.GraphModule, passes: tuple[Pass, ...] = PASSES) -> list[str]:
    """Rewrite in place; the names of the passes that changed something. Raises what `fx.Graph.lint` raises."""
    graph = graph_module.graph
    if any(getattr(node.target, "__name__", "") in _TRANSFORMS for node in graph.nodes):
        log.debug("no pass looks into a graph of torch.func transforms")
        return []
    before = str(graph) if log.isEnabledFor(logging.DEBUG) else ""
    changed = []
    for rewrite in passes:
        had_users = [node.name for node in graph.nodes if node.users]
        if rewrite(graph_module):
            changed.append(rewrite.__name__)
            erase_orphans(graph, had_users)
    if changed:
        graph.lint()
        graph_module.recompile()
        log.debug("%s changed the graph\nfrom %s\nto %s", ", ".join(changed), before, graph)
    else:
        log.debug("no pass changed the graph")
    return changed
