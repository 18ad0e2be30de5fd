"""``python -m sslprune``: the command line."""

from sslprune.cli import main

if __name__ == "__main__":
    main()
