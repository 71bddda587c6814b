"""Prompts as they might arrive."""

from hypothesis import strategies as st

from compare.simulator.workload import Arrival, PromptSegment, Workload

counts = st.integers(1, 10_000)
moments = st.floats(0, 1e9)
names = st.text(max_size=8)


@st.composite
def arrivals(draw: st.DrawFn) -> Arrival:
    """With at most one shared stretch, as our own format has it."""
    tokens = draw(counts)
    shared = draw(st.none() | st.builds(PromptSegment, names, st.integers(1, tokens)))
    return Arrival(
        at=draw(moments),
        input_tokens=tokens,
        output_tokens=draw(counts),
        shared=(shared,) if shared else (),
        domain=draw(names),
        tier=draw(names),
    )


def at(*moments: float) -> Workload:
    return Workload(tuple(Arrival(at=moment, input_tokens=10, output_tokens=2) for moment in moments))


def prompt(*shared: PromptSegment, at: float = 0.0, own: int = 0) -> Arrival:
    return Arrival(at=at, input_tokens=sum(s.tokens for s in shared) + own, output_tokens=1, shared=shared)


def common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """How many tokens both begin with."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
