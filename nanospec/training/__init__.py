"""Training from a corpus file: the embedded target, and drafters of every family for it; evaluation, export."""
