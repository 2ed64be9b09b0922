"""The torch.compile backend "nanospec": graph passes that turn output projections into gathered ones.

Installed under this name by an entry point, so `torch.compile(model, backend="nanospec")` needs no import. The passes
and their order are in `pipeline.py`. TORCH_LOGS="+compile_passes" shows every rewritten graph, and why a pass declined.
"""
