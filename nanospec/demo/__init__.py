"""The embedded pair, a small target over 131,072 ids and its EAGLE drafter, shipped with two more drafters for it."""

from pathlib import Path

DEMO_DIRECTORY = Path(__file__).parent
TARGET_DIRECTORY = DEMO_DIRECTORY / "target"
DRAFT_DIRECTORY = DEMO_DIRECTORY / "draft"
DRAFT_DIRECTORIES = {
    "eagle": DRAFT_DIRECTORY,
    "eagle3": DEMO_DIRECTORY / "draft_eagle3",
    "medusa": DEMO_DIRECTORY / "draft_medusa",
}
VOCAB_SIZE = 131_072
