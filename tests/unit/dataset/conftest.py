"""What the dataset tests share: conversations in every shape, and the public data when they are there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from chatmill.dataset import v1
from chatmill.runtime.testing import Harness, local_config, running
from dataset_svc.__main__ import build
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


Mesh = tuple[v1.DatasetServiceStub, v1.DatasetAdminServiceStub, Path]


def words(number: int) -> str:
    """A text of letters that differs from number to number; digits alone would make near-duplicates."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def conversation(number: int, **more: object) -> dict[str, object]:
    return {
        "id": f"C_{number}",
        "messages": [
            {"role": "customer", "content": f"Where is my {words(number)}?"},
            {"role": "agent", "content": "It is on its way."},
        ],
        **more,
    }


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    config = local_config(tmp_path / "home", {"dataset.roots": str(tmp_path / "data")})
    (tmp_path / "data").mkdir()
    async with running(await build(config), config) as harness:
        yield stubs(harness, tmp_path / "data")


def stubs(harness: Harness, data: Path) -> Mesh:
    return v1.DatasetServiceStub(harness.channel), v1.DatasetAdminServiceStub(harness.channel), data


async def create(admin: v1.DatasetAdminServiceStub, **fields: object) -> list[v1.CreateDatasetResponse]:
    return [event async for event in admin.CreateDataset(v1.CreateDatasetRequest(**fields))]
