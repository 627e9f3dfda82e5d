"""What a run can be learnt with: one model for each part of the configuration, checked at once.

pydantic, because OmegaConf's structured configs know types and no ranges. Imports nothing heavy:
errors of configuration come before torch is loaded.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from lifelong.config.console import moved_line
from lifelong.config.processes import is_one_of_several
from lifelong.data.definition import check_benchmark
from lifelong.errors import LifelongError
from lifelong.run.keys import flat, moved

AUTO = "auto"  # the λ that is to be chosen
RULES = ("best_average", "most_new")  # how lifelong.report.best chooses λ


Values = TypeVar("Values", bound="Choices")


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


def _needs(what: str, example: object = "NUMBER", **bounds: Any) -> Any:
    return Field(description=what, examples=[example], **bounds)


Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_no_bool)]
Positive = Annotated[Number, _needs("a finite number above 0", gt=0)]
NotNegative = Annotated[Number, _needs("a finite number of at least 0", ge=0)]
Count = Annotated[Whole, _needs("a whole number of at least 1", 5, ge=1)]
CountFrom0 = Annotated[Whole, _needs("a whole number of at least 0", 4, ge=0)]
Share = Annotated[Number, _needs("a number from 0 to 1", ge=0, le=1)]


class Model(BaseModel):
    """A network of ours; a user's own has its own arguments."""

    in_features: Count = 1
    num_classes: Count = 1
    hidden: list[Count] = _needs("a list of whole numbers of at least 1", "[512,128]", default=[])
    widths: list[Count] = _needs("a list of whole numbers of at least 1", "[32,64]", default=[])


class Optimizer(BaseModel):
    """Any optimizer."""

    lr: Positive
    momentum: NotNegative = 0.0
    weight_decay: NotNegative = 0.0


class Method(BaseModel):
    """A method of ours; of a user's own, λ alone is known."""

    ewc_lambda: Literal["auto"] | NotNegative = _needs("a finite number of at least 0", default=0.0)
    damping: NotNegative = 0.0
    decay: Share = 1.0
    step: Literal["explicit", "proximal"] = "explicit"
    labels: Literal["exact", "sampled", "empirical"] = "exact"
    merge: Literal["sum", "nearest"] = "sum"
    at_most: Positive | None = _needs("a finite number above 0", 0.02, default=None)
    watch: Annotated[Whole, _needs("a whole number of at least 2", 200, ge=2)] = 200
    unit: Literal["nats", "points"] = "nats"
    storage: Literal["float32", "bfloat16", "log8"] = "float32"
    device: Literal["cpu"] | None = _needs("cpu or null", "cpu", default=None)
    anchors: Literal["each", "last"] = "each"
    xi: Positive = 1.0
    temperature: Positive = 1.0
    buffer_size: CountFrom0 = 0
    minibatch_size: Count = 1
    fill: Literal["reservoir", "balanced"] = "reservoir"
    seed: CountFrom0 = 0
    alpha: NotNegative = 0.0
    beta: NotNegative = 0.0


class Trainer(BaseModel):
    """Lightning's, as far as this package goes with it."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda"]
    # −1 and auto would have Lightning start processes by itself, which nobody watches
    devices: Count | list[CountFrom0] = _needs("a number of processes of at least 1", 2)
    max_time: Annotated[str, BeforeValidator(str), Field(pattern=r"^\d+(:\d\d){3}$")] | None = (
        _needs("days:hours:minutes:seconds", "00:00:10:00 for ten minutes a task", default=None)
    )
    precision: Literal["bf16-mixed", "16-mixed", "32-true"]
    accumulate_grad_batches: Count = 1
    gradient_clip_val: Positive | None = _needs("a finite number above 0", default=None)
    log_every_n_steps: Count = 1


class Choice(BaseModel):
    """How λ is chosen."""

    rule: Literal["best_average", "most_new"]
    at_most_lost: Number = _needs("points from 0 to 100", ge=0, le=100)
    low: Positive
    high: Positive
    refine: CountFrom0


class Search(BaseModel):
    """What a search draws λ from."""

    low: Positive
    high: Positive
    trials: Count
    seed: CountFrom0


class Choices(BaseModel):
    """What a sweep needs to know before its first run."""

    choice: Choice
    search: Search | None = None


class Run(Choices):
    """All that is checked of one run."""

    method: Method
    optimizer: Optimizer
    val_fraction: Number = _needs("a number between 0 and 1", gt=0, lt=1)
    max_epochs: Count
    batch_size: Count
    seed: CountFrom0
    checkpoint_every: Number = _needs("a finite number of seconds above 0", gt=0)
    stages_limit: Number = _needs("a finite number of GB of at least 0", ge=0)
    resume: Literal[False, True]
    compile: Literal[False, True]
    diagnostics: Literal[False, True]
    # `off` is YAML's word for false: both mean the same here.
    stages: Annotated[str, BeforeValidator(lambda value: value or "off")] = _needs(
        "off or a folder", "off"
    )
    trainer: Trainer
    model: Model | None = None


def check(config: DictConfig) -> None:
    """Refuse what cannot be run, before anything heavy is imported or written.

    A number in quotes becomes the number that it is.

    Args:
        config: the composed configuration.

    Raises:
        LifelongError: for a value out of range; one line that names the key and what it takes.
    """
    check_benchmark(config.benchmark, config.scenario)
    method = _plain(config.method)
    if _is_ours(method):  # added with +, or of an earlier version
        for key, value in flat(method, "method.").items():
            if moved(key):
                raise LifelongError(moved_line(key, str(value)))
    values = _checked(Run, config)
    for key, value in flat(values.model_dump(exclude_unset=True)).items():
        if repr(_plain(OmegaConf.select(config, key))) != repr(value):
            OmegaConf.update(config, key, value)
    _check_bounds(values)
    if config.search is not None and "ewc_lambda" not in config.method:
        raise LifelongError(f"method={config.method.name} has no λ to search; type method=ewc")
    if values.method.ewc_lambda == AUTO:
        _check_auto(config)
    if config.trainer.accelerator != "auto":
        check_unscaling(config)


def check_choice(config: DictConfig) -> None:
    """Refuse an unknown rule for the choice of λ, and bounds that a search cannot draw from.

    Args:
        config: the composed configuration.

    Raises:
        LifelongError: one line that names the key and what it takes.
    """  # noqa: DOC502
    _check_bounds(_checked(Choices, config))


def check_unscaling(config: DictConfig) -> None:
    """Refuse an optimizer that would clip gradients while they are still scaled.

    Args:
        config: the composed configuration, with an accelerator that is known.

    Raises:
        LifelongError: one line that names the keys.
    """
    trainer = config.trainer
    scaled = trainer.precision == "16-mixed" and trainer.accelerator != "cpu"
    if trainer.gradient_clip_val is not None and scaled and config.optimizer.get("fused", False):
        raise LifelongError(
            "with trainer.precision=16-mixed a fused optimizer unscales its gradients too late "
            "for trainer.gradient_clip_val; type optimizer.fused=false, or bf16-mixed"
        )


def _checked(kind: type[Values], config: DictConfig) -> Values:
    parts = {key: _plain(config[key]) for key in kind.model_fields if key in config}
    for name, known in (("model", ()), ("method", ("ewc_lambda",))):
        part = parts.get(name) or {}
        if not _is_ours(part):
            parts[name] = {key: part[key] for key in known if key in part}
    try:
        return kind.model_validate(parts)
    except ValidationError as error:
        # A key that follows another's value is wrong because that one is: the outer one is named.
        places = [one["loc"] for one in error.errors()]
        raise LifelongError(_in_words(kind, min(places, key=len), config)) from error


def _in_words(kind: type[BaseModel], place: Sequence[int | str], config: DictConfig) -> str:
    names: list[str] = []
    fields = kind.model_fields
    for part in place:
        if part not in fields:
            break  # what follows says which of several types, or which entry of a list
        names.append(str(part))
        field = fields[str(part)]
        kinds = [one for one in (field.annotation, *get_args(field.annotation)) if _is_model(one)]
        fields = kinds[0].model_fields if kinds else {}
    key = ".".join(names)
    came = f"{key} is {OmegaConf.select(config, key)}"
    if field.description is not None:
        return f"{came}; it must be {field.description}: type {key}={(field.examples or [''])[0]}"
    options = [str(option).lower() for option in get_args(field.annotation)]
    return f"{came}; type {' or '.join(f'{key}={option}' for option in options)}"


def _is_ours(part: Mapping[str, Any]) -> bool:
    return str(part.get("_target_", "lifelong.")).startswith("lifelong.")


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _check_bounds(values: Choices) -> None:
    choice, search = values.choice, values.search
    if choice.high < choice.low:
        raise LifelongError(
            f"choice.high is {choice.high}; it must be a number of at least {choice.low}: "
            "type choice.high=NUMBER"
        )
    if search is not None and search.high <= search.low:
        raise LifelongError(
            f"search.high is {search.high:g}; it must be a number above search.low={search.low}: "
            "type search.high=NUMBER"
        )


def _check_auto(config: DictConfig) -> None:
    wrong = None
    if config.method.get("at_most") is not None:
        wrong = "method.at_most, which moves λ by itself; leave one of them out"
    elif config.trainer.max_time is not None:
        wrong = "trainer.max_time: a clock makes no two runs comparable; leave one of them out"
    elif config.trainer.devices != 1 or is_one_of_several():
        wrong = "several processes; choose λ in one (trainer=cpu), then type that λ"
    elif len(config.benchmark.tasks) < 2:
        wrong = "a single task: λ weighs what was learnt before; type benchmark=mnist_usps"
    if wrong is not None:
        raise LifelongError(f"method.ewc_lambda=auto does not go with {wrong}")
