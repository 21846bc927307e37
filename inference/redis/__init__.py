"""Speaks to Redis: the clients, the keys, the Lua scripts, and the one translation of what goes wrong."""
