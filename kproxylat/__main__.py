"""``python -m kproxylat`` is the console script."""

from kproxylat.cli.app import main

if __name__ == "__main__":
    main()
