"""nanospec inside other people's decoding."""
