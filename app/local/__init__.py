"""One machine: an embedded Redis and the supervisor that runs every process of a deployment.

Children are started by argv; nothing of theirs is imported here.
"""
