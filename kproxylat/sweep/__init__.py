"""Many measurements."""
