"""What a drafter is measured on: prompts by domain. No training has seen those of the corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from train.corpus import Corpus, digest
from train.sequences import prompt_lines

Prompt = tuple[int, ...]
DEFAULT_DOMAIN = "prompts"


def corpus_prompts(target: Path, count: int, tokens: int, skip: int = 0) -> dict[str, list[Prompt]]:
    """Of held-out Python files: `source` is cut in the middle of one, `function` ends with a docstring, `chat` asks for
    a function. At most `tokens` each; `count` of each domain behind the first `skip`."""
    tokenizer = AutoTokenizer.from_pretrained(target, local_files_only=True)
    documents = Corpus.collect().held_out
    functions = sorted((f for d in documents for f in d.functions()), key=lambda f: digest(f.path + f.name))
    encoded = [ids for d in documents if len(ids := tokenizer(d.text)["input_ids"]) > 2 * tokens]
    picked = np.random.default_rng(0).permutation(len(encoded))
    found = {
        "source": [tuple(encoded[i][len(encoded[i]) // 2 - tokens :][:tokens]) for i in picked],
        "function": [tuple(tokenizer(f.prompt)["input_ids"]) for f in functions],
    }
    if tokenizer.chat_template:
        chats = [[{"role": "user", "content": f.request}] for f in functions]
        found["chat"] = [
            tuple(tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False)) for c in chats
        ]
    fitting = {domain: [p for p in prompts if len(p) <= tokens] for domain, prompts in found.items()}
    return {domain: prompts[skip : skip + count] for domain, prompts in fitting.items()}


def file_prompts(file: Path, target: Path, count: int, skip: int = 0) -> dict[str, list[Prompt]]:
    """Of a JSON Lines file; a line's `domain` says where it belongs. Raises ConfigError."""
    tokenizer = AutoTokenizer.from_pretrained(target, local_files_only=True)
    found: dict[str, list[Prompt]] = {}
    for content, tokens in prompt_lines(file, tokenizer, str(file)):
        found.setdefault(str(content.get("domain", DEFAULT_DOMAIN)), []).append(tuple(tokens))
    return {domain: prompts[skip : skip + count] for domain, prompts in found.items() if len(prompts) > skip}
