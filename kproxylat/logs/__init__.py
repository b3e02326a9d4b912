"""Run logs: written, read, and what was written before."""
