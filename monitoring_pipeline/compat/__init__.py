"""Private parts of our dependencies: names that begin with an underscore, and functions that we replace.

No other module imports such names. A test checks our assumptions about each, so that it fails by name if a new version
of a dependency changes one.
"""
