"""The words of the report: none is missing."""

from ad_jobs.cli.show_evaluation import ORACLE
from ad_jobs.errors import ErrorCode
from ad_jobs.evaluation.image_metrics import IMAGE_METRICS
from ad_jobs.evaluation.pixel_metrics import PIXEL_METRICS
from ad_jobs.page import texts


def test_every_metric_and_error_code_has_words():
    # What labels chose is shown by who asks for it, and on no page.
    assert set(texts.METRICS) == {*IMAGE_METRICS, *PIXEL_METRICS} - {*ORACLE}
    assert set(texts.ERRORS) == set(ErrorCode)
