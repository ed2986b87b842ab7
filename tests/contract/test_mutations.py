"""The contract suite catches a detector that breaks a rule: every check against detectors broken on purpose."""

from __future__ import annotations

from functools import cache

import pytest
from contract import checks, toys
from contract.maker import Maker

# Broken detector, the check that must catch it, and what it must say.
MUTATIONS = (
    (toys.ScoresNotANumber, checks.check_scores_are_finite_float32, "heatmap must be finite"),
    (toys.ScoresInDouble, checks.check_scores_are_finite_float32, "image must be float32"),
    (toys.ScoresAsColumn, checks.check_scores_are_finite_float32, "image must have shape"),
    (toys.HeatmapAtHalfSize, checks.check_scores_are_finite_float32, "heatmap must have shape"),
    (toys.SwapsSides, checks.check_scores_are_finite_float32, "heatmap must have shape"),
    (toys.DividesBySpread, checks.check_constant_images_score_finite, "constant images"),
    (toys.CountsInABuffer, checks.check_score_keeps_weights, "changed norm.num_batches_tracked"),
    (toys.LeavesEvalMode, checks.check_score_keeps_modes, "training mode"),
    (toys.RestoresOnlyTheTopMode, checks.check_score_keeps_modes, "training mode of norm"),
    (toys.ScoresInTrainingMode, checks.check_training_mode_does_not_matter, "depend on the training mode"),
    (toys.LeavesGradients, checks.check_score_keeps_gradients, "left a gradient"),
    (toys.ClearsGradients, checks.check_score_keeps_gradients, "changed the gradient"),
    (toys.DrawsFromTorch, checks.check_score_keeps_random_generators, "torch's generator"),
    (toys.DrawsFromNumpy, checks.check_score_keeps_random_generators, "numpy's generator"),
    (toys.DrawsFromPython, checks.check_score_keeps_random_generators, "Python's generator"),
    (toys.ScalesItsInput, checks.check_score_keeps_its_input, "changed its input"),
    (toys.ScoresDifferentlyEachTime, checks.check_score_repeats, "same scores again"),
    (toys.NormalisesOverTheBatch, checks.check_rows_are_independent, "heatmap one by one"),
    (toys.LeaksALittle, checks.check_rows_are_independent, "image scores one by one"),
    (toys.SwapsSides, checks.check_images_need_not_be_square, "height and width"),
    (toys.NeedsSquareImages, checks.check_images_need_not_be_square, "must score"),
    (toys.ChecksNothing, checks.check_wrong_input_is_refused, "must be an InputError"),
    (toys.ChecksNoShape, checks.check_wrong_input_is_refused, "sides swapped: must be"),
    (toys.ChecksNoRange, checks.check_wrong_input_is_refused, "above 1: must be"),
    (toys.ChecksNoNaN, checks.check_wrong_input_is_refused, "NaN: must be"),
    (toys.ConvertsOtherTypes, checks.check_wrong_input_is_refused, "float64: must be"),
    (toys.RefusesWithoutRemedy, checks.check_wrong_input_is_refused, "must name the value"),
    (toys.LeavesGradModeToItsCaller, checks.check_no_grad_changes_nothing, "own its grad mode"),
    (toys.KeepsAnAttribute, checks.check_reloads_in_a_fresh_process, "identical after saving"),
    (toys.HasADeadParameter, checks.check_every_parameter_learns, "no gradient in any phase for .*unused"),
    (toys.ReportsAttachedLosses, checks.check_losses_are_finite_scalars, "must be detached"),
    (toys.NeverStops, checks.check_non_finite_loss_stops_before_the_update, "must stop at a non-finite loss"),
    (toys.StopsAfterTheUpdate, checks.check_non_finite_loss_stops_before_the_update, "update before the check"),
    (toys.TrainsOnHeldOutImages, checks.check_held_out_images_do_not_train, "was trained on held-out images"),
    (toys.NeverStops, checks.check_diverging_fit_stops, "must raise NonFiniteLoss"),
    (toys.StopsAfterTheUpdate, checks.check_diverging_fit_stops, "not finite where the fit stopped"),
    (toys.ScoresTheWrongWay, checks.check_defects_score_higher, "must score higher"),
    (toys.TurnsItsHeatmap, checks.check_heatmap_is_hot_at_the_defect, "hotter inside"),
    (toys.ForgetsItsOptimizer, checks.check_fit_continues_from_its_state, "differs by .* 'predict'"),
    (toys.ForgetsTheLastPhase, checks.check_fit_continues_from_its_state, "scale differs by .* 'scale'"),
    (toys.AugmentsFromTheGlobalGenerator, checks.check_fit_continues_from_its_state, "differs by .* 'predict'"),
    (toys.AugmentsUnseeded, checks.check_same_seed_gives_same_scores, "one seed"),
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
