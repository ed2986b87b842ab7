"""Runs against labels: metrics and intervals."""
