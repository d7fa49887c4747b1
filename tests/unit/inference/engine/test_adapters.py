"""Rows of different adapters in one batch get what PEFT gives each alone; unsafe and foreign adapters are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from chatmill.errors import FailedPrecondition, NotFound, ResourceExhausted
from inference_svc.engines.rows.adapters import linear_shapes, read_adapter
from inference_svc.engines.rows.parameters import RowsParameters
from inference_svc.generation import Sampling

from . import tiny

NOISE = 1e-3
"""Adapters are summed in another order than PEFT does; logits are of the order of 10."""

SHAPES = {
    "plain": {"r": 4, "lora_alpha": 16},
    "wide": {"r": 16, "lora_alpha": 8, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"q_proj": 8, "attention.query_key_value": 8},
        "alpha_pattern": {"layers.0.*": 32},
    },
    "part": {"r": 2, "lora_alpha": 4, "part": True},
}


def save_adapter(path: Path, family: str, seed: int, **shape: object) -> Path:
    """A PEFT adapter with random weights, saved as PEFT saves it."""
    made = tiny.model.__wrapped__(family)
    part = shape.pop("part", False)
    names = {"q_proj", "v_proj"} if family == "llama" else {"query_key_value"}
    targets = names if part else "all-linear"
    model = get_peft_model(made, LoraConfig(target_modules=targets, task_type="CAUSAL_LM", **shape))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.1)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=["llama", "gpt-neox"])
def adapters(request, tmp_path_factory) -> tuple[str, dict[str, Path]]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, {
        name: save_adapter(folder / name, request.param, seed, **dict(shape))
        for seed, (name, shape) in enumerate(SHAPES.items())
    }


@pytest.mark.parametrize("lean", [True, False])
def test_a_mixed_batch_gives_what_peft_gives(adapters, lean) -> None:
    family, paths = adapters
    bench = tiny.Bench(
        tiny.loaded(family), RowsParameters(quantization="none", max_rows=6, prefill_tokens=48, lean=lean)
    )
    bank = bench.scheduler.bank
    places = {name: bank.put(read_adapter(path, bank.shapes, bank.device)) for name, path in paths.items()}
    places["base"] = 0
    prompts = {
        f"{name} {number}": [20 + (number * 37 + place * 11 + n * 7) % 300 for n in range(5 + 30 * number)]
        for name, place in places.items()
        for number in range(3)
    }
    for number, (name, prompt) in enumerate(prompts.items()):
        index = places[name.split()[0]]
        sampling = Sampling(temperature=0, max_output_tokens=12, ignore_eos=True)
        bench.add(name, prompt, sampling, adapter=index, root=(index, ""))
        if number % 3 == 0:
            bench.scheduler.step()
    bench.run()
    ties = 0
    for name, place in places.items():
        plain = tiny.model.__wrapped__(family)
        reference = plain if place == 0 else PeftModel.from_pretrained(plain, str(paths[name]))
        for number in range(3):
            prompt = prompts[f"{name} {number}"]
            expected = tiny.generate(reference, prompt, 12, ignore_eos=True)
            got = bench.ids(f"{name} {number}")
            if got != expected:
                assert tiny.is_tie(reference, prompt, expected, got, NOISE), (name, number)
                ties += 1
    assert ties <= 1


def test_adapters_differ_from_the_base(adapters) -> None:
    """Guards the test above: adapters that change nothing would pass it."""
    family, paths = adapters
    plain = tiny.model.__wrapped__(family)
    prompt = list(range(20, 60))
    outputs = {tuple(tiny.generate(plain, prompt, 12, ignore_eos=True))}
    for path in paths.values():
        model = PeftModel.from_pretrained(tiny.model.__wrapped__(family), str(path))
        outputs.add(tuple(tiny.generate(model, prompt, 12, ignore_eos=True)))
    assert len(outputs) == len(paths) + 1


@pytest.fixture
def adapter(tmp_path) -> Path:
    return save_adapter(tmp_path / "adapter", "llama", 0, r=4)


def shapes() -> dict[str, tuple[int, int]]:
    return linear_shapes(tiny.model("llama"))


def read(path: Path):
    return read_adapter(path, shapes(), torch.device("cpu"))


def test_an_adapter_of_another_base_is_refused(tmp_path) -> None:
    path = save_adapter(tmp_path / "other", "gpt-neox", 0, r=4)
    with pytest.raises(FailedPrecondition, match="made for another base") as raised:
        read(path)
    assert raised.value.reason == "ADAPTER_MISMATCH"


def test_a_corrupt_file_is_refused(adapter) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FailedPrecondition) as raised:
        read(adapter)
    assert raised.value.reason == "CORRUPT_WEIGHTS"


def test_pickled_weights_are_never_opened(adapter) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(FailedPrecondition) as raised:
        read(adapter)
    assert raised.value.reason == "UNSAFE_WEIGHTS"


def test_weights_that_are_no_numbers_are_refused(adapter) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(FailedPrecondition, match="no numbers"):
        read(adapter)


@pytest.mark.parametrize("change", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}])
def test_other_kinds_are_refused_with_the_way_out(adapter, change) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(FailedPrecondition, match="serve it as a base") as raised:
        read(adapter)
    assert raised.value.reason == "ADAPTER_KIND"


def test_a_folder_that_is_not_there(adapter) -> None:
    shutil.rmtree(adapter)
    with pytest.raises(NotFound):
        read(adapter)


def test_the_bank_has_an_end(adapter) -> None:
    bank = tiny.Bench(tiny.loaded(), RowsParameters(quantization="none", max_adapters=1)).scheduler.bank
    lora = read(adapter)
    index = bank.put(lora)
    with pytest.raises(ResourceExhausted):
        bank.put(lora)
    bank.drop(index)
    assert bank.put(lora) == index
