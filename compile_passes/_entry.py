"""What the entry point names. Nothing registers itself here: torch does that, under the entry point's name."""

from compile_passes.backend import nanospec as nanospec
