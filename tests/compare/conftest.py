"""A whole report, which takes a while: made once, for those who read it and those who look at it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli import app
from tests.compare.made_up import figure, gpu, scenario
from tests.compare.test_scenario import run_of


@pytest.fixture(scope="session")
def report_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a report of everything that there is was written, by the command."""
    here = tmp_path_factory.mktemp("report")
    changed = {
        "bandwidth": figure(8, "TB/s"),
        "cost": figure((1, 20), "$/h"),
        "hop": figure((1, 9), "us"),
        "power": figure((1, 2), "kW"),
    }
    plain, special = gpu(here, "plain"), gpu(here, "special", **changed)
    content: dict[str, Any] = scenario(plain, special, measured={"ours": {"files": ["run.json"], "device": plain}})
    content["systems"]["together"] = {
        "prefill": {"device": plain, "units": [1]},
        "decode": {"device": plain, "units": [1, 2]},
        "helper": {"device": special, "does": "feed_forward", "units": [2], "attention": "tensor"},
        "drafts": "planned",
    }
    content["contenders"]["together"] = "DSpark"
    content["devices"][special]["losses"] = {"layer_us": [1, 5], "source": "made up for a test"}
    with Path(special).open("a") as file:
        yaml.safe_dump({"bridge": figure((2, 10), "us")}, file)
    (here / "run.json").write_text(json.dumps(run_of()))
    (here / "made-up.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    result = CliRunner().invoke(app, ["compare", str(here / "made-up.yaml"), "--out", str(here / "out")])
    assert result.exit_code == 0, result.output
    return here / "out" / "made-up"
