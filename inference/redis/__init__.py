"""Talks to Redis: clients, keys, Lua scripts, and the translation of Redis' errors into ours."""
