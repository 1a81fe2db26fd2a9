"""Names that a promotion uses: of registered models, of their aliases, and of environments."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

LONGEST = 255
"""Characters of a registered model's name or alias (MLflow 3.17; its database has 256)."""
# MLflow takes more, but the name is also written in MODEL@ALIAS and between quotes in a search.
_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]*")
_ALIAS = re.compile(r"[A-Za-z0-9_-]+")
_VERSION = re.compile(r"[vV][0-9]+")
_ENVIRONMENT = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def check_model(name: str) -> str:
    """``name`` if a registered model may be called that; else ValueError."""
    if not _MODEL.fullmatch(name) or len(name) > LONGEST:
        raise ValueError(
            f"a model's name has at most {LONGEST} letters, digits, '_', '.', '-' and blanks, such as moonflow"
        )
    return name


def check_alias(alias: str) -> str:
    """``alias`` if MLflow takes it as an alias; else ValueError."""
    if not _ALIAS.fullmatch(alias) or len(alias) > LONGEST:
        raise ValueError(f"an alias has at most {LONGEST} letters, digits, '_' and '-', such as champion")
    if alias.lower() == "latest" or _VERSION.fullmatch(alias):
        raise ValueError(f"MLflow keeps the alias {alias} for itself: choose another, such as champion")
    return alias


def check_environment(name: str) -> str:
    """``name`` if it can be an overlay's folder; else ValueError."""
    if not _ENVIRONMENT.fullmatch(name):
        raise ValueError("an environment is a folder of overlays/: lower-case letters, digits and '-', such as prod")
    return name


def check_champion(reference: str) -> str:
    """``reference`` if it is empty or MODEL@ALIAS; else ValueError."""
    if reference:
        model, at, alias = reference.partition("@")
        if not (model and at and alias):
            raise ValueError("write MODEL@ALIAS, or leave it empty")
        check_model(model)
        check_alias(alias)
    return reference


Model = Annotated[str, AfterValidator(check_model)]
Alias = Annotated[str, AfterValidator(check_alias)]
Environment = Annotated[str, AfterValidator(check_environment)]
Champion = Annotated[str, AfterValidator(check_champion)]
