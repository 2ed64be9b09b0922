"""The command line: `nanospec generate`, `nanospec compare` and `nanospec inspect`."""
