"""Makes a tiny random Llama for the real vLLM on a CPU: weights, tokenizer and chat template, nothing downloaded.

    .venv-vllm/bin/python deploy/tiny_model.py OUTDIR [--context 4096]

It needs torch, transformers and tokenizers, so it runs under vLLM's own interpreter (`deploy/engine python` names it).
What the model says is meaningless and always the same; what matters is that every token is really computed.
"""

import argparse
import itertools
import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing torch takes seconds, which a run that finds the model already made need not wait for
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 20
VOCABULARY = 2048
PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
ROLES = ("system", "user", "assistant", "tool")
SPECIAL_TOKENS = [PAD, BEGIN, END, *(f"<|{role}|>" for role in ROLES)]

# Tools are described in the way the hermes parser of vLLM expects answers: <tool_call>{json}</tool_call>.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- if tools -%}
<|system|>Call a function with <tool_call>{"name": ..., "arguments": ...}</tool_call>. {{ tools | tojson }}<|end|>
{%- endif -%}
{%- for message in messages -%}
<|{{ message.role }}|>{{ message.content or '' }}
{%- for call in message.tool_calls or [] -%}
<tool_call>{{ call.function | tojson }}</tool_call>
{%- endfor -%}
<|end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""


def lines() -> Iterator[str]:
    """Text to train the tokenizer on: made-up words, their frequency falling with their rank as in real languages."""
    source = random.Random(SEED)
    syllables = ["".join(pair) for pair in itertools.product("bdfghklmnprstvz", "aeiou")]
    words = ["".join(source.choices(syllables, k=source.randint(1, 4))) for _ in range(4000)]
    frequency = [1 / rank for rank in range(8, len(words) + 8)]
    for _ in range(600):
        yield " ".join(source.choices(words, frequency, k=120))


def trained_tokenizer(context: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer with the special tokens and the chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def random_llama(context: int, tokenizer: "PreTrainedTokenizerFast") -> "LlamaForCausalLM":
    """A Llama of 2 layers whose greedy answer is whole words; sampling gives any token, broken UTF-8 included."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,  # the smallest head the CPU attention of vLLM takes
        max_position_embeddings=context,
        # tied to the input, random weights answer with the token they were given, for ever
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    wordless = [i for i in range(len(tokenizer)) if not tokenizer.decode([i]).strip().isalpha()]
    wordless += [i for i in range(len(tokenizer)) if not tokenizer.decode([i]).isascii()]
    with torch.no_grad():
        model.lm_head.weight[wordless + tokenizer.all_special_ids] = 0
    return model


def already_made(folder: Path, context: int) -> bool:
    """Whether `folder` holds this very model: weights are there and the context is the one asked for."""
    config = folder / "config.json"
    if not (folder / "model.safetensors").exists() or not config.exists():
        return False
    return bool(json.loads(config.read_text())["max_position_embeddings"] == context)


def make(folder: Path, context: int) -> None:
    """Makes the model; `folder` appears only when it is whole, so a broken run leaves nothing half done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # two runs may make it at once (the demo and the tests share the folder): each in a place of its own
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    partial.chmod(0o755)
    tokenizer = trained_tokenizer(context)
    tokenizer.save_pretrained(partial)
    model = random_llama(context, tokenizer)
    model.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    print(f"tiny model: {folder} ({model.num_parameters()} parameters, {len(tokenizer)} tokens, context {context})")


def main() -> None:
    """Makes the model unless it is already there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="OUTDIR")
    parser.add_argument("--context", type=int, default=4096, help="longest prompt + answer, in tokens (4096)")
    options = parser.parse_args()
    if already_made(options.folder, options.context):
        print(f"tiny model: {options.folder} is already there")
        return
    make(options.folder, options.context)


if __name__ == "__main__":
    main()
