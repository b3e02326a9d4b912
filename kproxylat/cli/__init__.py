"""The command line: one file a command."""

from kproxylat.cli.app import main

__all__ = ["main"]
