"""The embedded pair: a small target over 131,072 ids and its EAGLE drafter, shipped with the package."""

from pathlib import Path

DEMO_DIRECTORY = Path(__file__).parent
TARGET_DIRECTORY = DEMO_DIRECTORY / "target"
DRAFT_DIRECTORY = DEMO_DIRECTORY / "draft"
