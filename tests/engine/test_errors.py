import pickle
import re

import grpc
import pytest

import engine.errors
from engine.errors import BadRequest, Overloaded, SparkpoolError

CLASSES = [c for c in vars(engine.errors).values() if isinstance(c, type) and issubclass(c, SparkpoolError)]
MADE = {
    BadRequest: BadRequest("top_p", "must be in (0, 1]"),
    Overloaded: Overloaded("decode.max_waiting: 3 wait", retry_seconds=1.5),
}
every_class = pytest.mark.parametrize("error_class", CLASSES, ids=lambda c: c.__name__)


@every_class
def test_every_error_has_a_status_of_both_kinds(error_class: type[SparkpoolError]) -> None:
    assert error_class.grpc_status in grpc.StatusCode.__members__
    assert 400 <= error_class.http_status <= 599


@every_class
def test_the_tree_in_the_docstring_has_every_error_with_its_statuses(error_class: type[SparkpoolError]) -> None:
    line = rf"\b{error_class.__name__}(\(\w+\))? +{error_class.grpc_status} +{error_class.http_status}\b"

    assert re.search(line, engine.errors.__doc__ or "")


@every_class
def test_every_error_crosses_processes_whole(error_class: type[SparkpoolError]) -> None:
    """An exception whose `__init__` takes other arguments than its `args` fails only when it is unpickled."""
    error = MADE.get(error_class) or error_class("what, why, and what to do")

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is error_class
    assert str(copy) == str(error) != ""
    assert vars(copy) == vars(error)
