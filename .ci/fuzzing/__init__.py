"""The parsers that `make fuzz` tries, each with examples to begin with; `.ci/fuzz.py` runs them."""
