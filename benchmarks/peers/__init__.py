"""Other model servers, each with its own requirements: measured beside Forecache, never part of it.

Each serves the benchmarks' SavedModel with batching on, up to 64 rows, by calling its signature as Forecache does. None
knows where features are kept, so they come in the request's body; Forecache reads them from Redis. Each tells, with the
prediction, whose it is, so that every answer can be compared with TensorFlow's own.
"""
