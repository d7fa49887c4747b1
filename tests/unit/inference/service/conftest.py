"""Fixtures of the inference service's tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import serving_fakes as fakes


@pytest.fixture
async def door(tmp_path):
    """The service with one scripted engine per model."""
    async with fakes.open_door(tmp_path) as opened:
        yield opened
