"""Kept work names the first setting in which a later run differs."""

from pathlib import Path

import pytest

from engine.errors import ConfigError
from train.drafter.identity import claim, require_same

OWN = {"target": {"dtype": "float32", "layers": [0, 1]}, "text": "abc"}
FILE = Path("features.json")


def test_the_same_work_is_used_again(tmp_path: Path) -> None:
    for _ in range(2):
        claim(tmp_path / "own.json", OWN, "it was written", "delete it")


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ({**OWN, "text": "other"}, "text was 'other' when it was written, now it is 'abc'; delete it"),
        ({**OWN, "target": {"dtype": "bfloat16", "layers": [0]}}, "target.dtype was 'bfloat16'"),
        ({"text": "abc"}, "target.dtype was None"),
        ({**OWN, "seed": 3}, "seed was 3 when it was written, now it is None"),
    ],
)
def test_the_first_difference_is_named(stored: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        require_same(FILE, stored, OWN, "it was written", "delete it")
    assert f"features.json: {named}" in str(refused.value)
