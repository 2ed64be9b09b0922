"""Names that stand for a draft where others name a checkpoint."""

PROMPT_LOOKUP = "prompt-lookup"
