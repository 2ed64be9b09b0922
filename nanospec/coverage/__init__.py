"""Draft vocabularies measured side by side on the same contexts: what they hold, and what their trees are worth."""
