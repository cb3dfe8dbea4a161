"""Lets `python -m monitoring_pipeline.cli` run the command line."""

from monitoring_pipeline.cli.app import main

main()
