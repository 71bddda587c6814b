"""Training on several workers: Ray Train starts them, wherever the cluster has room; train/ does the work."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from engine.errors import ConfigError
from train.drafter_config import TrainConfig
from train.drafter_run import DrafterRun, silent, use
from train.drafter_shape import drafter_config
from train.workers import PATIENCE, Workers


def train_together(config: TrainConfig, workers: int, threads: int, tell: Callable[[str], None]) -> None:
    """One run by so many workers, on a cluster that runs already (RAY_ADDRESS) or one started for it here. All of them
    must see the same files. Raises ConfigError."""
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise ConfigError(f"--workers: needs `pip install 'ray[train]'` ({error})") from None
    import ray
    from ray.train import TrainingFailedError

    drafter_config(config.target.path, config.drafter, config.training.anchors)  # before anything is started
    cuda = config.training.device.startswith("cuda")
    if not ray.is_initialized():
        here = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        ray.init(**({} if "RAY_ADDRESS" in os.environ else here))
    tell(f"Ray Train starts {workers} workers")
    trainer = TorchTrainer(
        _work,
        train_loop_config={"config": config, "threads": threads or _share_of_cores(workers)},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=cuda),
        torch_config=TorchConfig(backend="nccl" if cuda else "gloo", timeout_s=int(PATIENCE.total_seconds())),
        run_config=RunConfig(storage_path=str(config.work.resolve()), name="ray"),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise ConfigError(f"a worker failed: {error}") from error


def _share_of_cores(workers: int) -> int:
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)


def _work(options: dict[str, Any]) -> None:
    """One worker; Ray Train has joined it to the others."""
    import ray.train.torch

    config: TrainConfig = options["config"]
    use(options["threads"])
    workers = Workers.here()
    device = str(ray.train.torch.get_device()) if config.training.device.startswith("cuda") else "cpu"
    DrafterRun(config.on(device), workers, _told if workers.is_first else silent).run()


def _told(stage: str, done: int, total: int, note: str = "") -> None:
    if done % max(1, total // 20) == 0:
        print(f"{stage} {done}/{total} {note}", flush=True)
