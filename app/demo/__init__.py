"""Runs the whole system on a generated table and checks every step: `forecache demo`."""
