"""Verbs as Ray jobs."""
