"""The machinery of `retroscan scan`."""
