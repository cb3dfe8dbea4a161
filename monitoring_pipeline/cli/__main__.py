"""`python -m monitoring_pipeline.cli`: the command line without its console script."""

from monitoring_pipeline.cli.app import main

main()
