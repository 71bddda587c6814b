"""Blocks against the formulas; checkpoints that fit, and those that do not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.batch import Batch, Row
from engine.drafters import Anchor
from engine.drafters.load import load_dspark
from engine.errors import CheckpointRefused
from engine.models import LoadedModel, load_model
from engine.types import Sampling
from tests.drafters import BLOCK, drafter_config, save_random_drafter
from tests.engine.drafters.reference import Reference
from tests.engine.drafters.rig import CPU, PAGE, Bench, some_tokens

HEADS = [
    {"markov_head_type": "vanilla"},
    {"markov_head_type": "gated"},
    {"markov_head_type": "rnn"},
    {"markov_rank": 0, "confidence_head_with_markov": False},
    {"markov_rank": 0, "enable_confidence_head": False, "confidence_head_with_markov": False},
    {"markov_head_type": "gated", "confidence_head_with_markov": False},
]
Target = tuple[Path, LoadedModel]


@pytest.fixture(scope="module", params=["qwen3", "deepseek_v3"])
def target(request: pytest.FixtureRequest, computed_by: str) -> Target:
    path: Path = request.getfixturevalue(request.param)
    return path, load_model(path, torch.float32, CPU)


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_a_block_follows_the_formulas(target: Target, tmp_path: Path, head: dict[str, object]) -> None:
    """Several requests at once, contexts of any length in any chunks."""
    path, model = target
    drafter = save_random_drafter(path, tmp_path, **head)
    bench = Bench(model, load_dspark(drafter, model))
    prompts = [some_tokens(1, 1), some_tokens(2, 2), some_tokens(3, PAGE + 1), some_tokens(4, 75)]
    chunks: list[list[int]] = [[], [1], [5, 7], [40, 1, 1, 20]]
    anchors = [bench.seen(f"r{i}", p, c) for i, (p, c) in enumerate(zip(prompts, chunks, strict=True))]

    hidden_RKD = bench.drafter._block(anchors)
    block = bench.drafter.propose(anchors, bench.drafter.block_length)

    reference = Reference(path, drafter, drafter_config(path, **head))
    for r, prompt in enumerate(prompts):
        expected = reference.draft(prompt)
        assert torch.allclose(hidden_RKD[r], expected.hidden_KD, atol=1e-4)
        assert block.token_RK[r].tolist() == expected.tokens
        if block.confidence_RK is not None:
            assert torch.allclose(block.confidence_RK[r], expected.confidence_K, atol=1e-5)
    assert (block.confidence_RK is None) == (not drafter_config(path, **head)["enable_confidence_head"])


def test_a_shorter_block_is_the_beginning_of_the_full_one(target: Target, tmp_path: Path) -> None:
    path, model = target
    bench = Bench(model, load_dspark(save_random_drafter(path, tmp_path, markov_head_type="rnn"), model))
    anchors = [bench.seen("r", some_tokens(7, 30), [])]

    whole, some = bench.drafter.propose(anchors, BLOCK), bench.drafter.propose(anchors, 2)

    assert some.token_RK.tolist() == whole.token_RK[:, :2].tolist()
    assert torch.allclose(some.confidence_RK, whole.confidence_RK[:, :2])


def test_rejected_drafts_leave_no_context(target: Target, tmp_path: Path) -> None:
    """A block writes its entries at the positions of the next tokens; the target's features overwrite them."""
    path, model = target
    bench = Bench(model, load_dspark(save_random_drafter(path, tmp_path), model))
    tokens = some_tokens(5, 40)
    once = bench.seen("once", tokens, [])
    first = bench.seen("twice", tokens[:30], [])
    bench.drafter.propose([first], bench.drafter.block_length)
    batch = Batch.of([Row(tokens[29:39], 29, first.tables, 1)], bench.layout, CPU)
    bench.absorb(batch, [None])
    twice = Anchor(tokens[-1], 39, first.tables, Sampling())

    alone, after = bench.drafter._block([once]), bench.drafter._block([twice])

    assert torch.allclose(alone, after, atol=1e-5)


def test_missing_context_is_not_attended_to(target: Target, tmp_path: Path) -> None:
    path, model = target
    bench = Bench(model, load_dspark(save_random_drafter(path, tmp_path), model))
    anchor = bench.seen("r", some_tokens(6, 50), [])
    late = Anchor(anchor.token, anchor.position, anchor.tables, anchor.sampling, context_from=30)
    seen = bench.drafter._block([anchor])
    for records in bench.pages.store.records.values():
        kept = records[anchor.tables.groups["full"].page_ids[:1]].clone()
        before = bench.drafter._block([late])
        records[anchor.tables.groups["full"].page_ids[:1]] = 0
        assert torch.equal(bench.drafter._block([late]), before), "page 0 (tokens 0 to 15) is not looked at"
        records[anchor.tables.groups["full"].page_ids[:1]] = kept
    assert not torch.allclose(before, seen, atol=1e-3)


def test_rotary_angles_are_the_same_in_bfloat16(target: Target, tmp_path: Path) -> None:
    path, model = target
    drafter = save_random_drafter(path, tmp_path)
    models = model, load_model(path, torch.bfloat16, CPU)

    wide, short = (load_dspark(drafter, one).model.rotary_emb(torch.zeros(1), torch.tensor([[900]])) for one in models)

    assert all(torch.equal(a, b) for a, b in zip(wide, short, strict=True))


Change = Callable[[dict[str, torch.Tensor]], object]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("fc.weight"), r"lacks 1 tensors: fc\.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "does not know 1 tensors: extra"),
        (lambda t: t.update({"norm.weight": torch.zeros(3)}), r"misshapes 1 tensors: norm\.weight"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(300, 64)}), "lm_head.weight is not the target's own"),
    ],
)
def test_weights_that_do_not_fit_are_named(target: Target, tmp_path: Path, change: Change, says: str) -> None:
    path, model = target
    drafter = save_random_drafter(path, tmp_path)
    tensors = load_file(drafter / "model.safetensors")
    change(tensors)
    save_file(tensors, drafter / "model.safetensors")

    with pytest.raises(CheckpointRefused, match=says):
        load_dspark(drafter, model)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_target_layers": 9, "target_layer_ids": [0]}, "num_target_layers 9; this one has"),
        ({"target_layer_ids": []}, "target_layer_ids"),
        ({"target_layer_ids": [0, 0]}, "name a layer twice"),
        ({"target_layer_ids": [99]}, r"target_layer_ids \[99\] are outside layers 0 to"),
        ({"mask_token_id": 300}, "mask_token_id 300 is outside"),
        ({"markov_rank": 0}, "confidence_head_with_markov needs a markov_rank"),
        ({"markov_head_type": "magic"}, "markov_head_type"),
        ({"block_size": 0}, "block_size"),
        ({"architectures": ["LlamaForCausalLM"]}, "architecture LlamaForCausalLM is none of"),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_names_its_key(
    target: Target, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    path, model = target
    drafter = save_random_drafter(path, tmp_path)
    (drafter / "config.json").write_text(json.dumps(drafter_config(path, **change)))

    with pytest.raises(CheckpointRefused, match=says):
        load_dspark(drafter, model)


def test_copies_of_the_targets_matrices_are_accepted(target: Target, tmp_path: Path) -> None:
    """Published files have such copies."""
    path, model = target
    drafter = save_random_drafter(path, tmp_path)
    plain = load_dspark(drafter, model)
    own = {name: t for name, t in plain.model.state_dict().items() if "self_attn" not in name}
    tensors = load_file(drafter / "model.safetensors")
    tensors["embed_tokens.weight"] = model.module.get_input_embeddings().weight.clone()
    tensors["lm_head.weight"] = model.module.get_output_embeddings().weight.clone()
    save_file(tensors, drafter / "model.safetensors")

    copied = load_dspark(drafter, model)

    assert all(torch.equal(copied.model.state_dict()[name], tensor) for name, tensor in own.items())
    assert copied.embedding is model.module.get_input_embeddings()
