"""Policies that choose the draft vocabulary, one file each, behind `nanospec.vocab_selector.VocabSelector`."""
