"""Training by several workers: Ray Train starts them where the cluster has room; train/drafter does the work."""

import os
from collections.abc import Callable
from typing import TypedDict

from engine.errors import ConfigError
from train.drafter.config import TrainConfig
from train.drafter.progress import no_progress
from train.drafter.run import DrafterRun
from train.drafter.shape import drafter_config
from train.drafter.workers import TIMEOUT, Workers
from train.provenance import configure_process


class WorkerOptions(TypedDict):
    """Holds what Ray Train passes to each worker."""

    config: TrainConfig
    threads: int


def train_with_ray(config: TrainConfig, workers: int, threads: int, report: Callable[[str], None]) -> None:
    """Train with `workers` workers, on the cluster at RAY_ADDRESS or on a local one that is started for it.

    All workers must have the same file system. Raises ConfigError.
    """
    try:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise ConfigError(f"--workers: needs `pip install 'ray[train]'` ({error})") from None
    import ray
    from ray.train import TrainingFailedError

    drafter_config(config.target.path, config.drafter, config.training.anchors)  # refuses before anything is started
    cuda = config.training.device.startswith("cuda")
    if not ray.is_initialized():
        local = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        ray.init(**({} if "RAY_ADDRESS" in os.environ else local))
    report(f"Ray Train starts {workers} workers")
    threads = threads or max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)
    trainer = TorchTrainer(
        _work,
        train_loop_config=WorkerOptions(config=config, threads=threads),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=cuda),
        torch_config=TorchConfig(backend="nccl" if cuda else "gloo", timeout_s=int(TIMEOUT.total_seconds())),
        run_config=RunConfig(storage_path=str(config.work.resolve()), name="ray"),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise ConfigError(f"a worker failed: {error}") from error


def _work(options: WorkerOptions) -> None:
    """Run one worker; Ray Train has initialised its process group."""
    import ray.train.torch

    config = options["config"]
    configure_process(options["threads"])
    workers = Workers.of_this_process()
    device = str(ray.train.torch.get_device()) if config.training.device.startswith("cuda") else "cpu"
    DrafterRun(config.on(device), workers, _print_progress if workers.is_first else no_progress).run()


def _print_progress(stage: str, done: int, total: int, note: str = "") -> None:
    if done % max(1, total // 20) == 0:
        print(f"{stage} {done}/{total} {note}", flush=True)
