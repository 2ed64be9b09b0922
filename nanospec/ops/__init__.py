"""Operators: each is a fast function beside a plain reference that says what it means."""
