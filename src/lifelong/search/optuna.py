"""The search for λ: Optuna proposes, validation images judge, what stays behind is given up.

Each trial is a whole run in a folder of its own; what the trials share is learnt once where a stage
store is on.
"""

import copy
import json
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lifelong.config.console import one_line, say, silence
from lifelong.data.files.whole import whole_file
from lifelong.errors import LifelongError
from lifelong.learning.progress import without_bars
from lifelong.report.best import Candidate, Rule, candidate_at, candidate_of, verdict
from lifelong.report.numbers import as_typed
from lifelong.report.results import read_summaries
from lifelong.report.tables import print_wide
from lifelong.search.branches import learn_branches
from lifelong.search.notes import FAILED, FINISHED, PRUNED, Note, Notebook, remove_notes
from lifelong.search.overview import Overview
from lifelong.search.sweep import in_sweep, tell_epochs
from lifelong.search.trial import Trial, search_table

if TYPE_CHECKING:
    import optuna

    from lifelong.run import Job, Summary

DIGITS = 3


def search(config: DictConfig) -> float:
    """Look for the best λ and say which it is; ``search.json`` keeps every trial.

    Args:
        config: checked, with ``search`` from ``experiment=lambda_search``.

    Returns:
        The best score by the rule.

    Raises:
        LifelongError: when no trial came to its end.
    """  # noqa: DOC502
    rule = Rule(config.choice.rule, float(config.choice.at_most_lost))
    folder = Path(config.output_dir)
    study = _study(config.search)
    remove_notes(folder)
    # In a sweep of searches the overview of the sweep has the terminal.
    overview = None if in_sweep() else Overview(folder, total=config.search.trials, say=say)
    trials: list[Trial] = []
    try:
        with without_bars():
            while len(trials) < config.search.trials:
                with silence() if trials else nullcontext():
                    trials.append(_Attempt(config, rule, study, len(trials)).run())
                _write(folder, config, rule, trials)
    finally:
        if overview is not None:
            overview.close()
        remove_notes(folder)
    finished = [trial.found for trial in trials if trial.state == FINISHED and trial.found]
    best = rule.choose(finished)
    print_wide(search_table(trials, best.ewc_lambda), verdict(best, rule))
    # Of equal values of λ the first: they are the same run.
    (chosen, *_) = [t for t in trials if t.state == FINISHED and t.ewc_lambda == best.ewc_lambda]
    (summary,) = read_summaries([Path(chosen.directory)])
    tests = ", ".join(f"{task} {100 * x:.2f} %" for task, x in summary.retained.items())
    print_wide(
        f"test images  {tests}",
        f"results      {folder} (search.json; the best run: {Path(chosen.directory).name})",
        f"TensorBoard  tensorboard --logdir {folder}",
    )
    return rule.score(best)


def _study(search: DictConfig) -> "optuna.Study":
    try:
        import optuna
    except ImportError as error:
        raise LifelongError(
            "experiment=lambda_search needs optuna, which is not installed; "
            "type pip install 'lifelong-lightning[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        direction="maximize",
        sampler=instantiate(search.sampler),
        pruner=instantiate(search.pruner),
    )


@dataclass
class _Attempt:
    """One trial: a run with a λ that the study proposes.

    Args:
        config: of the search.
        rule: scores what was kept and gained.
        study: Optuna's.
        number: of the trial.
    """

    config: DictConfig
    rule: Rule
    study: "optuna.Study"
    number: int
    _before: dict[str, float] = field(default_factory=dict)
    _found: Candidate | None = None
    _epochs: int = 0
    _began: bool = False

    def run(self) -> Trial:
        """Learn the trial, or give it up on the way.

        Returns:
            What became of it.

        Raises:
            LifelongError: when the run could not even begin, as all others could not.
        """
        import optuna
        from optuna.trial import TrialState

        search = self.config.search
        self._trial = self.study.ask()
        drawn = self._trial.suggest_float("ewc_lambda", search.low, search.high, log=True)
        # What is printed is what was run: the digits beyond are below the noise of a seed.
        self._lambda = float(f"{drawn:.{DIGITS}g}")
        directory = self._directory()
        self._notebook = Notebook(Path(self.config.output_dir), Note(self.number, directory.name))
        state, score, message = FINISHED, None, ""
        try:
            (summary,) = learn_branches([self._configuration(directory)], prepare=self._prepare)
            score = self._judge(summary)
            self.study.tell(self._trial, score)
        except optuna.TrialPruned:
            state = PRUNED
            self.study.tell(self._trial, state=TrialState.PRUNED)
        except LifelongError as error:
            if not self._began:
                raise
            state, message = FAILED, one_line(error)
            self.study.tell(self._trial, state=TrialState.FAIL)
        self._notebook.write(state=state, message=message)
        return Trial(
            self.number,
            self._lambda,
            state,
            self._epochs,
            self._found,
            score,
            str(directory),
            message,
        )

    def _directory(self) -> Path:
        name = f"method.ewc_lambda={as_typed(self._lambda)},trial={self.number}"
        return Path(self.config.output_dir) / name

    def _configuration(self, directory: Path) -> DictConfig:
        config = copy.deepcopy(self.config)
        for key, value in {
            "method.ewc_lambda": self._lambda,
            "output_dir": str(directory),
            "search": None,
        }.items():
            OmegaConf.update(config, key, value, merge=False)
        return config

    def _prepare(self, job: "Job") -> "Job":
        self._began = True
        self._tasks = job.benchmark.task_names
        return tell_epochs(job, self._epoch)

    def _epoch(self, task: str, epoch: int, epochs: int, figures: dict[str, float]) -> None:
        import optuna

        self._notebook.epoch(task, epoch, epochs, figures)
        if task != self._tasks[-1]:
            self._before[task] = figures[f"val/{task}/accuracy"]
            return
        self._epochs = epoch
        before = self._known_before(figures)
        if before is None:
            return
        self._found = candidate_at(self._lambda, self._tasks, before, figures)
        self._trial.report(self.rule.score(self._found), epoch)
        if self._trial.should_prune():
            raise optuna.TrialPruned

    def _known_before(self, figures: dict[str, float]) -> list[float] | None:
        # A first stage that came from the store was not seen learning.
        old = self._tasks[:-1]
        known = self.study.user_attrs.get("before", {}) | self._before
        if all(task in known for task in old):
            return [known[task] for task in old]
        if self.rule.name == "best_average":  # which reads the end alone
            return [figures[f"retained/{task}"] for task in old]
        return None

    def _judge(self, summary: "Summary") -> float:
        self._found = candidate_of(summary)
        curves = zip(summary.tasks[:-1], summary.curves[:-1], strict=True)
        before = {task: curve[f"val/{task}/accuracy"][-1] for task, curve in curves}
        self.study.set_user_attr("before", before)
        self._report_unseen(summary, list(before.values()))
        return self.rule.score(self._found)

    def _report_unseen(self, summary: "Summary", before: Sequence[float]) -> None:
        """Report the epochs of a run that was found finished, or that nothing was known before."""
        last = summary.curves[-1]
        self._epochs = min(len(figures) for figures in last.values())
        seen = self.study.get_trials(deepcopy=False)[self._trial.number].intermediate_values
        for epoch in range(1, self._epochs + 1):
            if epoch not in seen:
                figures = {name: values[epoch - 1] for name, values in last.items()}
                candidate = candidate_at(self._lambda, summary.tasks, before, figures)
                self._trial.report(self.rule.score(candidate), epoch)


def _write(folder: Path, config: DictConfig, rule: Rule, trials: Sequence[Trial]) -> None:
    best = None
    with suppress(LifelongError):
        best = rule.choose(t.found for t in trials if t.state == FINISHED and t.found)
    content: dict[str, Any] = {
        "best": None if best is None else asdict(best) | {"score": rule.score(best)},
        "rule": asdict(rule),
        "search": OmegaConf.to_container(config.search, resolve=True),
        "seed": config.seed,
        "trials": [asdict(trial) for trial in trials],
    }
    with whole_file(folder / "search.json") as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
