from pathlib import Path

import pytest

from engine.config import SHIPPED_MODEL, Config
from engine.errors import ConfigError


def written(folder: Path, text: str) -> Path:
    file = folder / "sparkpool.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prefil: {}", "prefil: unknown key"),
        ("decode: {gpu: {reed_seconds: 3}}", "decode.gpu.reed_seconds: unknown key"),
        ("decode: {gpu: {replicas: many}}", "decode.gpu.replicas: Input should be a valid integer"),
        ("decode: {gpu: {replicas: 0}}", "decode.gpu.replicas: Input should be greater than 0"),
        ("decode: {}", "decode: Dictionary should have at least 1 item"),
        ("decode: {prefill: {}}", "decode.prefill: there is one prefill pool"),
        ("decode: {No Spaces: {}}", "decode.No Spaces.[key]: String should match pattern"),
        ("decode: {replicas: 2}", "decode.replicas: "),
        (
            "decode: {gpu: {replicas: 2, autoscaling_config: {max_replicas: 3}}}",
            "decode.gpu: Value error, autoscaling_config and replicas contradict each other",
        ),
        ("prefill: {cache_bytes: 5 apples}", "prefill.cache_bytes: "),
        ("prefill: {resources: {CPU: 2}}", "prefill.resources: Value error, CPU is not a custom resource"),
        ("prefill: {resources: {prefill: 1.5}}", "prefill.resources: Value error, prefill: 1.5 is above"),
        ("prefill: {resources: {prefill: 0}}", "prefill.resources.prefill: Input should be greater than 0"),
        ("prefill: 7", "prefill: "),
        ("model: {dtype: float8}", "model.dtype: Input should be 'float32', 'bfloat16' or 'float16'"),
        ("decode: {gpu: {synthetic_acceptance: [0.5, 1.1]}}", "decode.gpu.synthetic_acceptance.1: Input should"),
        ("decode: {gpu: {synthetic_acceptance: [-0.1]}}", "decode.gpu.synthetic_acceptance.0: Input should be greater"),
        ("decode: {gpu: {synthetic_acceptance: [.nan]}}", "decode.gpu.synthetic_acceptance.0: Input should be"),
        ("decode: {gpu: {synthetic_acceptance: []}}", "decode.gpu.synthetic_acceptance: Tuple should have at least 1"),
        ("decode: {gpu: {synthetic_acceptance: [0.5]}}", "decode.gpu.synthetic_acceptance: nothing is drafted without"),
        (
            "model: {drafter: d}\ndecode: {gpu: {synthetic_acceptance: [0.5], drafting: false}}",
            "decode.gpu.synthetic_acceptance: nothing is drafted without model.drafter and decode.gpu.drafting",
        ),
        ("gateway: {grpc_port: 8000}", "gateway.grpc_port and gateway.http_port are the same port"),
        ("[1, 2]", "holds a list, not a mapping"),
        ("a: b: c", "not YAML"),
    ],
)
def test_a_mistake_is_named_with_the_file_and_the_full_key(tmp_path: Path, text: str, says: str) -> None:
    file = written(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        Config.load(file)

    assert says in str(caught.value)
    assert str(file) in str(caught.value)


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    file = written(tmp_path, "prefill: {chunk: 1}\ngateway: {http_port: 0}")

    with pytest.raises(ConfigError, match=r"(?s)prefill\.chunk: .*gateway\.http_port: "):
        Config.load(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        Config.load(tmp_path / "nowhere.yaml")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Config.load(tmp_path)


def test_a_relative_model_path_starts_at_the_file(tmp_path: Path) -> None:
    config = Config.load(written(tmp_path, "model: {path: ../models/mine}"))

    assert config.model.path == (tmp_path.parent / "models" / "mine").resolve()
    assert config.model.served_name == "mine"


def test_every_relative_path_starts_at_the_file(tmp_path: Path) -> None:
    text = "model: {drafter: d}\ndecode: {gpu: {record: steps, step_times: ./times}, other: {record: /var/steps}}"
    config = Config.load(written(tmp_path, text))

    assert config.model.drafter == tmp_path.resolve() / "d"
    assert config.decode["gpu"].record == tmp_path.resolve() / "steps"
    assert config.decode["gpu"].step_times == tmp_path.resolve() / "times"
    assert (config.decode["other"].record, config.decode["other"].step_times) == (Path("/var/steps"), None)


def test_synthetic_acceptance_survives_serialization(tmp_path: Path) -> None:
    text = "model: {drafter: d}\ndecode: {gpu: {synthetic_acceptance: [0.9, 0, 1], record: steps}}"
    config = Config.load(written(tmp_path, text))

    assert config.decode["gpu"].synthetic_acceptance == (0.9, 0.0, 1.0)
    assert Config.parse(config.model_dump(mode="json", exclude_unset=True)) == config


def test_an_empty_file_and_no_file_give_the_defaults(tmp_path: Path) -> None:
    assert Config.load(written(tmp_path, "")) == Config.load(None) == Config()
    assert Config().model.path == SHIPPED_MODEL


def test_sizes_may_be_written_with_a_unit(tmp_path: Path) -> None:
    assert (
        Config.load(written(tmp_path, "decode: {gpu: {cache_bytes: 256MiB}}")).decode["gpu"].cache_bytes == 256 * 2**20
    )


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().decode["default"].replicas = 2  # type: ignore[misc]


def test_a_request_that_names_no_pool_goes_to_the_first(tmp_path: Path) -> None:
    assert Config.load(written(tmp_path, "decode: {slow: {}, fast: {}}")).default_pool == "slow"


def test_scaled_pools_count_with_their_max_replicas(tmp_path: Path) -> None:
    config = Config.load(written(tmp_path, "decode: {a: {autoscaling_config: {max_replicas: 5}}, b: {replicas: 2}}"))

    assert config.max_replicas == 1 + 5 + 2
