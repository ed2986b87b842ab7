"""The contract suite catches a detector that breaks a rule: every check against detectors broken on purpose."""

from __future__ import annotations

from functools import cache

import pytest
from contract import broken_fits, broken_scores, checks, fits, scores, tiles, toys
from contract.maker import Maker

# Broken detector, the check that must catch it, and what it must say.
MUTATIONS = (
    (broken_scores.ScoresNotANumber, scores.check_scores_are_finite_float32, "heatmap must be finite"),
    (broken_scores.ScoresInDouble, scores.check_scores_are_finite_float32, "image must be float32"),
    (broken_scores.ScoresAsColumn, scores.check_scores_are_finite_float32, "image must have shape"),
    (broken_scores.HeatmapAtHalfSize, scores.check_scores_are_finite_float32, "heatmap must have shape"),
    (broken_scores.SwapsSides, scores.check_scores_are_finite_float32, "heatmap must have shape"),
    (broken_scores.DividesBySpread, scores.check_constant_images_score_finite, "constant images"),
    (broken_scores.CountsInABuffer, scores.check_score_keeps_weights, "changed norm.num_batches_tracked"),
    (broken_scores.LeavesEvalMode, scores.check_score_keeps_modes, "training mode"),
    (broken_scores.RestoresOnlyTheTopMode, scores.check_score_keeps_modes, "training mode of norm"),
    (broken_scores.ScoresInTrainingMode, scores.check_training_mode_does_not_matter, "depend on the training mode"),
    (broken_scores.LeavesGradients, scores.check_score_keeps_gradients, "left a gradient"),
    (broken_scores.ClearsGradients, scores.check_score_keeps_gradients, "changed the gradient"),
    (broken_scores.DrawsFromTorch, scores.check_score_keeps_random_generators, "torch's generator"),
    (broken_scores.DrawsFromNumpy, scores.check_score_keeps_random_generators, "numpy's generator"),
    (broken_scores.DrawsFromPython, scores.check_score_keeps_random_generators, "Python's generator"),
    (broken_scores.ScalesItsInput, scores.check_score_keeps_its_input, "changed its input"),
    (broken_scores.ScoresDifferentlyEachTime, scores.check_score_repeats, "same scores again"),
    (broken_scores.NormalisesOverTheBatch, scores.check_rows_are_independent, "heatmap one by one"),
    (broken_scores.LeaksALittle, scores.check_rows_are_independent, "image scores one by one"),
    (broken_scores.SwapsSides, scores.check_images_need_not_be_square, "height and width"),
    (broken_scores.NeedsSquareImages, scores.check_images_need_not_be_square, "must score"),
    (broken_scores.ChecksNothing, scores.check_wrong_input_is_refused, "must be an InputError"),
    (broken_scores.ChecksNoShape, scores.check_wrong_input_is_refused, "sides swapped: must be"),
    (broken_scores.ChecksNoRange, scores.check_wrong_input_is_refused, "above 1: must be"),
    (broken_scores.ChecksNoNaN, scores.check_wrong_input_is_refused, "NaN: must be"),
    (broken_scores.ConvertsOtherTypes, scores.check_wrong_input_is_refused, "float64: must be"),
    (broken_scores.RefusesWithoutRemedy, scores.check_wrong_input_is_refused, "must name the value"),
    (broken_scores.LeavesGradModeToItsCaller, scores.check_no_grad_changes_nothing, "own its grad mode"),
    (broken_scores.NormalisesOverTheBatch, tiles.check_frames_are_scored_in_tiles, "the tile's score"),
    (broken_scores.ScoresNotANumber, tiles.check_frames_are_scored_in_tiles, "must have a finite score"),
    (broken_fits.KeepsAnAttribute, scores.check_reloads_in_a_fresh_process, "identical after saving"),
    (broken_fits.HasADeadParameter, fits.check_every_parameter_learns, "no gradient in any phase for .*unused"),
    (broken_fits.ReportsAttachedLosses, fits.check_losses_are_finite_scalars, "must be detached"),
    (broken_fits.NeverStops, fits.check_non_finite_loss_stops_before_the_update, "must stop at a non-finite loss"),
    (broken_fits.StopsAfterTheUpdate, fits.check_non_finite_loss_stops_before_the_update, "update before the check"),
    (broken_fits.TrainsOnHeldOutImages, fits.check_held_out_images_do_not_train, "was trained on held-out images"),
    (broken_fits.NeverStops, fits.check_diverging_fit_stops, "must raise NonFiniteLoss"),
    (broken_fits.StopsAfterTheUpdate, fits.check_diverging_fit_stops, "not finite where the fit stopped"),
    (broken_fits.ScoresTheWrongWay, fits.check_defects_score_higher, "must score higher"),
    (broken_fits.TurnsItsHeatmap, fits.check_heatmap_is_hot_at_the_defect, "hotter inside"),
    (broken_fits.ForgetsItsOptimizer, fits.check_fit_continues_from_its_state, "differs by .* 'predict'"),
    (broken_fits.ForgetsTheLastPhase, fits.check_fit_continues_from_its_state, "scale differs by .* 'scale'"),
    (broken_fits.AugmentsFromTheGlobalGenerator, fits.check_fit_continues_from_its_state, "differs by .* 'predict'"),
    (broken_fits.AugmentsUnseeded, fits.check_same_seed_gives_same_scores, "one seed"),
)


@cache
def maker(detector: type[toys.Toy]) -> Maker:
    return Maker(toys.entry(detector))


@pytest.mark.parametrize("check", checks.CHECKS, ids=checks.ids)
def test_the_sound_toy_passes(check: checks.Check):
    check(maker(toys.Toy))


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    MUTATIONS,
    ids=[f"{broken.__name__}-{checks.ids(check)}" for broken, check, _ in MUTATIONS],
)
def test_a_broken_detector_is_caught(broken: type[toys.Toy], check: checks.Check, message: str):
    with pytest.raises(AssertionError, match=message):
        check(maker(broken))


def test_every_check_catches_something():
    caught = {check for _, check, _ in MUTATIONS}
    assert caught == set(checks.CHECKS)
