"""Figures of a GPU over random weights at real shapes: `python -m bench.gpu --out DIR`."""
