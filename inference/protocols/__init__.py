"""Serving protocols of others: their JSON and bytes to and from named tensors. No web framework, no broker."""
