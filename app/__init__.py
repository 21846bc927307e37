"""Faces: what people and programs talk to."""
