"""Random tiny models and a scheduler that is driven by hand, so that a test says exactly what happens at which step."""

from __future__ import annotations

import functools
from collections import defaultdict
from dataclasses import dataclass, field, replace

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from chatmill.errors import ChatmillError
from inference_svc.engines.base import BaseInfo
from inference_svc.engines.rows.detokenize import StopFinder, TextTable
from inference_svc.engines.rows.loading import Loaded
from inference_svc.engines.rows.parameters import RowsParameters
from inference_svc.engines.rows.prefix_cache import PrefixCache
from inference_svc.engines.rows.row import Row
from inference_svc.engines.rows.sampling import RowSampling
from inference_svc.engines.rows.steps import make_scheduler
from inference_svc.generation import Delta, EngineEvent, Finished, GenerationRequest, Sampling

VOCABULARY = 384
CONTEXT = 512
TEXTS = [
    "Hello, how can I help you today? I would like to return my order, it never arrived.",
    "您好，请问有什么可以帮您？我想退货，订单一直没有收到。谢谢！",
    "naïve café — “quotes” 🙂👍🏽 مرحبا",
    '{"name": "transfer_to_human", "arguments": {"reason": "complaint"}}',
]
SPECIAL = ["<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("Llama", {}),
    "llama-mha": ("Llama", {"num_key_value_heads": 4, "attention_bias": True}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "mistral-sliding": ("Mistral", {"sliding_window": 24}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 24}),
    "phi": ("Phi", {}),
    "gpt-neox": ("GPTNeoX", {}),
    "gpt2": ("GPT2", {}),
    "bloom": ("Bloom", {}),
    "opt": ("OPT", {}),
}
CLASS_NAMES = {"GPT2": "GPT2LMHeadModel"}


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE over a few sentences."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXTS * 4, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    fast.chat_template = TEMPLATE
    return fast


@functools.cache
def model(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model of a family, in float32, with weights large enough that its choices are not ties."""
    name, extra = FAMILIES[family]
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if name in ("Phi", "GPTNeoX", "GPT2", "Bloom", "OPT") else 2,
        "max_position_embeddings": CONTEXT,
        "word_embed_proj_dim": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **extra,
    }
    config_class = getattr(transformers, f"{name}Config")
    known = {**config_class().to_dict(), **dict.fromkeys(config_class.attribute_map)}
    config = config_class(**{key: value for key, value in common.items() if key in known or key == "head_dim"})
    torch.manual_seed(seed)
    made = getattr(transformers, CLASS_NAMES.get(name, f"{name}ForCausalLM"))(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.12)
    made.generation_config.eos_token_id = 2
    return made.requires_grad_(False)


def loaded(family: str = "llama", seed: int = 0) -> Loaded:
    """A model as `loading.load` would give it."""
    made = model(family, seed)
    info = BaseInfo(context_length=CONTEXT, vocabulary_size=VOCABULARY, end_token_ids=(2,))
    return Loaded(made, tokenizer(), info)


@dataclass
class Bench:
    """A scheduler with its events by request."""

    base: Loaded
    parameters: RowsParameters = RowsParameters(quantization="none", prefix_cache_tokens=4096, prefill_tokens=64)  # noqa: RUF009
    events: dict[str, list[EngineEvent]] = field(default_factory=lambda: defaultdict(list))
    errors: dict[str, ChatmillError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cache = PrefixCache(self.parameters.prefix_cache_tokens)
        self.table = TextTable(self.base.tokenizer)
        self.scheduler = make_scheduler(
            self.base,
            self.parameters,
            self.cache,
            self.table,
            emit=lambda row, event: self.events[row.request.request_id].append(event),
            fail=lambda row, error: self.errors.__setitem__(row.request.request_id, error),
        )

    def add(self, name: str, prompt: list[int], sampling: Sampling, **changes: object) -> Row:
        """Queue a request with ready token ids."""
        ends = frozenset(self.base.info.end_token_ids)
        row = Row(
            request=GenerationRequest(name, token_ids=tuple(prompt), sampling=sampling),
            prompt=list(prompt),
            sampling=RowSampling(sampling, sampling.seed or 0, tuple(ends), prompt),
            text=self.table.stream(),
            stops=StopFinder(sampling.stop_sequences, include=sampling.include_stop)
            if sampling.stop_sequences
            else None,
            end_ids=ends,
            limit=sampling.max_output_tokens or 16,
        )
        row = replace(row, **changes) if changes else row
        self.scheduler.add(row)
        return row

    def run(self) -> None:
        """Step until nothing is left."""
        steps = 0
        while not self.scheduler.idle:
            self.scheduler.step()
            steps += 1
            assert steps < 20_000, "the scheduler does not come to an end"

    def text(self, name: str) -> str:
        """All text of a request."""
        return "".join(event.text for event in self.events[name] if isinstance(event, Delta))

    def ids(self, name: str) -> list[int]:
        """All tokens of a request, the end-of-turn token excluded."""
        return [token for event in self.events[name] if isinstance(event, Delta) for token in event.token_ids]

    def end(self, name: str) -> Finished:
        """The last event of a request, which must be the only one of its kind."""
        ends = [event for event in self.events[name] if isinstance(event, Finished)]
        assert len(ends) == 1, f"{name} has {len(ends)} ends"
        assert self.events[name][-1] is ends[0]
        return ends[0]


def generate(base: PreTrainedModel, prompt: list[int], count: int, *, ignore_eos: bool = False) -> list[int]:
    """What Transformers generates greedily, the end-of-turn token excluded."""
    ids = torch.tensor([prompt], device=base.device)
    out = base.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None if ignore_eos else 2,
        pad_token_id=0,
    )
    new: list[int] = out[0, len(prompt) :].tolist()
    return new[: new.index(2)] if not ignore_eos and 2 in new else new


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """The model, its 4-bit layers told to multiply by the unpacked weights in the precision of what comes in.

    Where the processor has bfloat16, bitsandbytes multiplies in it, which is coarser than what is compared with it.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def is_tie(base: PreTrainedModel, prompt: list[int], expected: list[int], got: list[int], noise: float) -> bool:
    """Whether two outputs part at a position where the two tokens' logits differ by no more than `noise`."""
    for place in range(max(len(expected), len(got))):
        left = expected[place] if place < len(expected) else 2
        right = got[place] if place < len(got) else 2
        if left != right:
            with torch.inference_mode():
                logits = base(torch.tensor([prompt + expected[:place]], device=base.device)).logits[0, -1].float()
            return abs(float(logits[left] - logits[right])) <= noise
    return False
