"""The torch.compile backend "nanospec": graph passes that turn output projections into gathered ones.

Installed under this name by an entry point, so `torch.compile(model, backend="nanospec")` needs no import. The passes
and their order are in `pipeline.py`. TORCH_LOGS="+compile_passes" shows every rewritten graph, and why a pass declined.

Where a vocabulary is given, a graph with an output head that is left alone, say since its size is not the vocabulary's,
is compiled as it is, with a warning (`overlooked_head.py`); of a graph without a head, as graph breaks leave them,
nothing is said. Before a vocabulary's first `update` every logit is -inf.
"""
