"""What importing libraries does, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

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
