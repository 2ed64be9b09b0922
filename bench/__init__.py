"""Timings of single operators, each after a check against its reference: `make bench`."""
