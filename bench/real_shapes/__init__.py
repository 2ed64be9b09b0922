"""Real model shapes with random weights on a CPU, beside what `nanospec plan` predicts of them."""
