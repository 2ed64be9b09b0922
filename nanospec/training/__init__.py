"""Training of the embedded demonstration pair from a corpus file: target, EAGLE drafter, evaluation, export."""
