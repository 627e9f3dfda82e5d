"""``method.ewc_lambda=auto``: λ is chosen on validation images, by branching from the first stage.

The candidates share what λ does not touch through the stage store; the test sets are read by the
run with the chosen λ alone.
"""

import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from lifelong.config.check import AUTO
from lifelong.config.console import say, silence
from lifelong.report.numbers import as_typed

if TYPE_CHECKING:
    from lifelong.report.best import Candidate, Rule
    from lifelong.run import Job, StageStore, Summary

CHOICE = "choice.json"
FOLDER = ".choice"  # of what the candidates need while they are learnt
DIGITS = 3


def learn_config(config: DictConfig, *, prepare: "Callable[[Job], Job] | None" = None) -> "Summary":
    """Learn one configuration; where λ is to be chosen, choose it first.

    Args:
        config: checked.
        prepare: changes the job before it is run.

    Returns:
        The summary.
    """
    from lifelong.config.build import build_job
    from lifelong.run import learn_sequence

    if config.method.get("ewc_lambda") != AUTO:
        job = build_job(config)
        return learn_sequence(prepare(job) if prepare else job)
    folder = Path(config.output_dir) / FOLDER
    choice = choose(config)
    job = build_job(_with(config, {"method.ewc_lambda": choice["chosen"]}))
    job = replace(job, choice=choice, store=_store(job, folder))
    summary = learn_sequence(prepare(job) if prepare else job)
    shutil.rmtree(folder, ignore_errors=True)
    return summary


def choose(config: DictConfig) -> dict[str, Any]:
    """Try λ by decades, then between the neighbours of the best.

    Args:
        config: checked, with λ ``auto``.

    Returns:
        The content of ``choice.json`` and of the summary's ``choice``: ``rule``, ``candidates``,
        ``chosen`` and ``seconds``.
    """
    from lifelong.report.best import Rule

    path = Path(config.output_dir) / CHOICE
    asked = {key: config.choice[key] for key in ("low", "high", "refine")}
    rule = Rule(config.choice.rule, float(config.choice.at_most_lost))
    if config.resume:
        known = _read(path, {"rule": asdict(rule), **asked})
        if known is not None:
            return known
    begin = time.monotonic()
    found: list[Candidate] = []
    for ewc_lambda in _values(config, rule, found):
        with silence() if found else nullcontext():
            found.append(_try(config, ewc_lambda))
        say(f"λ = {as_typed(ewc_lambda)}: {found[-1].words} of validation images")
    best = rule.choose(found)
    content = {
        "rule": asdict(rule),
        **asked,
        "candidates": [
            asdict(one) | {"average": one.average, "score": rule.score(one)}
            for one in sorted(found, key=lambda one: one.ewc_lambda)
        ],
        "chosen": best.ewc_lambda,
        "seconds": time.monotonic() - begin,
    }
    _write(path, content)
    _show(found, best, rule, config)
    return content


def decades(low: float, high: float) -> list[float]:
    """The values of λ to begin with.

    Args:
        low: the smallest.
        high: none is above.

    Returns:
        ``low`` times the powers of ten.

    Example:
        >>> decades(1.0, 1e3)
        [1.0, 10.0, 100.0, 1000.0]
    """
    count = math.floor(math.log10(high / low) + 1e-9) + 1
    return [_rounded(low * 10.0**power) for power in range(count)]


def between(values: list[float], best: float) -> list[float]:
    """The values halfway, on the logarithmic scale, from the best to its neighbours.

    Args:
        values: those that were tried.
        best: one of them.

    Returns:
        One or two values; none where they were tried already.

    Example:
        >>> between([1.0, 10.0, 100.0], 10.0)
        [3.16, 31.6]
    """
    ordered = sorted(values)
    place = ordered.index(best)
    neighbours = [*ordered[max(place - 1, 0) : place], *ordered[place + 1 : place + 2]]
    halfway = [_rounded(math.sqrt(best * other)) for other in neighbours]
    return [value for value in halfway if value not in values]


def _values(config: DictConfig, rule: "Rule", found: "list[Candidate]") -> Iterator[float]:
    yield from decades(float(config.choice.low), float(config.choice.high))
    for _ in range(config.choice.refine):
        yield from between([one.ewc_lambda for one in found], rule.choose(found).ewc_lambda)


def _try(config: DictConfig, ewc_lambda: float) -> "Candidate":
    from lifelong.config.build import build_job
    from lifelong.report.best import candidate_at
    from lifelong.run import learn_trial

    folder = Path(config.output_dir) / FOLDER
    directory = folder / f"method.ewc_lambda={as_typed(ewc_lambda)}"
    keys = {"method.ewc_lambda": ewc_lambda, "output_dir": str(directory), "logger": None}
    job = build_job(_with(config, keys))
    stages = learn_trial(replace(job, store=_store(job, folder)))
    shutil.rmtree(directory, ignore_errors=True)
    before = [stage.curves[f"val/{stage.task}/accuracy"][-1] for stage in stages[:-1]]
    figures = {name: values[-1] for name, values in stages[-1].curves.items()}
    return candidate_at(ewc_lambda, job.benchmark.task_names, before, figures)


def _store(job: "Job", folder: Path) -> "StageStore":
    from lifelong.run import NoStore, StageStore

    # With stages=off the candidates share among themselves alone.
    return StageStore(folder, math.inf, say) if isinstance(job.store, NoStore) else job.store


def _with(config: DictConfig, keys: Mapping[str, Any]) -> DictConfig:
    changed = copy.deepcopy(config)
    for key, value in keys.items():
        OmegaConf.update(changed, key, value, merge=False)
    return changed


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _read(path: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fits = all(content[key] == value for key, value in asked.items())
        fits = fits and math.isfinite(content["chosen"]) and content["chosen"] >= 0
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(content) if fits else None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    from lifelong.data.files.whole import whole_file

    with whole_file(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _show(found: "list[Candidate]", best: "Candidate", rule: "Rule", config: DictConfig) -> None:
    from lifelong.report.best import verdict
    from lifelong.report.tables import print_wide
    from lifelong.search.notes import FINISHED
    from lifelong.search.sweep import in_sweep
    from lifelong.search.trial import Trial, search_table

    say(verdict(best, rule))
    if in_sweep():
        return
    trials = [
        Trial(number, one.ewc_lambda, FINISHED, config.max_epochs, one, rule.score(one), "")
        for number, one in enumerate(found)
    ]
    print_wide(search_table(trials, best.ewc_lambda))
