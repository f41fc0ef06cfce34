from __future__ import annotations

import re
from pathlib import Path

from .markdown import write_docs

PAGE = Path(__file__).parents[3] / "docs" / "scale.md"


def test_the_page_takes_the_figures_of_a_run_between_its_marks_and_keeps_the_rest(
    tmp_path: Path,
) -> None:
    page = tmp_path / "scale.md"
    page.write_text(PAGE.read_text())
    row = {"run": "loss-7", "seed": 3, "nodes": 1000, "mode": "map", "keys": 12, "took": 5}
    row |= dict.fromkeys(["before", "at_once", "second_time", "after_an_hour"], 0.9999)
    row |= dict.fromkeys(["seconds_at_once", "seconds_second_time"], 0.25)
    row |= {"table_dead": 0.0, "lookups_after": 1.0}
    for _ in range(2):
        write_docs(page, {"loss": [row]})
    before, after = PAGE.read_text(), page.read_text()
    (line,) = [line for line in after.splitlines() if "loss-7" in line]
    assert re.findall(r"[^| ][^|]*[^| ]|[^| ]", line)[:5] == ["loss-7", "3", "1,000", "map", "12"]
    assert "99.9 %" in line, "a share is never rounded up to all"
    assert " 100 % |" in line
    outside = re.compile(r"(?s)<!-- written by.*<!-- end of figures -->")
    assert outside.sub("", after) == outside.sub("", before)
