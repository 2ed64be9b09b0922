"""The command line: `nanospec generate`, `compare`, `inspect`, `plan`, `calibrate` and `trim`."""
