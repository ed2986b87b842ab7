"""The page of a GPU run: figures stand where they belong, and what was cut or failed is said."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.report import page

MACHINE = {
    "stage": "machine",
    "card": {
        "name": "NVIDIA X1",
        "memory_gib": 79.6,
        "multiprocessors": 132,
        "driver": "580.1",
        "cuda": "13.0",
        "cudnn": 91002,
    },
    "cores": 16,
    "threads": 16,
    "python": "3.12.3",
    "versions": {"torch": "2.11.0", "triton": None},
    "seconds": 450.0,
    "small": False,
}
JUDGED = {"auroc": 0.9304, "ap": 0.95, "sensitivity": 0.5, "fpr": 0.0625, "held_out": 73, "test": 1517, "score_s": 2.0}


def agreed(**others: Any) -> dict[str, Any]:
    return {
        "stage": "agreement",
        "kind": "padim",
        "size_px": 128,
        "images": 64,
        "fit_s": 1.0,
        "finite": True,
        "scores": [-1.5, 20.0],
        "absolute": 2e-6,
        "relative": 1e-6,
        "beyond": 0,
        "flags_differ": 0,
        "heatmap_share": 3e-6,
        **others,
    }


def rate(images_per_s: float, **others: Any) -> dict[str, Any]:
    row = {"stage": "throughput", "kind": "mkd", "size_px": 128, "batch": 8, "precision": "float32", "way": "scorer"}
    return {**row, "images_per_s": images_per_s, "peak_mib": 1234.4, **others}


def end(stage: str) -> dict[str, Any]:
    return {"stage": "end", "of": stage, "left_s": 1.0}


def test_machine_and_versions() -> None:
    assert (
        "NVIDIA X1 (80 GiB), driver 580.1, CUDA 13.0, cuDNN 91002; 16 cores; Python 3.12.3, torch 2.11.0. 450 s in all."
        in page([MACHINE])
    )


def test_a_trial_says_that_it_is_one() -> None:
    assert "A trial with tiny images" in "\n".join(page([{**MACHINE, "card": None, "small": True}]))


def test_agreement() -> None:
    lines = page([agreed(), agreed(kind="fyd", beyond=3, flags_differ=1), end("agreement")])
    assert "| padim | 128 | -1.5 to 20 | 2.0e-06 | 1.0e-06 | yes | 0 | 3.0e-06 |" in lines
    assert "| fyd | 128 | -1.5 to 20 | 2.0e-06 | 1.0e-06 | no: 3 of 64 beyond | 1 | 3.0e-06 |" in lines


def test_scores_that_are_not_finite_are_no_agreement() -> None:
    assert "| not finite |" in "\n".join(page([agreed(finite=False), end("agreement")]))


def test_throughput_has_a_table_a_size_and_a_row_a_batch() -> None:
    found = [
        rate(2345.6),
        rate(87.61, way="bare", peak_mib=None),
        rate(3000.0, precision="amp"),
        rate(500.0, size_px=256),
    ]
    lines = page([*found, end("throughput")])
    assert lines[lines.index("### 128 px") + 4 :][:3] == [
        "| mkd | 8 | 2,346 (1,234) | 87.6 | 3,000 (1,234) | – |",
        "",
        "### 256 px",
    ]
    assert "| mkd | 8 | 500 (1,234) | – | – | – |" in lines


def test_padim_stands_beside_the_cpu() -> None:
    row = {"stage": "padim", "data": "br35h", "size_px": 128, "fitted_on": 656, "fit_s": 3.14, **JUDGED}
    lines = page([row, end("padim")])
    assert "| br35h | 128 | 656 | 3.1 | 85 | 0.930 | 0.930 | 0.950 | 1517 | 2.0 |" in lines


def test_compiling() -> None:
    row = {
        "stage": "compile",
        "kind": "mkd",
        "size_px": 256,
        "batch": 128,
        "compile_s": 31.2,
        "plain_images_per_s": 4000.0,
        "compiled_images_per_s": 5000.0,
        "relative": 2e-6,
    }
    assert "| mkd | 256 | 128 | 31 | 4,000 | 5,000 | +25% | 2.0e-06 |" in page([row, end("compile")])


def test_cut_epochs_and_other_backbones_are_said() -> None:
    row = {
        "stage": "paper",
        "kind": "fyd",
        "size_px": 224,
        "data": "br35h",
        "fitted_on": 656,
        "epochs": {"epochs": 10, "align_epochs": 100},
        "paper_epochs": {"epochs": 50, "align_epochs": 100},
        "changed": {"backbone": "wide_resnet50_2"},
        "whole_fit_s": 1500.0,
        "fit_s": 60.4,
        **JUDGED,
    }
    assert (
        "| fyd | 224 | epochs 10 of 50 (cut), align_epochs 100 of 100 | backbone wide_resnet50_2 | 60 | 1,500 | 0.930 "
        "| 0.950 | 0.500 | 0.062 |"
    ) in page([row, end("paper")])


def test_what_was_not_measured_is_said_once() -> None:
    failed = {"stage": "agreement", "kind": "ssm", "error": "RuntimeError: no\nmore (ssm.py:1)"}
    left_out = {"stage": "throughput", "kind": "ssm", "size_px": 256, "batch": 8, "skipped": "no time left"}
    lines = page([failed, failed, end("agreement"), left_out, end("throughput")])
    assert lines[lines.index("## Not measured") + 2 :] == [
        "* throughput: where a dash stands, no time was left, or what is below stood in the way",
        "* agreement: ssm: RuntimeError: no",
    ]


def test_a_run_that_was_cut_off_says_in_which_stage() -> None:
    failed = {"stage": "throughput", "kind": "ssm", "error": "RuntimeError: no (ssm.py:1)"}
    assert "* throughput: the run was cut off in it" in page([agreed(), end("agreement"), rate(1.0), failed])


def test_a_stage_that_could_not_begin_was_not_cut_off() -> None:
    failed = {"stage": "compile", "error": "ImportError: no (run.py:1)"}
    assert page([failed])[-1] == "* compile: ImportError: no (run.py:1)"


def test_a_whole_run_lacks_nothing() -> None:
    assert "## Not measured" not in page([MACHINE, agreed(), end("agreement")])
