"""Private parts of our dependencies that the pipeline uses: names that begin with an underscore, and what we replace.

Nothing else in the package imports such a name. A test checks what we rely on of each, so that a new version of a
dependency that changes one fails there, by name.
"""
