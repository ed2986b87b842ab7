"""evaluate on a run of the real schema, made without a scan."""

import csv
import hashlib
import json
from pathlib import Path

import fake_run
import numpy as np
import pytest
from hiddenkit import IDENTIFIERS, hide
from sklearn.metrics import average_precision_score, roc_auc_score

from ad_jobs.decide import decide
from ad_jobs.errors import JobError, UsageError
from ad_jobs.evaluate import evaluate
from ad_jobs.images.geometry import Geometry
from ad_jobs.results.run import held_out_copy, read_record, write_record
from ad_jobs.scoring.held_out import Scored, to_parquet
from cluster import storage

PROMISED = ("image_auroc", "image_ap", "f1_max", "accuracy_max", "accuracy_zero_fn", "pixel_auroc", "aupro", "pixel_ap")


def read_labels(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_labels(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def truth(fake: fake_run.FakeRun) -> tuple[np.ndarray, np.ndarray]:
    return np.array(list(fake.scores.values())), np.array([fake.masks[name].any() for name in fake.scores])


def test_writes_every_promised_key_as_value_and_interval(tmp_path):
    fake = fake_run.make(tmp_path)
    evaluation = evaluate(fake.uri, str(fake.labels), bootstrap=50)
    assert json.loads(Path(fake.uri, "evaluation.json").read_text()) == evaluation
    assert (evaluation["n_normal"], evaluation["n_anomalous"]) == (12, 6)
    for key in (*PROMISED, "pixel_auroc_paper_protocol"):
        assert set(evaluation[key]) == {"value", "low", "high"}
        assert 0 <= evaluation[key]["low"] <= evaluation[key]["value"] <= evaluation[key]["high"] <= 1


def test_image_metrics_are_those_of_the_table(tmp_path):
    fake = fake_run.make(tmp_path, normal=30, anomalous=20)
    evaluation = evaluate(fake.uri, str(fake.labels), bootstrap=0)
    scores, anomalous = truth(fake)
    assert evaluation["image_auroc"] == {
        "value": pytest.approx(roc_auc_score(anomalous, scores)),
        "low": None,
        "high": None,
    }
    assert evaluation["image_ap"]["value"] == pytest.approx(average_precision_score(anomalous, scores))
    at = evaluation["at_threshold"]
    assert at["true_positive"] == int((scores[anomalous] > 0.55).sum())
    assert at["false_positive"] == int((scores[~anomalous] > 0.55).sum())
    assert at["true_positive"] + at["false_negative"] == 20
    assert at["false_positive"] + at["true_negative"] == 30


@pytest.mark.parametrize("resize", ["stretch", "pad"])
def test_pixel_metrics_are_those_of_the_heatmaps_without_padding(tmp_path, resize):
    fake = fake_run.make(tmp_path, resize=resize, input_size=(64, 64))
    evaluation = evaluate(fake.uri, str(fake.labels), bootstrap=20)
    values, labels = [], []
    for name, heatmap in fake.heatmaps.items():
        # 120 x 90 in 64 x 64: padded to 48 rows in the middle.
        rows = slice(8, 56) if resize == "pad" else slice(None)
        geometry = Geometry(90, 120, 64, 64, 8 if resize == "pad" else 0, 0, 48 if resize == "pad" else 64, 64)
        values.append(heatmap[rows].ravel())
        labels.append(geometry.mask_to_input(fake.masks[name])[rows].ravel() >= 0.5)
    expected = roc_auc_score(np.concatenate(labels), np.concatenate(values))
    assert evaluation["pixel_auroc"]["value"] == pytest.approx(expected, abs=1e-9)


def test_counts_what_does_not_join(tmp_path):
    fake = fake_run.make(tmp_path, failed=("corrupt", "truncated"), skipped=1)
    # One scored picture loses its label.
    rows = read_labels(fake.labels)[1:]
    rows += [
        {"image": "pictures/failed 000.dcm", "anomalous": "1", "mask": ""},
        {"image": "pictures/skipped 002.dcm", "anomalous": "0", "mask": ""},
        {"image": "pictures/never scanned.png", "anomalous": "0", "mask": ""},
    ]
    write_labels(fake.labels, rows)
    evaluation = evaluate(fake.uri, str(fake.labels), bootstrap=10)
    counted = {key: evaluation[key] for key in evaluation if key.startswith("n_")}
    assert counted == {
        "n_labelled": 20,
        "n_normal": 11,
        "n_anomalous": 6,
        "n_failed": 1,
        "n_skipped": 1,
        "n_missing": 1,
        "n_unlabelled": 2,
    }


def test_missing_heatmaps_give_null_and_the_remedy(tmp_path):
    fake = fake_run.make(tmp_path, keep_heatmaps=False)
    evaluation = evaluate(fake.uri, str(fake.labels), bootstrap=10)
    assert evaluation["pixel_auroc"] == {"value": None, "low": None, "high": None}
    assert evaluation["aupro"]["value"] is None
    assert "--heatmaps all" in evaluation["pixel_note"]
    assert evaluation["image_auroc"]["value"] is not None


def test_no_masks_give_null_and_one_missing_mask_is_told(tmp_path):
    fake = fake_run.make(tmp_path)
    rows = read_labels(fake.labels)
    rows[-1]["mask"] = ""
    write_labels(fake.labels, rows)
    evaluation = evaluate(fake.uri, str(fake.labels), bootstrap=10)
    assert evaluation["pixel_auroc"]["value"] is not None
    assert evaluation["pixel_note"].startswith("1 anomalous")
    write_labels(fake.labels, [{"image": row["image"], "anomalous": row["anomalous"]} for row in rows])
    evaluation = evaluate(fake.uri, str(fake.labels), bootstrap=10)
    assert evaluation["pixel_auroc"]["value"] is None
    assert "mask" in evaluation["pixel_note"]


def test_one_class_only_gives_null(tmp_path):
    fake = fake_run.make(tmp_path, anomalous=0)
    evaluation = evaluate(fake.uri, str(fake.labels), bootstrap=10)
    for key in PROMISED:
        assert evaluation[key] == {"value": None, "low": None, "high": None}
    assert evaluation["at_threshold"]["fnr"]["value"] is None


def test_several_models_first_on_top(tmp_path):
    fake = fake_run.make(tmp_path, normal=20, anomalous=10, models=(fake_run.MODEL, fake_run.SECOND_MODEL))
    evaluation = evaluate(fake.uri, str(fake.labels), bootstrap=10)
    assert evaluation["model_id"] == fake_run.MODEL
    assert list(evaluation["models"]) == [fake_run.SECOND_MODEL]
    scores, anomalous = truth(fake)
    assert evaluation["image_auroc"]["value"] == pytest.approx(roc_auc_score(anomalous, scores))
    other = evaluation["models"][fake_run.SECOND_MODEL]
    assert set(PROMISED) <= set(other)
    assert other["image_auroc"] != evaluation["image_auroc"]


def test_groups_are_drawn_whole(tmp_path):
    fake = fake_run.make(tmp_path, normal=20, anomalous=10)
    alone = evaluate(fake.uri, str(fake.labels), bootstrap=200)
    rows = [row | {"group": f"patient {i // 5}"} for i, row in enumerate(read_labels(fake.labels))]
    write_labels(fake.labels, rows)
    grouped = evaluate(fake.uri, str(fake.labels), bootstrap=200)
    assert (alone["resampled_by"], grouped["resampled_by"]) == ("image", "group")
    assert grouped["pixel_ap"]["value"] == pytest.approx(alone["pixel_ap"]["value"])
    assert grouped["pixel_ap"]["low"] != alone["pixel_ap"]["low"]


def test_same_seed_same_evaluation(tmp_path):
    fake = fake_run.make(tmp_path)
    first, second = (evaluate(fake.uri, str(fake.labels), seed=3, bootstrap=50) for _ in range(2))
    first.pop("evaluated_at"), second.pop("evaluated_at")
    assert first == second


def test_labels_that_cannot_be_used_leave_nothing_behind(tmp_path):
    fake = fake_run.make(tmp_path, normal=1, anomalous=1)
    fake.labels.write_text("image,anomalous\nnowhere/a.png,1\n", encoding="utf-8")
    with pytest.raises(UsageError, match="none of 1 is among"):
        evaluate(fake.uri, str(fake.labels))
    assert not Path(fake.uri, "evaluation.json").exists()


def test_an_unfinished_run_is_refused(tmp_path):
    fake = fake_run.make(tmp_path, finish=False)
    with pytest.raises(UsageError, match="finished"):
        evaluate(fake.uri, str(fake.labels))


def test_a_lost_shard_is_told(tmp_path):
    fake = fake_run.make(tmp_path)
    for shard in Path(fake.uri, "heatmaps").iterdir():
        shard.unlink()
    with pytest.raises(JobError, match="gone"):
        evaluate(fake.uri, str(fake.labels))


@pytest.mark.s3
def test_everything_in_s3(tmp_path, s3):
    fake = fake_run.make(tmp_path)
    root = f"s3://{s3.bucket}/evaluate"
    s3.put_folder(Path(fake.uri), "evaluate/run")
    s3.put_folder(tmp_path / "masks", "evaluate/masks")
    rows = read_labels(fake.labels)
    for row in rows:
        row["image"] = str(tmp_path / row["image"])
    write_labels(fake.labels, rows)
    storage.write_bytes(f"{root}/labels.csv", fake.labels.read_bytes())
    evaluation = evaluate(f"{root}/run", f"{root}/labels.csv", bootstrap=20)
    assert evaluation["pixel_auroc"]["value"] > 0.9
    assert json.loads(storage.read_bytes(f"{root}/run/evaluation.json")) == evaluation


def test_a_decision_is_judged_in_place_of_the_runs_own_flags(tmp_path):
    fake = fake_run.make(tmp_path, normal=30, anomalous=20)
    record = read_record(fake.uri)
    body = to_parquet(Scored(f"{i:064x}", 0, "", False, i / 100) for i in range(99))
    model = record.models[0].model_copy(update={"held_out_sha256": hashlib.sha256(body).hexdigest()})
    Path(held_out_copy(fake.uri, model.model_id)).parent.mkdir()
    Path(held_out_copy(fake.uri, model.model_id)).write_bytes(body)
    write_record(fake.uri, record.model_copy(update={"models": [model]}))
    scores, anomalous = truth(fake)
    of_run = evaluate(fake.uri, str(fake.labels), bootstrap=0)
    decision = decide(run=fake.uri, top=5)
    found = evaluate(fake.uri, str(fake.labels), bootstrap=0, decision=decision["decision_id"])
    highest = np.isin(np.arange(50), np.argsort(-scores, kind="stable")[:5])
    assert found["at_threshold"]["true_positive"] == int((highest & anomalous).sum())
    assert found["at_threshold"]["false_positive"] == int((highest & ~anomalous).sum())
    assert (found["decision"], found["at_threshold"]["threshold"]) == (decision["decision_id"], None)
    assert found["image_auroc"] == of_run["image_auroc"]
    assert of_run["decision"] is None
    # The run's own stays what it is, and so does its report.
    assert json.loads(Path(fake.uri, "evaluation.json").read_text()) == of_run
    beside = Path(fake.uri, "decisions", f"{decision['decision_id']}.evaluation.json")
    assert json.loads(beside.read_text()) == found
    with pytest.raises(UsageError, match=rf"It has {decision['decision_id']}; make one"):
        evaluate(fake.uri, str(fake.labels), decision="0" * 12)
    normal = np.sort(scores[~anomalous])
    assert found["at_threshold"]["tpr_at_5_percent_fpr"] == (scores[anomalous] > normal[-2]).mean()


def test_a_decision_that_is_not_the_runs_is_refused(tmp_path):
    fake = fake_run.make(tmp_path)
    with pytest.raises(UsageError, match=r"one that the run has.*It has none"):
        evaluate(fake.uri, str(fake.labels), bootstrap=0, decision="0" * 12)


def test_labels_of_a_hashed_run_name_images_as_they_are_to_who_has_the_key(tmp_path):
    fake = fake_run.make(tmp_path)
    plain = evaluate(fake.uri, str(fake.labels), bootstrap=0)
    key = tmp_path / "key"
    key.write_bytes(IDENTIFIERS.key)
    with pytest.raises(UsageError, match="is for a run with hashed identifiers"):
        evaluate(fake.uri, str(fake.labels), identifiers_key=key)
    hide(fake.uri, str(fake.pictures))
    with pytest.raises(UsageError, match="--identifiers-key FILE"):
        evaluate(fake.uri, str(fake.labels))
    hidden = evaluate(fake.uri, str(fake.labels), bootstrap=0, identifiers_key=key)
    assert hidden["image_auroc"] == plain["image_auroc"]
    assert hidden["labels"]["uri"] is None
    key.write_bytes(b"another")
    with pytest.raises(UsageError, match="LABELS must name images of the run"):
        evaluate(fake.uri, str(fake.labels), identifiers_key=key)
