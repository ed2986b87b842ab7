"""An archive takes what is derived, files it in its source's study, and gives it back as it was."""

from __future__ import annotations

from pathlib import Path

import exportkit as kit
from dicomkit import encode
from orthanc import Orthanc, needed

from ad_jobs.export import export
from ad_jobs.reviewing.verdicts import add, noted


@needed
def test_orthanc_takes_every_object_and_gives_it_back(tmp_path: Path) -> None:
    objects = {"1.dcm": encode(kit.slice_of(1)), "2.dcm": encode(kit.slice_of(2))}
    run = kit.run_over(tmp_path, objects)
    add(run, [noted(kit.table_rows(run)[0], "R1", "accepted")])
    with Orthanc(tmp_path) as server:
        for data in objects.values():
            server.json("instances", data)
        for form, count in (("dicom-sc", 2), ("dicom-pm", 2), ("dicom-sr", 1), ("dicom-ko", 1)):
            export(run=run, out=str(tmp_path / form), format=form)
            paths = sorted((tmp_path / form).glob("*.dcm"))
            assert len(paths) == count
            for path in paths:
                data = path.read_bytes()
                stored = server.json("instances", data)
                assert stored["Status"] == "Success"
                assert server.ask(f"instances/{stored['ID']}/file") == data
                # A second time it is the same object.
                assert server.json("instances", data)["Status"] == "AlreadyStored"
        (study,) = server.json("studies?expand")
        assert study["MainDicomTags"]["StudyInstanceUID"] == kit.STUDY
        modalities = [one["MainDicomTags"]["Modality"] for one in server.json("series?expand")]
        assert sorted(modalities) == ["KO", "MR", "OT", "OT", "SR"]
        assert len(server.json("instances")) == 8
