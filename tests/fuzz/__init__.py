"""Fuzzing by hand, and its targets."""
