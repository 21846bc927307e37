"""Compares a run's predictions with those that serve, or served before it.

`differ` reads both generations, `joining` brings the rows of each entity together, `values` measures each output,
`feature_moves` the features; `differences` has the records that come of it.
"""
