"""The README says what the result files say."""

from bench.summary import BEGIN, END, README, put_into, summary


def test_the_figures_of_the_readme_are_those_of_the_result_files() -> None:
    readme = README.read_text()
    assert readme.count(BEGIN) == readme.count(END) == 1

    assert put_into(readme, summary()) == readme, "run python -m bench.summary"


def test_what_is_around_the_figures_stays() -> None:
    assert put_into(f"before\n{BEGIN}\nold\n{END}\nafter", "new") == f"before\n{BEGIN}\nnew\n{END}\nafter"
