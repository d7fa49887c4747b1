"""The parts of `chatmill eval`; `chatmill.cli.eval` holds its arguments."""
