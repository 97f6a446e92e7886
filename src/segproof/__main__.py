"""`python -m segproof`: the command, where its script is not on the path."""

from segproof.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
