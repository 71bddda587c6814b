"""The prompts that a drafter is measured on, by domain. Those of the corpus are held out from all training."""

from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from train.corpus import Corpus, digest
from train.drafter.sequences import prompt_lines

Prompt = tuple[int, ...]
DEFAULT_DOMAIN = "prompts"


def corpus_prompts(target: Path, count: int, tokens: int, skip: int = 0) -> dict[str, list[Prompt]]:
    """Make prompts from held-out Python files, of at most `tokens` each: `count` per domain, after the first `skip`.

    `source` is cut from the middle of a file, `function` ends with a docstring, `chat` asks for a function.
    """
    tokenizer = AutoTokenizer.from_pretrained(target, local_files_only=True)
    files = Corpus.collect().held_out
    functions = sorted(
        (function for file in files for function in file.functions()), key=lambda f: digest(f.path + f.name)
    )
    encoded = [ids for file in files if len(ids := tokenizer(file.text)["input_ids"]) > 2 * tokens]
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
    """Read prompts from a JSON Lines file, by the `domain` of each line. Raises ConfigError."""
    tokenizer = AutoTokenizer.from_pretrained(target, local_files_only=True)
    found: dict[str, list[Prompt]] = {}
    for content, tokens in prompt_lines(file, tokenizer, str(file)):
        found.setdefault(str(content.get("domain", DEFAULT_DOMAIN)), []).append(tuple(tokens))
    return {domain: prompts[skip : skip + count] for domain, prompts in found.items() if len(prompts) > skip}
