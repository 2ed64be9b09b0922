"""The command line: `nanospec generate` and `nanospec compare`."""
