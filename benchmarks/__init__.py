"""This pipeline beside what a user would use instead: `make bench` runs it, docs/performance.md has the results."""
