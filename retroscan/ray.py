"""A model's scores as a step of anyone's own Ray Data pipeline."""

from ad_jobs.scanning.batch_score import Score

__all__ = ["Score"]
