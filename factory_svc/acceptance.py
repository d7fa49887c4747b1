"""Whether a training can be accepted: everything that can be known to be wrong before work starts."""

from __future__ import annotations

import asyncio
from pathlib import Path

from chatmill.errors import FailedPrecondition, InvalidArgument
from factory_svc.bases import Bases
from factory_svc.entry import Entry, check_id
from factory_svc.jobs import JobSpec
from factory_svc.methods import METHODS
from factory_svc.methods.parameters import check_parameters, named_folders
from factory_svc.sources import ItemSource


async def check(spec: JobSpec, bases: Bases, items: ItemSource) -> Entry | None:
    """The base model that a training stands on; None if its method needs none.

    Args:
        spec: what is asked for.
        bases: finds base models.
        items: where conversations come from.

    Raises:
        InvalidArgument: a parameter is wrong; one violation per field.
        NotFound: no such method, base or dataset.
        FailedPrecondition: the training split is empty, or the base can't be trained on.
        PermissionDenied: a folder that a parameter names lies outside the allowed ones.
        Unavailable: the dataset service can't be reached.
    """
    check_id(spec.model_id, "spec.model_id")
    method = METHODS.get(spec.method)
    parameters = check_parameters(method.parameters, spec.parameters, field="spec.parameters")
    for name, folder in named_folders(parameters).items():
        if not Path(folder).is_absolute():
            raise InvalidArgument.field(f"spec.parameters.{name}", f"{folder} must be an absolute path")
        await asyncio.to_thread(bases.check_folder, folder, f"spec.parameters.{name}")
    if method.needs_base and not spec.base:
        raise InvalidArgument.field("spec.base", f"the method {spec.method} needs a base model")
    if not method.needs_base and spec.base:
        raise InvalidArgument.field("spec.base", f"the method {spec.method} takes no base model; leave it empty")
    dataset = await items.describe(spec.dataset)
    if not dataset.training_items:
        raise FailedPrecondition(
            f"{spec.dataset} has no item in its training split. Lower its test_fraction or give it more data.",
            reason="EMPTY_SPLIT",
        )
    if not spec.base:
        return None
    base = await asyncio.to_thread(bases.resolve, spec.base)
    if method.kind != "prompt":
        bases.location(base)
    elif base.kind == "prompt":
        raise FailedPrecondition(
            f"{base.name} is a prompt already; name what it stands on, {base.base}, as the base.",
            reason="NOT_A_BASE",
        )
    return base
