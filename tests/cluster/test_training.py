"""`sparkpool train --workers 2`: Ray Train's workers end where one worker ends."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cluster.training import train_with_ray
from engine.errors import ConfigError
from tests.cluster.conftest import Deploy
from tests.train.drafter.test_run import change, config_file
from train.drafter.config import TrainConfig
from train.drafter.run import DrafterRun, metrics


def test_two_ray_workers_end_where_one_ends(deploy: Deploy, deepseek_v3: Path, tmp_path: Path) -> None:
    """DraftLosses to 1e-4: sums over sequences have another order. Drafters are written in bfloat16."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    one, two = (TrainConfig.load(config_file(folder, deepseek_v3)) for folder in folders)
    DrafterRun(one).run()

    train_with_ray(two, workers=2, threads=1, report=lambda text: None)

    losses = [[line["loss"] for line in metrics(config.work)] for config in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    expected, found = (load_file(config.out / "model.safetensors") for config in (one, two))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].float(), tensor.float(), atol=1e-2, rtol=1e-2, msg=name)


def test_what_is_wrong_is_told_before_a_worker_starts(deepseek_v3: Path, tmp_path: Path) -> None:
    config = change(config_file(tmp_path, deepseek_v3), "drafter", target_layer_ids=[90])
    with pytest.raises(ConfigError, match=r"target_layer_ids \[90\] are outside"):
        train_with_ray(config, workers=2, threads=1, report=lambda text: None)
