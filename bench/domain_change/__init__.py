"""How soon a draft vocabulary follows a change of language or domain in the middle of a conversation."""
