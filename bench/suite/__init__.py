"""Our engine and its peers on the same prompts, weights and machine: python -m bench.suite."""
