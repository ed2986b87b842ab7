"""The rules of the contract for how a detector learns, and for what it then finds; as `checks` has them."""

from __future__ import annotations

import copy

import torch
from contract.given import FEW, FITTED, anomalous, fitted, images
from contract.maker import SIZE_PX, Maker, fit, steps
from sklearn.metrics import roc_auc_score
from textures import with_defects
from torch import Tensor

from models.detector import Batch, Learner
from models.errors import NonFiniteLoss
from models.runtime import Runtime

LARGE_PX = (64, 64)  # where a defect has to be found
# Training repeats the same sums in the same order; only the frozen source may see other batch mates.
RESUME_TOLERANCE = 1e-5


def check_every_parameter_learns(make: Maker) -> None:
    detector = make()
    trainable = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    assert bool(trainable) == make.trained, "a detector has something to learn where its configuration counts epochs"
    learnt: set[str] = set()
    for name, parameter in trainable.items():

        def note(tensor: Tensor, name: str = name) -> None:
            if tensor.grad is not None and bool(tensor.grad.ne(0).any()):
                learnt.add(name)

        parameter.register_post_accumulate_grad_hook(note)
    fit(detector, images(FEW, make, seed=0), anomalous(make, SIZE_PX))
    missing = sorted(trainable.keys() - learnt)
    assert not missing, f"no gradient in any phase for {missing}"


def check_losses_are_finite_scalars(make: Maker) -> None:
    """What `step` reports goes into the curve: one number a name, detached, at least in one phase."""
    detector = make()
    learner = detector.learner(Runtime())
    data, bad = images(FEW, make, seed=0), anomalous(make, SIZE_PX)
    reported = False
    for number, phase in enumerate(learner.phases):
        learner.start(phase.name)
        for epoch in range(phase.epochs):
            for batch in steps(detector, data, number, epoch, phase, bad):
                for name, loss in learner.step(batch).items():
                    reported = True
                    assert loss.ndim == 0, f"loss {name} must be a scalar"
                    assert not loss.requires_grad, f"loss {name} must be detached"
                    assert bool(torch.isfinite(loss)), f"loss {name} must be finite"
            learner.end_epoch()
        learner.finish(phase.name)
    assert reported == make.trained, (
        "some phase must report a loss where the configuration counts epochs, and none else"
    )


def check_non_finite_loss_stops_before_the_update(make: Maker) -> None:
    """A NaN image at the start of every phase that has a loss: NonFiniteLoss, and not one weight moved."""
    detector = make()
    learner = detector.learner(Runtime())
    data, bad = images(FEW, make, seed=0), anomalous(make, SIZE_PX)
    # Positions of their own, so that nothing remembered of a sound image stands in.
    poison = Batch(
        torch.full_like(data[:4], float("nan")), torch.arange(4) + len(data), bad if bad is None else bad[:4]
    )
    stopped = 0
    for number, phase in enumerate(learner.phases):
        # A phase is tried on copies: batch statistics of the poisoned batch must not reach the rest of the fit.
        trial, trial_detector = copy.deepcopy((learner, detector))  # together: the copies belong to each other
        trial.start(phase.name)
        before = {name: p.detach().clone() for name, p in trial_detector.named_parameters()}
        named = _stopping_phase(trial, poison)
        assert named in (None, phase.name), f"the error must name phase {phase.name!r}, names {named!r}"
        stopped += named is not None
        for name, parameter in trial_detector.named_parameters():
            assert torch.equal(before[name], parameter), (
                f"{name} moved in phase {phase.name!r}: update before the check"
            )
        learner.start(phase.name)
        for epoch in range(phase.epochs):
            for batch in steps(detector, data, number, epoch, phase, bad):
                learner.step(batch)
            learner.end_epoch()
        learner.finish(phase.name)
    assert stopped, "a non-finite loss must raise NonFiniteLoss"


def _stopping_phase(learner: Learner, poison: Batch) -> str | None:
    """The phase that NonFiniteLoss names; None from a phase that has no loss to be non-finite."""
    try:
        losses = learner.step(poison)
    except NonFiniteLoss as error:
        return error.phase
    assert not losses, f"a phase must stop at a non-finite loss, reported {losses}"
    return None


def check_held_out_images_do_not_train(make: Maker) -> None:
    """Other held-out images give other constants, never other parameters or running statistics of a network."""
    data, bad = images(FEW, make, seed=0), anomalous(make, SIZE_PX)
    others = data.clone()
    others[3::4] = images(FEW, make, seed=7)[3::4]  # those that the fit holds out
    one, other = make(), make()
    fit(one, data, bad)
    fit(other, others, bad)
    trained = dict(one.named_parameters())
    trained |= {name: b for name, b in one.named_buffers() if "running_" in name}
    after = dict(other.named_parameters()) | dict(other.named_buffers())
    for name, tensor in trained.items():
        assert torch.equal(tensor, after[name]), f"{name} was trained on held-out images"


def check_diverging_fit_stops(make: Maker) -> None:
    detector = Maker(make.entry, {**make.options, "lr": 1e30})()
    try:
        fit(detector, images(FITTED, make, seed=0), anomalous(make, SIZE_PX))
    except NonFiniteLoss:
        for name, parameter in detector.named_parameters():
            assert bool(torch.isfinite(parameter).all()), f"{name} is not finite where the fit stopped"
        return
    raise AssertionError("a fit that diverges must raise NonFiniteLoss")


def check_defects_score_higher(make: Maker) -> None:
    detector = fitted(make, LARGE_PX)
    held_out = images(16, make, LARGE_PX)
    normal, defective = (detector.score(x).image for x in (held_out, with_defects(held_out)[0]))
    auroc = roc_auc_score([0] * 16 + [1] * 16, torch.cat([normal, defective]).numpy())
    assert auroc >= 0.95, f"defects pasted into held-out normals must score higher: AUROC {auroc:.3f}"


def check_heatmap_is_hot_at_the_defect(make: Maker) -> None:
    detector = fitted(make, LARGE_PX)
    defective, masks = with_defects(images(16, make, LARGE_PX))
    heatmaps = detector.score(defective).heatmap
    pairs = zip(heatmaps, masks, strict=True)
    hotter = sum(bool(heat[mask].mean() > heat[~mask].mean()) for heat, mask in pairs)
    assert hotter >= 15, f"heatmaps must be hotter inside the defect than outside; {hotter} of 16 are"


def check_fit_continues_from_its_state(make: Maker) -> None:
    """Stopped in any phase and continued in a fresh detector: the weights of the uninterrupted fit."""
    data, bad = images(FEW, make, seed=0), anomalous(make, SIZE_PX)
    whole = make()
    fit(whole, data, bad)
    expected = whole.state_dict()
    for number, phase in enumerate(whole.learner(Runtime()).phases):
        for epoch in sorted({1, phase.epochs - 1} - {0}):
            state = fit(make(), data, bad, stop=(number, epoch))
            assert state is not None
            continued = make()
            torch.manual_seed(99)  # a restarted worker's generator is elsewhere
            try:
                fit(continued, data, bad, resume=(number, epoch, state))
            except (KeyError, RuntimeError, TypeError) as error:
                raise AssertionError(f"the state of phase {phase.name!r} must load: {error}") from error
            for name, tensor in continued.state_dict().items():
                gap = float((tensor.double() - expected[name].double()).abs().max()) if tensor.numel() else 0.0
                scale = float(expected[name].double().abs().max()) if tensor.numel() else 1.0
                assert gap <= RESUME_TOLERANCE * max(scale, 1e-6), (
                    f"{name} differs by {gap:.1e} after continuing from epoch {epoch} of {phase.name!r}"
                )


def check_same_seed_gives_same_scores(make: Maker) -> None:
    batch = images(4, make)
    scores = []
    for _ in range(2):
        detector = Maker(make.entry, make.options)()  # a maker of its own: drawn anew, not copied
        fit(detector, images(FEW, make, seed=0), anomalous(make, SIZE_PX))
        scores.append(detector.score(batch))
    for one, other in zip(*scores, strict=True):
        assert torch.equal(one, other), "two fits with one seed must give equal scores"
