"""Other servers' protocols: translates JSON and bytes into named tensors, and back. No web framework, no broker."""
