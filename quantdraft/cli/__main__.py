"""`python -m quantdraft.cli`, where the entry point is not installed."""

from quantdraft.cli import main

main(prog_name="quantdraft")
