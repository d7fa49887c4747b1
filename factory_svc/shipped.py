"""The base models that come with Chatmill: `base_models/{id}/` with the weights and `entry.yaml`.

`entry.yaml` holds the keys of one version in the registry file. Files, conversation contract and parameter count may be
left out; they are read from the folder.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from chatmill.errors import InvalidArgument
from factory_svc.entry import Entry, from_yaml_data
from factory_svc.model_files import check_weights, list_artifacts, parameter_count, read_contract

FOLDER = Path(__file__).parent / "base_models"


def shipped_entries(folder: Path = FOLDER) -> list[Entry]:
    """Version 1 of every shipped base, with absolute artifact paths.

    Raises:
        InvalidArgument: an entry can't be read.
        FailedPrecondition: a folder is not a complete model.
    """
    return [_read(path) for path in sorted(folder.glob("*/entry.yaml"))]


def _read(path: Path) -> Entry:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise InvalidArgument(f"{path}: expected the keys of a registry entry.", reason="INVALID_REGISTRY")
    model = path.parent
    check_weights(model)
    given = from_yaml_data(model.name, 1, {"kind": "base", **data}, str(path))
    found = read_contract(model)
    entry = replace(
        given,
        shipped=True,
        artifacts=list_artifacts(model, str(model)),
        conversation=replace(
            found,
            system_prompt=given.conversation.system_prompt,
            sampling_defaults=given.conversation.sampling_defaults or found.sampling_defaults,
        ),
        parameter_count=parameter_count(model),
    )
    return entry.with_revision()
