"""What every derived object is alike in: who made it of what, its UIDs, its times; the same bytes every time."""

from __future__ import annotations

import json
import uuid
from datetime import datetime
from hashlib import sha256
from io import BytesIO
from typing import Any, NamedTuple

from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset

from ad_jobs.exporting.dicom_header import Header
from ad_jobs.images.libraries import quiet
from ad_jobs.results.run import ModelRef

# Of codes that no standard has, PS3.16 8.2.
SCHEME = "99RETROSCAN"
RESEARCH = "for research and quality use, not for diagnosis"
# In a study they stand behind what was acquired; the run's models follow each other.
SERIES_NUMBERS = {"dicom-sc": 9100, "dicom-pm": 9200, "dicom-sr": 9300, "dicom-ko": 9400}
_SERIES = {"dicom-sc": "heatmaps", "dicom-pm": "score maps", "dicom-sr": "scores", "dicom-ko": "accepted by reviewers"}


def code(value: str, meaning: str) -> CodedConcept:
    """A code of retroscan's own."""
    return CodedConcept(value, SCHEME, meaning)


class Maker(NamedTuple):
    """Who derives objects: this version of retroscan, of a run and perhaps a decision, in one format."""

    format: str
    version: str
    run_id: str
    run_digest: str
    decision_id: str | None
    # When what is told was decided: an object says the same whenever it is written.
    moment: datetime
    models: tuple[ModelRef, ...]

    def uid(self, *what: object) -> str:
        """The UID of something of this run, the same every time (PS3.5 B.2): a UUID from a hash, version 8."""
        deciding = [self.format, self.version, self.run_id, self.run_digest, self.decision_id, *map(str, what)]
        digest = bytearray(sha256(json.dumps(deciding).encode()).digest()[:16])
        # RFC 9562, 5.8.
        digest[6] = digest[6] & 0x0F | 0x80
        digest[8] = digest[8] & 0x3F | 0x80
        return f"2.25.{uuid.UUID(bytes=bytes(digest)).int}"

    def model(self, model_id: str) -> ModelRef:
        """One of the run's models."""
        return next(model for model in self.models if model.model_id == model_id)

    def of_whom(self, model_id: str | None) -> str:
        """Who made something of what, in one sentence."""
        who = [f"retroscan {self.version}", f"run {self.run_id}"]
        if model_id is not None:
            who.insert(1, f"model {model_id} ({self.model(model_id).kind})")
        if self.decision_id is not None:
            who.append(f"decision {self.decision_id}")
        return f"{', '.join(who)}; {RESEARCH}"

    def series(self, header: Header, model_id: str | None) -> dict[str, Any]:
        """What highdicom wants to know of the series that an object belongs to: one a study, format and model."""
        known = [model.model_id for model in self.models]
        number = SERIES_NUMBERS[self.format] + (0 if model_id is None else known.index(model_id))
        return {
            "series_instance_uid": self.uid("series", header.study, model_id),
            "series_number": number,
            "series_description": f"retroscan {_SERIES[self.format]}, research, not for diagnosis",
            "manufacturer": "retroscan",
            "manufacturer_model_name": "retroscan" if model_id is None else f"retroscan {self.model(model_id).kind}",
            "software_versions": self.version,
            "device_serial_number": model_id or self.run_id,
        }

    def stamped(self, made: Dataset, header: Header, moment: datetime | None = None) -> bytes:
        """The bytes of a derived object, filed where its source is; its times are of what it tells."""
        header.file(made)
        local = header.local(moment or self.moment)
        day, time = f"{local:%Y%m%d}", f"{local:%H%M%S}"
        for name in ("InstanceCreation", "Content", "Series"):
            setattr(made, f"{name}Date", day)
            setattr(made, f"{name}Time", time)
        if "DateOfSecondaryCapture" in made:
            made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture = day, time
        for item in made.get("ContributingEquipmentSequence", []):
            item.ContributionDateTime = f"{day}{time}"
        buffer = BytesIO()
        # A warning would quote what it is about.
        with quiet():
            made.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()
