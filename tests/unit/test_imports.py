"""What importing libraries does, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import torch
from chatmill.imports import import_bitsandbytes
usual = torch.compile
import_bitsandbytes()
assert torch.compile is usual
print([name for name in sys.modules if name.startswith("torch._inductor")])
from bitsandbytes.backends.default import ops
import bitsandbytes.functional as functional
codes, state = functional.quantize_4bit(torch.ones(2, 64), blocksize=64, quant_type="nf4")
print(functional.dequantize_4bit(codes, state).unique().tolist())
scales, code = torch.ones(2), functional.create_dynamic_map()
print(ops._dequantize_blockwise_compute(torch.full((128,), 255), scales, code, 64, torch.float32).unique().tolist())
"""


def test_bitsandbytes_comes_without_a_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["[]", "[1.0]", "[1.0]"]
    assert "kernels-community" not in done.stderr


FINDER = """
import importlib, os, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            print(os.environ.get("GRPC_EXPERIMENTS"))

sys.meta_path.insert(0, Finder())
importlib.import_module(sys.argv[1])
import grpc
"""


@pytest.mark.parametrize(
    "module", ["chatmill.inference.v1", "chatmill.runtime.server", "inference_svc.__main__", "benchmarks.sides.probe"]
)
def test_grpc_finds_its_settings_when_it_is_imported(module: str) -> None:
    """It reads them then and never again."""
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    done = subprocess.run(
        [sys.executable, "-c", FINDER, module], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.splitlines() == ["-event_engine_client,-event_engine_listener,-event_engine_callback_cq"]
