"""What a model is, as text: its input, its options, what it was fitted on, and its calibration."""

from __future__ import annotations

from typing import Any

from ad_jobs.cli.show_auto import auto_text
from ad_jobs.cli.show_fusion import fusion_text, members_lines
from ad_jobs.images.policy import PixelPolicy
from ad_jobs.specs import AUTO
from ad_jobs.values import tiles_text
from cluster.counting import counted
from models.record import networks


def fitted_text(record: dict[str, Any], calibration: dict[str, Any], folder: str) -> str:
    """What was fitted on how many images, and what its first threshold is worth."""
    if "fused" in record:
        what = fusion_text(record, folder)
    else:
        fitted = f"fitted on {_fitted_on(record['data'])}, {record['data']['n_held_out']} held out"
        what = f"model {record['model_id']} ({record['kind']}) in {folder}: {fitted}"
    chosen = [auto_text(record[AUTO])] if AUTO in record else []
    return "\n".join([*chosen, what, calibrated_text(calibration)])


def _fitted_on(data: dict[str, Any]) -> str:
    tiles = data.get("n_tiles_fitted")
    return counted(data["n_fitted"], "image") + (f" ({counted(tiles, 'tile')})" if tiles is not None else "")


def _guess(calibration: dict[str, Any]) -> list[str]:
    """A line about a threshold that too few images have set."""
    target = calibration["target"]
    if calibration["rule"] != "max_fpr" or not target or target * calibration["n_normal"] >= 1:
        return []
    return [f"(a guess, from fewer than {1 / target:.0f} images: set it from more with `retroscan calibrate`)"]


def calibrated_text(calibration: dict[str, Any]) -> str:
    """What `calibrate` set, and what it is worth."""
    return "\n".join([calibration_text(calibration), *_guess(calibration)])


def calibration_text(value: dict[str, Any]) -> str:
    """A threshold, and what it was found to do."""
    what = "normal images flagged" if value["rule"] == "max_fpr" else "anomalous images missed"
    n = value["n_normal"] if value["rule"] == "max_fpr" else value["n_anomalous"]
    return (
        f"threshold {value['threshold']:.6g} ({value['method']}): {value['rate']:.2%} of {n} {what}, "
        f"95 % interval {value['rate_low']:.2%} to {value['rate_high']:.2%}"
    )


def model_text(model: dict[str, Any]) -> str:
    """What a model is, a line for each thing to know."""
    spec, policy, data = model["spec"], model["policy"], model.get("data")
    # What keeps its own resolution is not resized.
    prepared = PixelPolicy.model_validate(policy)
    untold = (
        _OF_THE_INPUT
        if prepared.tiles is None or prepared.tiles.size_px
        else (*_OF_THE_INPUT, "resize", "interpolation")
    )
    lines = [
        f"model {model['model_id']} ({model['kind']}) in {model['uri']}",
        f"  input        {spec['height_px']} x {spec['width_px']} px, channels {policy['channels']}, "
        + ", ".join(f"{name} {plain(policy[name])}" for name in policy if name not in untold),
    ]
    if cut := tiles_text(prepared):
        lines.append(f"  tiles        {cut}")
    if "fused" in model:
        lines += members_lines(model["fused"])
    else:
        options = ", ".join(f"{name} {plain(option)}" for name, option in model["config"].items())
        lines.append(f"  options      {options}")
    for network in networks(model.get("source")):
        licence = network.get("licence") or "not told"
        lines.append(f"  network      {network['name']}, weights={network['weights']}, licence {licence}")
    if AUTO in model:
        lines += [f"  {line}" for line in ("chosen by auto", *auto_text(model[AUTO]).splitlines())]
    if data is not None:
        on, held_out = _fitted_on(data), data["n_held_out"]
        lines.append(f"  fitted on    {on} of {data['normal']}, {held_out} held out, {model['fitted_at']}")
    calibration = model["calibration"]
    none = "none that is whole" if model["damaged"] else "none"
    lines.append(f"  calibration  {calibration_text(calibration) if calibration else none}")
    lines += [f"               {line}" for line in (_guess(calibration) if calibration else [])]
    if model["calibrations"]:
        kept = [f"{one} (current)" if one == model["calibration_id"] else one for one in model["calibrations"]]
        lines.append(f"  kept         {', '.join(kept)}")
    lines += [f"  DAMAGED      {one}" for one in model["damaged"]]
    domain = model["domain"]
    takes = [f"{name} {plain(field)}" for name, field in domain["accepts"].items() if field is not None]
    lines.append(f"  takes        {', '.join(takes) or 'every image'}")
    if domain["seen"]:
        saw = [f"{name} {_counted(found)}" for name, found in domain["seen"].items() if found]
        lines.append(f"  saw          {', '.join(saw)}")
    lines.append(f"  (what it takes stands in {domain['file']}: edited, it is another model)")
    return "\n".join(lines)


_OF_THE_INPUT = ("channels", "height_px", "width_px", "tiles")


def _counted(found: Any) -> str:
    return " + ".join(f"{name} ({n})" for name, n in found.items()) if isinstance(found, dict) else plain(found)


def plain(value: Any) -> str:
    """An option's value in a line of text."""
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, list | tuple) else str(value)
