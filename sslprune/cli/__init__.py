"""The command line: a thin shell over the stages."""

from sslprune.cli.app import app, main

__all__ = ["app", "main"]
