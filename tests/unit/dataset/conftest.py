"""What the dataset tests share: conversations in every shape, and the public data when they are there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataset_svc.catalog import Catalog, Created, CreateRequest
from dataset_svc.classes import DATASET_CLASSES

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.fixture
def shared() -> Path:
    """The folder of public conversations beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the public conversations are not beside this clone (../shared/data)")
    return SHARED


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """A catalog that may read the test's folder and the public conversations."""
    return Catalog(tmp_path / "home", [tmp_path, SHARED], DATASET_CLASSES)


Make = Callable[..., Created]


@pytest.fixture
def make(catalog: Catalog) -> Make:
    """Creates a dataset without progress or cancel."""

    def create(*sources: Path, dataset_id: str = "d", **fields: Any) -> Created:
        request = CreateRequest(dataset_id, [str(source) for source in sources], **fields)
        return catalog.create(request, lambda _: None, lambda: None)

    return create
