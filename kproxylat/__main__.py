"""The entry point of ``python -m kproxylat``, the same as the console script."""

from kproxylat.cli import main

if __name__ == "__main__":
    main()
