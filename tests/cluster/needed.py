"""What the project needs, as the deployment files must have it."""

from __future__ import annotations

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ad_jobs.doctor import REQUIREMENTS


def specifiers() -> dict[str, SpecifierSet]:
    """The versions of each package that the project runs with."""
    return {requirement.name: requirement.specifier for requirement in map(Requirement, REQUIREMENTS)}
