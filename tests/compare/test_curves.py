"""`sparkpool compare --predict-dspark`: what files may look like, and what is wrong with others."""

import csv
from pathlib import Path

import pytest

from compare.published.curves import COLUMNS, FIGURES, as_csv, figure_points, layers_of, predict_file
from compare.study.dspark import CurvePoint, Drafting, predicted
from engine.errors import ConfigError

HEAD = "figure,model,drafter,x,x_unit,y,y_unit\n"
PLAIN = "concurrency_per_gpu,tok_s_per_gpu\n10,1000\n40,3000\n160,7000\n"


def written(folder: Path, text: str) -> Path:
    file = folder / "curve.csv"
    file.write_text(text)
    return file


def rows_of(model: str, *figures: str) -> str:
    lines = FIGURES.read_text().splitlines()[1:]
    chosen = [line for line in lines if line.split(",")[0] in figures and line.split(",")[1] == model]
    return HEAD + "\n".join(chosen) + "\n"


def test_the_papers_figures_are_read_as_they_are() -> None:
    found = predict_file(FIGURES, "V4-Flash")

    assert found == predicted(figure_points("V4-Flash"), 43, Drafting())
    assert predict_file(FIGURES, "deepseek-v4-flash") == found


def test_one_model_needs_no_name_and_has_its_own_layers(tmp_path: Path) -> None:
    file = written(tmp_path, rows_of("V4-Pro", "8tput", "8budget", "7"))

    found = predict_file(file)

    assert found == predicted(figure_points("V4-Pro"), 61, Drafting())
    assert found != predicted(figure_points("V4-Pro"), 43, Drafting())


def test_without_throughput_over_concurrency_figure_7_does(tmp_path: Path) -> None:
    found = predict_file(written(tmp_path, rows_of("V4-Pro", "7", "8budget")), "v4-pro")

    assert [point.concurrency for point in found] == sorted(point.concurrency for point in found)
    assert all(point.throughput > 0 and 1 <= point.verify_tokens <= 6 for point in found)
    assert len(found) == 36


def test_several_models_need_one_named() -> None:
    with pytest.raises(ConfigError, match="which one: V4-Flash, V4-Pro"):
        predict_file(FIGURES)
    with pytest.raises(ConfigError, match=r"no model 'V5'; it has V4-Flash, V4-Pro"):
        predict_file(FIGURES, "V5")


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        "tok_s_per_user,note,concurrency_per_gpu\n100,a,10\n75,b,40\n43.75,c,160\n",
        "tok_s_per_gpu,tok_s_per_user\n7000,43.75\n1000,100\n3000,75\n",
        "model,concurrency_per_gpu,tok_s_per_gpu,tok_s_per_user\nx,10,1000,100\nx,40,3000,75\nx,160,7000,43.75\n",
        "\ufeffconcurrency_per_gpu, tok_s_per_gpu\n10, 1000\n\n40, 3000\n160, 7000\n",
    ],
)
def test_any_two_columns_are_the_same_curve(tmp_path: Path, text: str) -> None:
    expected = predicted([CurvePoint(10, 1000), CurvePoint(40, 3000), CurvePoint(160, 7000)], 43, Drafting())

    found = predict_file(written(tmp_path, text))

    assert [(p.concurrency, p.throughput) for p in found] == [
        pytest.approx((p.concurrency, p.throughput)) for p in expected
    ]


def test_layers_are_those_of_the_named_model(tmp_path: Path) -> None:
    file = written(tmp_path, PLAIN)

    assert predict_file(file, "deepseek-v4-pro") == predict_file(file, "V4-Pro")
    assert predict_file(file, "V4-Flash") == predict_file(file) != predict_file(file, "V4-Pro")
    assert (layers_of("V4-Pro"), layers_of("deepseek-v4-flash"), layers_of("x"), layers_of("")) == (61, 43, None, None)
    with pytest.raises(ConfigError, match=r"'V9' is not known; .*deepseek-v4-pro"):
        predict_file(file, "V9")


def test_readings_of_the_origin_are_dropped_and_nothing_else(tmp_path: Path) -> None:
    head = HEAD + "8tput,M,MTP-1,-0.1,c,3,t\n8tput,M,MTP-1,0.0,c,0,t\n"
    good = (
        "8tput,M,MTP-1,10,c,1000,t\n8tput,M,MTP-1,40,c,3000,t\n8tput,M,MTP-1,160,c,7000,t\n8tput,M,DSpark-5,1,c,-1,t\n"
    )

    assert len(predict_file(written(tmp_path, head + good))) == 3
    with pytest.raises(ConfigError, match=r"curve\.csv, line 4: y: -5 is not positive"):
        predict_file(written(tmp_path, head + "8tput,M,MTP-1,10,c,-5,t\n" + good))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "has no rows"),
        ("a,b\n1,2\n", "neither the columns"),
        (HEAD, "has no rows"),
        (HEAD + "8tput,M,DSpark-5,1,c,2,t\n", "no row has MTP-1"),
        (HEAD + "8tput,M,MTP-1,1,c,2,t\n", "1 points are too few"),
        (PLAIN + "x,1\n", r"line 5: concurrency_per_gpu: 'x' is no number"),
        (PLAIN + "0,1\n", r"line 5: concurrency_per_gpu: 0 is not positive"),
        (PLAIN + "1,nan\n", r"line 5: tok_s_per_gpu: nan is not finite"),
        (PLAIN + "1,inf\n", r"line 5: tok_s_per_gpu: inf is not finite"),
        (PLAIN + "1\n", r"line 5: should have as many fields"),
        (PLAIN + "1,2,3\n", r"line 5: should have as many fields"),
        (PLAIN + "1,\n", r"line 5: two of concurrency_per_gpu"),
        ("concurrency_per_gpu,tok_s_per_gpu\n1,2\n2,3\n", "2 points are too few"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        predict_file(written(tmp_path, text))


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv"):
        predict_file(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"b\.csv"):
        predict_file(tmp_path / "b.csv")


def test_what_comes_out_can_be_read_again(tmp_path: Path) -> None:
    points = predict_file(written(tmp_path, PLAIN))

    text = as_csv(points)

    assert text.splitlines()[0] == ",".join((*COLUMNS, "verify_tokens"))
    rows = list(csv.DictReader(text.splitlines()))
    assert [float(row["tok_s_per_gpu"]) for row in rows] == pytest.approx([p.throughput for p in points], rel=1e-5)
    assert [float(row["verify_tokens"]) for row in rows] == pytest.approx([p.verify_tokens for p in points], rel=1e-5)
    assert text.endswith("\n")
