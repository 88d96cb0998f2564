"""The command line: one small module a subcommand."""

from soaprl.cli.application import app, main, run

__all__ = ["app", "main", "run"]
