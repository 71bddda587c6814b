"""Short prompts stay in the decode replica, once the gateway has seen what a handoff costs; answers are the same."""

from tests.cluster.conftest import Deploy, Service, small, tokens

LONG = "class Parser:\n    def __init__(self):\n" * 20
SHORT = ["import os", "def add(a, b):\n", "x = [1, 2"]
OPTIONS = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}


def test_short_prompts_stay_in_decode_and_their_answers_are_the_same(deploy: Deploy, shipped: Service) -> None:
    expected = [tokens(shipped.ask(prompt, **OPTIONS)) for prompt in SHORT]
    with deploy("local", small(decode={"local_chunk_tokens": 64})) as service:
        assert service.ask(LONG, **OPTIONS)[-1].timings.moved_pages > 0, "nobody knew what a handoff costs"
        service.wait_idle()

        answers = [service.ask(prompt, **OPTIONS) for prompt in SHORT]

        assert [tokens(answer) for answer in answers] == expected
        assert [answer[-1].timings.moved_bytes for answer in answers] == [0, 0, 0]
        assert all(answer[-1].timings.prefills == 1 for answer in answers)
        decode = [r for r in service.assert_idle_and_consistent().replicas if r.identity.role == "decode"]
        assert sum(replica.counters.local_prefills for replica in decode) == len(SHORT)
        assert sum(replica.transfers.reads for replica in decode) == 1
