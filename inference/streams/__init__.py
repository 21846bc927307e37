"""Streams: messages of Redis streams and Kafka topics that update the features of entities."""
