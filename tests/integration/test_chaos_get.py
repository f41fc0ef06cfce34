"""One scenario of `make chaos`; the others take too long for every run of the tests."""

from __future__ import annotations

from scripts.chaos.lab import check_whole, open_lab
from scripts.chaos.line import Line


def test_a_get_outlives_the_silence_of_one_holder_and_the_death_of_another() -> None:
    with open_lab(4 << 20, seed=1, holders=3) as lab:
        file = lab.make_file()
        link = lab.keep(file, copies=3)
        lab.fresh_client()
        lab.proxy.set_line(Line(rtt=0.01, rate=1_500_000))

        def happening() -> None:
            lab.proxy.silence([1])
            lab.holders[2].kill()

        copy = lab.destination()
        ended = lab.run("get", link, "-o", copy, at=0.1, then=happening)
        assert ended.code == 0, ended.message
        check_whole(file, copy)
        assert ended.document["retries"] + ended.document["hedges"] > 0
