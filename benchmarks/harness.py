"""Rounds that alternate between the candidates, and a table of what they took."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

Candidates = dict[str, Callable[[], float]]


def compare(title: str, unit: str, candidates: Candidates, *, rounds: int = 9) -> dict[str, float]:
    """Run each candidate *rounds* times in turn; print medians, spread and the ratio to the first; the medians.

    A candidate returns its own figure, in *unit*.  One round before the others warms everything up.
    """
    figures: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, candidate in candidates.items():
            figure = candidate()
            if number:
                figures[name].append(figure)
    medians = {name: median(values) for name, values in figures.items()}
    limit = next(iter(medians.values()))
    print(f"{title} ({rounds} rounds, {unit})")
    width = max(map(len, medians))
    for name, value in medians.items():
        spread = f"{min(figures[name]):.1f} to {max(figures[name]):.1f}"
        print(f"  {name:{width}}  {value:9.1f}   {spread:>20}   ratio {value / limit:.2f}")
    return medians
