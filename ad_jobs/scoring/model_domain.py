"""domain.json, beside detector.json: what a model takes, bound into its id."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ad_jobs.errors import UsageError, flaw
from ad_jobs.images.domain import Domain, DomainFile
from cluster import storage
from models import record

log = logging.getLogger("retroscan.model")

DOMAIN = "domain.json"


def id_under(found: dict[str, Any], domain: DomainFile) -> str:
    """The id of a model of this record under a domain: that of its record, where the fit wrote that very domain."""
    if domain == DomainFile() and record.DOMAIN_SHA256 not in found:
        return str(found["model_id"])
    return record.model_id({**found, record.DOMAIN_SHA256: domain_sha256(domain)})


def read_domain(folder: Path, uri: str, found: dict[str, Any]) -> DomainFile:
    """What the model takes: everything, if it is of a version without domain.json.

    Raises:
        UsageError: it is gone, or holds something else.
    """
    path = folder / DOMAIN
    if not path.is_file():
        if record.DOMAIN_SHA256 in found:
            raise UsageError(
                f"A model whose fit wrote {DOMAIN} needs it.",
                f"{uri}, without it",
                'Restore it, or write {"accepts": {}} there: it then takes every object, as another model.',
            )
        return DomainFile()
    try:
        domain = DomainFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UsageError(
            f"{DOMAIN} says what a model takes.",
            f"{storage.join(uri, DOMAIN)}: {flaw(error)}",
            f"The fields of accepts are {', '.join(Domain.model_fields)}; null in one excludes nothing.",
        ) from error
    if found.get(record.DOMAIN_SHA256) != domain_sha256(domain):
        log.info("%s of %s was edited since the fit: it counts as another model.", DOMAIN, uri)
    return domain


def domain_sha256(domain: DomainFile) -> str:
    """64 hex digits over what a domain.json says, however it is laid out."""
    return hashlib.sha256(json.dumps(domain.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
