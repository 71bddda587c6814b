"""What is read, what is held out, and how it becomes rows."""

from __future__ import annotations

import ast

import numpy as np
import pytest
import torch

from train.batches import Batches, TokenRing
from train.corpus import SourceFile, readable, without_licence

SOURCE = '''
class Box:
    def area(self, scale=1):
        """Return the area of the box."""
        side = self.side * scale
        return side * side

    def undocumented(self):
        return 1
'''


def test_hold_out_depends_on_the_path_alone() -> None:
    assert SourceFile("stdlib/csv.py", "a").held_out
    assert not SourceFile("stdlib/argparse.py", "a").held_out
    share = np.mean([SourceFile(f"package/module_{index}.py", "").held_out for index in range(5000)])
    assert 0.01 < share < 0.03


def test_functions_are_requests_and_answers() -> None:
    (function,) = SourceFile("package/box.py", SOURCE).functions()
    assert function.name == "area"
    assert function.signature == "def area(self, scale=1):"
    assert function.docstring == "Return the area of the box."
    assert function.docstring in function.request
    assert '"""' not in function.code
    ast.parse(function.code)
    ast.parse(function.prompt)


def test_unreadable_source_has_no_functions() -> None:
    assert list(SourceFile("package/broken.py", "def f(:\n").functions()) == []


def test_only_leading_licence_comments_go() -> None:
    assert without_licence("# Copyright X\n# License Y\n\nimport os\n# license\n") == "import os\n# license\n"
    assert without_licence("# A heading\nimport os\n") == "# A heading\nimport os\n"


@pytest.mark.parametrize(
    "text",
    [
        "# This file was automatically generated from x. Do NOT edit.\nimport os\n",
        "table = [" + "1, " * 200 + "]\n",
        "x = 1\n" + "DATA = '" + "a" * 500 + "'\n",
    ],
)
def test_generated_and_data_files_are_dropped(text: str) -> None:
    assert not readable(text)


def test_source_is_kept() -> None:
    assert readable(SOURCE)


def test_stream_is_a_ring() -> None:
    stream = TokenRing(np.arange(5, dtype=np.uint16))
    assert stream.take(7).tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert stream.cursor == 2


def batches() -> Batches:
    chat = np.array([2, 10, 3, 11, 0] * 50, dtype=np.uint16)
    return Batches(np.arange(1000, 3000, dtype=np.uint16), chat, end_token=0)


def test_one_row_in_sixteen_begins_with_a_chat() -> None:
    rows = batches().next(32, 12)
    assert rows.shape == (32, 12)
    assert rows.dtype == torch.int64
    assert [index for index, row in enumerate(rows) if row[0] < 1000] == [14, 30]
    assert rows[14, 0] == rows[30, 0] == 2


def test_batches_go_on_where_they_were() -> None:
    first, second = batches(), batches()
    first.next(20, 12)
    second.restore(first.state())
    assert torch.equal(first.next(20, 12), second.next(20, 12))
