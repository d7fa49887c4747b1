"""Quantised bases give what `generate()` gives on the same quantised weights; tiny ones are left as they are."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from chatmill.errors import FailedPrecondition
from inference_svc.engines.rows import loading
from inference_svc.engines.rows.adapters import read_adapter
from inference_svc.engines.rows.parameters import RowsParameters
from inference_svc.generation import Sampling

from . import tiny

NOISE = {"float32": 2e-2, "bfloat16": 0.25}
"""NF4 products are in bfloat16 whatever the precision of the model, and by another kernel for one row than for many;
logits are of the order of 10."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_output_equals_generate(folder: Path, quantization: str, dtype: str, record_property) -> None:
    parameters = RowsParameters(
        quantization=quantization, smallest_quantized_mib=0, dtype=dtype, device="cpu", max_rows=4, prefill_tokens=64
    )
    base = loading.load(folder, parameters)
    assert base.info.quantisation == quantization
    kinds = {type(module).__name__ for module in base.model.modules()}
    assert {"nf4": "Linear4bit", "int8": "Linear8bitLt", "none": "Linear"}[quantization] in kinds
    chance = random.Random(3)
    prompts = [[chance.randrange(10, tiny.VOCABULARY) for _ in range(n)] for n in (1, 3, 20, 70, 40, 70)]
    expected = [tiny.generate(base.model, prompt, 10, ignore_eos=True) for prompt in prompts]
    bench = tiny.Bench(base, parameters)
    for number, prompt in enumerate(prompts):
        bench.add(str(number), prompt, Sampling(temperature=0, max_output_tokens=10, ignore_eos=True))
        bench.scheduler.step()
    bench.run()
    ties = 0
    for number, prompt in enumerate(prompts):
        got = bench.ids(str(number))
        if got != expected[number]:
            noise = NOISE["bfloat16" if quantization == "int8" else dtype]
            assert tiny.is_tie(base.model, prompt, expected[number], got, noise), number
            ties += 1
    record_property("ties", ties)
    assert ties <= (1 if dtype == "float32" and quantization != "int8" else 4)


def test_adapters_mix_on_a_quantised_base(folder: Path, adapter_folders: dict[str, Path]) -> None:
    parameters = RowsParameters(quantization="nf4", smallest_quantized_mib=0, dtype="float32", device="cpu")
    outputs = []
    for lean in (True, False):
        base = loading.load(folder, parameters)
        bench = tiny.Bench(base, RowsParameters(quantization="nf4", lean=lean))
        bank = bench.scheduler.bank
        places = [0, *(bank.put(read_adapter(path, bank.shapes, bank.device)) for path in adapter_folders.values())]
        for place in places:
            sampling = Sampling(temperature=0, max_output_tokens=8, ignore_eos=True)
            bench.add(str(place), [20, 30, 40], sampling, adapter=place)
        bench.run()
        outputs.append([bench.ids(str(place)) for place in places])
    assert outputs[0] == outputs[1]
    assert len(set(map(tuple, outputs[0]))) == 3


def test_quantisation_that_saves_nothing_is_left_out(folder: Path) -> None:
    base = loading.load(folder, RowsParameters(quantization="nf4", device="cpu"))
    assert base.info.quantisation == "none"


def test_a_device_that_is_not_there(folder: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(FailedPrecondition, match="no CUDA"):
        loading.load(folder, RowsParameters(device="cuda"))
