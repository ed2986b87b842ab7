"""The machinery of `retroscan fit`."""
