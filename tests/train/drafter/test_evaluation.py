"""`sparkpool eval`: what it measures is what the engine does, and what it keeps can be calibrated with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from cluster.cli import app
from engine.config import SHIPPED_DRAFTER, SHIPPED_MODEL
from engine.models import LoadedModel, load_model
from engine.types import Request, Sampling, StopRules
from train.corpus import Corpus
from train.drafter.evaluation import Evaluation, Setting
from train.drafter.prompts import corpus_prompts

PNG = b"\x89PNG"


def sparkpool(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module", autouse=True)
def _one_corpus() -> Iterator[None]:
    """Read the corpus once for all tests."""
    corpus = Corpus.collect()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Corpus, "collect", lambda: corpus)
        yield


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(SHIPPED_MODEL, torch.float32, torch.device("cpu"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"def f{i}(x):\n    return x + {i}\n\n\n", "domain": "short"} for i in range(6)]
    lines += [{"messages": [{"role": "user", "content": "Return the sum."}], "domain": "asked"} for _ in range(4)]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def test_figures_pictures_and_records(prompts: Path, tmp_path: Path) -> None:
    done = sparkpool(
        *("eval", SHIPPED_DRAFTER, "--prompts", prompts, "--requests", 5, "--max-tokens", 48, "--threads", 1),
        *("--json", tmp_path / "found.json", "--plots", tmp_path / "plots", "--records", tmp_path / "steps"),
    )

    assert done.exit_code == 0, done.stderr
    assert "accepted length, every draft verified" in done.stdout
    assert "acceptance by position" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    kinds = {(row["domain"], row["setting"]) for row in found}
    assert kinds == {(d, s) for d in ("short", "asked") for s in ("greedy", "T=1 rejection", "T=1 seeded")}
    for row in found:
        assert row["rounds"] > 0
        assert 1 <= row["accepted_length"] <= 8
        assert len(row["acceptance"]) == len(row["ece_by_position"]) == 7
        assert min(row["draft_ms"], row["verify_ms"], row["plain_ms"], row["speedup"]) > 0
        assert row["sweep"][0]["tokens"] == pytest.approx(row["accepted_length"])
    for name in ("acceptance", "thresholds", "reliability"):
        assert (tmp_path / f"plots/{name}.png").read_bytes().startswith(PNG)
    assert len(list((tmp_path / "steps").glob("*.jsonl"))) == 6

    shutil.copytree(SHIPPED_DRAFTER, tmp_path / "drafter")
    picture = tmp_path / "reliability.png"
    fitted = sparkpool("calibrate", tmp_path / "steps", "--drafter", tmp_path / "drafter", "--plot", picture)
    assert fitted.exit_code == 0, fitted.stderr
    assert picture.read_bytes().startswith(PNG)
    assert len(json.loads((tmp_path / "drafter/calibration.json").read_text())["temperatures"]) == 7


def test_faults_are_named(prompts: Path, tmp_path: Path) -> None:
    missing = sparkpool("eval", SHIPPED_DRAFTER, "--prompts", tmp_path / "none.jsonl", "--threads", 1)
    assert missing.exit_code == 1
    assert "none.jsonl: cannot be read" in missing.stderr
    short = sparkpool("eval", SHIPPED_DRAFTER, "--prompts", prompts, "--max-tokens", 3, "--threads", 1)
    assert short.exit_code == 1
    assert "raise max_tokens" in short.stderr


def test_accepted_length_is_tokens_over_rounds_of_the_engine(model: LoadedModel) -> None:
    """Counted in another way: all tokens of answers that no end token cut, but each one's first, over its chunks."""
    prompts = corpus_prompts(SHIPPED_MODEL, 4, 64)["source"]
    evaluation = Evaluation(model, SHIPPED_MODEL, SHIPPED_DRAFTER, concurrency=1, max_tokens=64, ignore_eos=True)
    (result,) = evaluation.measured({"source": prompts}, [Setting(0.0)])
    pair = evaluation._pair(SHIPPED_DRAFTER, None, 64)
    sizes: list[int] = []
    for i, prompt in enumerate(prompts):
        stop = StopRules(max_tokens=64, ignore_eos=True)
        chunks = list(pair.stream(Request(id=str(i), prompt=prompt, sampling=Sampling(), stop=stop)))
        said, ends = 1, []
        for chunk in chunks[1:]:
            if 64 - said >= 8:  # room for a whole block and the token behind it
                ends.append(len(chunk.tokens))
            said += len(chunk.tokens)
        sizes += ends
    assert result.figures.accepted_length == pytest.approx(sum(sizes) / len(sizes))


def test_mtp_is_measured_too(model: LoadedModel) -> None:
    prompts = corpus_prompts(SHIPPED_MODEL, 4, 64)
    evaluation = Evaluation(model, SHIPPED_MODEL, "mtp", max_tokens=32)
    for result in evaluation.measured(prompts, [Setting(0.0)]):
        assert 1.2 < result.figures.accepted_length <= 2
        assert len(result.figures.acceptance) == 1


def test_prompts_skipped_are_others() -> None:
    first, second = (corpus_prompts(SHIPPED_MODEL, 8, 64, skip=skip) for skip in (0, 8))
    for domain, prompts in first.items():
        assert len(prompts) == 8
        assert not set(prompts) & set(second[domain])
