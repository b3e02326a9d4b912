"""What tests of several packages share: paths, fakes, and recorded data."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
