"""The command line: `nanospec generate`, `compare`, `inspect`, `calibrate` and `trim`."""
