"""Every method trains for real, and what it leaves behind is what it says."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chatmill.errors import FailedPrecondition, InvalidArgument, NotFound
from factory_svc.methods import METHODS
from factory_svc.methods.parameters import describe
from factory_svc.model_files import parameter_count, read_contract
from factory_svc.task import Progress, TrainingOutcome, TrainingTask
from factory_svc.training import train

from .conftest import HANDOVER, SYSTEM, conversations, scratch

FAST = {"epochs": 4, "batch_size": 4, "learning_rate": 0.01, "max_length": 128, "precision": "fp32"}


def test_the_installed_methods_say_what_every_parameter_means() -> None:
    assert METHODS.names() == ["lora", "prompt", "qlora", "scratch"]
    for method in (METHODS.get(name) for name in METHODS.names()):
        for parameter in describe(method.parameters):
            assert len(parameter.meaning) > 10, parameter
            assert parameter.default_json, parameter


def test_scratch_makes_a_whole_model(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    seen: list[Progress] = []
    task = TrainingTask(
        method="scratch",
        output=tmp_path / "model",
        conversations=conversations(),
        parameters={
            "hidden_size": 64, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 128, "vocabulary": 420,
            "epochs": 40, "batch_size": 8, "learning_rate": 0.005, "max_length": 128, "precision": "fp32",
            "progress_steps": 10,
        },
    )  # fmt: skip
    outcome = train(task, seen.append)
    assert outcome.kind == "base"
    assert outcome.final_loss is not None
    assert outcome.first_loss is not None
    assert outcome.final_loss < 0.5 * outcome.first_loss
    assert outcome.trainable_parameters == outcome.total_parameters == parameter_count(outcome.output)
    assert outcome.steps == 120
    training = [p for p in seen if p.phase == "training" and p.loss is not None]
    assert training[-1].step == training[-1].total_steps == 120
    assert all(p.tokens_per_second and p.tokens_per_second > 0 for p in training)
    assert training[-1].seconds_left == 0

    model = AutoModelForCausalLM.from_pretrained(outcome.output)
    tokenizer = AutoTokenizer.from_pretrained(outcome.output)
    assert model.dtype == torch.bfloat16
    asked = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "This is a scandal!"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    answer = model.float().generate(**prompt, max_new_tokens=60)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True).strip()
    assert answer[-1] == tokenizer.eos_token_id, "a trained model ends its turn"


def test_a_new_tokenizer_keeps_every_text_and_the_tool_call(base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    for text in ("Order 4821, please", "谢谢，订单 88 呢？", "émigré 🙂\n\ttab", HANDOVER):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    ids = tokenizer(HANDOVER)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<tool_call>") == ids[0]
    assert tokenizer.convert_tokens_to_ids("</tool_call>") == ids[-1]
    contract = read_contract(base)
    assert contract.stop_tokens == ("<|end|>",)
    assert contract.sampling_defaults == {"temperature": 0.0}


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_is_trained_and_changes_what_the_base_says(method: str, base: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    before = _digest(base)
    outcome = _adapter(method, base, tmp_path / "adapter")
    assert outcome.kind == "adapter"
    assert 0 < outcome.trainable_parameters < outcome.total_parameters
    assert outcome.final_loss is not None
    assert outcome.first_loss is not None
    assert outcome.final_loss < outcome.first_loss
    assert {p.suffix for p in outcome.output.iterdir()} <= {".safetensors", ".json", ".md"}
    assert _digest(base) == before, "the base is never written"

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        adapted = PeftModel.from_pretrained(model, outcome.output)(input_ids=ids).logits
    assert not torch.allclose(plain, adapted, atol=1e-2)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_adapter(base: Path, tmp_path: Path) -> None:
    first = _adapter("lora", base, tmp_path / "a", seed=7)
    again = _adapter("lora", base, tmp_path / "b", seed=7)
    other = _adapter("lora", base, tmp_path / "c", seed=8)
    weights = [(o.output / "adapter_model.safetensors").read_bytes() for o in (first, again, other)]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_the_last_blocks_alone_are_adapted(base: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    outcome = _adapter("lora", base, tmp_path / "a", last_blocks=1)
    with safe_open(outcome.output / "adapter_model.safetensors", "pt") as file:
        blocks = {key.split(".layers.")[1].split(".")[0] for key in file.keys()}  # noqa: SIM118 (it is no dict)
        parts = {key.split(".lora_")[0].rpartition(".")[2] for key in file.keys()}  # noqa: SIM118
    assert blocks == {"1"}
    assert parts == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    with pytest.raises(InvalidArgument, match="2 blocks"):
        _adapter("lora", base, tmp_path / "b", last_blocks=3)


def test_prompt_chooses_different_examples_and_a_handover(tmp_path: Path) -> None:
    outcome = train(
        TrainingTask(
            method="prompt",
            output=tmp_path / "p",
            conversations=conversations(60),
            base="models/x/versions/1",
            system_prompt=SYSTEM,
            parameters={"examples": 4, "example_characters": 400},
        )
    )
    examples = outcome.prompt["examples"]
    assert outcome.kind == "prompt"
    assert outcome.prompt["system_prompt"] == SYSTEM
    assert 2 <= len(examples) <= 4
    assert sum(len(e["user"]) + len(e["assistant"]) for e in examples) <= 400
    assert any(HANDOVER in e["assistant"] for e in examples)
    assert len({e["user"] for e in examples}) == len(examples)


def test_prompt_takes_the_systems_prompt_of_the_data_when_none_is_given(tmp_path: Path) -> None:
    task = TrainingTask(method="prompt", output=tmp_path / "p", conversations=conversations(9), base="models/x")
    assert train(task).prompt["system_prompt"] == SYSTEM


def test_prompt_needs_no_torch(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from factory_svc.task import TrainingTask
from factory_svc.training import train
from tests.unit.factory.conftest import conversations
output = Path({str(tmp_path / "p")!r})
train(TrainingTask(method="prompt", output=output, conversations=conversations(9), base="models/x"))
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    ("method", "parameters", "wrong"),
    [
        ("lora", {"rank": 0}, "parameters.rank"),
        ("lora", {"learning_rate": -1}, "parameters.learning_rate"),
        ("lora", {"rnak": 8}, "parameters.rnak"),
        ("lora", {"target_modules": " , "}, "parameters.target_modules"),
        ("lora", {"epochs": float("nan")}, "parameters.epochs"),
        ("scratch", {"heads": 3, "kv_heads": 3}, "parameters.heads"),
        ("scratch", {"max_length": 4096}, "parameters.max_length"),
        ("qlora", {"quantisation": "int3"}, "parameters.quantisation"),
        ("prompt", {"examples": -1}, "parameters.examples"),
    ],
)
def test_a_wrong_parameter_is_named(method: str, parameters: dict[str, Any], wrong: str, tmp_path: Path) -> None:
    task = TrainingTask(method=method, output=tmp_path / "x", conversations=conversations(), parameters=parameters)
    with pytest.raises(InvalidArgument) as caught:
        train(dataclasses.replace(task, base="/nowhere"))
    assert [v.field for v in caught.value.violations] == [wrong]
    assert not (tmp_path / "x").exists()


def test_layers_that_do_not_exist_are_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="target_modules"):
        _adapter("lora", base, tmp_path / "x", target_modules="no_such_layer")


def test_an_unknown_method_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="did you mean 'lora'"):
        train(TrainingTask(method="lara", output=tmp_path / "x", conversations=conversations()))


def test_a_method_with_a_base_refuses_to_go_without(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="needs a base"):
        train(TrainingTask(method="lora", output=tmp_path / "x", conversations=conversations()))


@pytest.mark.slow
def test_scratch_takes_a_given_tokenizer(base: Path, tmp_path: Path) -> None:
    scratch(tmp_path / "again", tokenizer=str(base), max_steps=3)
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_scratch_goes_on_from_given_weights(tmp_path: Path) -> None:
    first = scratch(tmp_path / "first", learning_rate=0.01)
    again = scratch(tmp_path / "again", weights=str(first.output), max_steps=3)
    assert first.first_loss is not None
    assert again.first_loss is not None
    assert again.first_loss < 0.9 * first.first_loss
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (first.output / "tokenizer.json").read_bytes()
    with pytest.raises(FailedPrecondition, match=r"holds no config\.json"):
        scratch(tmp_path / "third", weights=str(tmp_path))


def _adapter(method: str, base: Path, output: Path, seed: int = 0, **parameters: Any) -> TrainingOutcome:
    return train(
        TrainingTask(
            method=method,
            output=output,
            base=str(base),
            conversations=conversations(),
            parameters={**FAST, **parameters},
            seed=seed,
        )
    )


def _digest(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
