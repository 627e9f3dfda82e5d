"""What cannot be run is refused in one line: what came, what is wanted, what to type."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from lifelong.config.check import check
from lifelong.config.compose import CONF, compose_run
from lifelong.config.console import one_line
from lifelong.config.continuing import continued, note_run
from lifelong.errors import LifelongError
from lifelong.run.keys import MOVED, moved
from lifelong.run.resume.position import differences


def composed(*words: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=["output_dir=out", *words])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("method.ewc_lambda=-1", "method.ewc_lambda is -1; it must be a finite number of at"),
        ("method.ewc_lambda=true", "method.ewc_lambda is True; it must be a finite number of at"),
        ("optimizer.lr=-1", "optimizer.lr is -1; it must be a finite number above 0: type optim"),
        ("optimizer.lr=nan", "optimizer.lr is nan; it must be a finite number above 0"),
        ("+optimizer.weight_decay=-1", "optimizer.weight_decay is -1; it must be a finite number"),
        ("val_fraction=1", "val_fraction is 1; it must be a number between 0 and 1"),
        ("max_epochs=0", "max_epochs is 0; it must be a whole number of at least 1: type max_"),
        ("batch_size=2.5", "batch_size is 2.5; it must be a whole number of at least 1"),
        ("seed=-1", "seed is -1; it must be a whole number of at least 0"),
        ("checkpoint_every=0", "checkpoint_every is 0; it must be a finite number of seconds"),
        ("stages_limit=-1", "stages_limit is -1; it must be a finite number of GB of at least 0"),
        ("stages=3", "stages is 3; it must be off or a folder: type stages=off"),
        ("resume=maybe", "resume is maybe; type resume=false or resume=true"),
        ("compile=2", "compile is 2; type compile=false or compile=true"),
        ("model.hidden=128", "model.hidden is 128; it must be a list of whole numbers of at least"),
        ("model.hidden=[64,0]", "model.hidden is [64, 0]; it must be a list of whole numbers"),
        ("model.num_classes=0", "model.num_classes is 0; it must be a whole number of at least 1"),
        ("trainer.devices=0", "trainer.devices is 0; it must be a number of processes of at le"),
        ("trainer.devices=auto", "trainer.devices is auto; it must be a number of processes"),
        ("trainer.accelerator=mps", "trainer.accelerator is mps; type trainer.accelerator=auto or"),
        ("trainer.precision=half", "trainer.precision is half; type trainer.precision=bf16-mixed"),
        ("trainer.max_time=10", "trainer.max_time is 10; it must be days:hours:minutes:seconds"),
        ("method.step=implicit", "method.step is implicit; type method.step=explicit or method"),
        ("method.damping=-0.1", "method.damping is -0.1; it must be a finite number of at least"),
        ("method.decay=1.5", "method.decay is 1.5; it must be a number from 0 to 1"),
        ("method.labels=all", "method.labels is all; type method.labels=exact or"),
        ("method.storage=int4", "method.storage is int4; type method.storage=float32 or method.s"),
        ("method.device=cuda", "method.device is cuda; it must be cpu or null: type method.device"),
        ("method.at_most=0", "method.at_most is 0; it must be a finite number above 0: type meth"),
        ("method.watch=1", "method.watch is 1; it must be a whole number of at least 2: type m"),
        ("method.unit=bits", "method.unit is bits; type method.unit=nats or method.unit=points"),
        ("choice.rule=luck", "choice.rule is luck; type choice.rule=best_average or choice.rule="),
        ("choice.high=0.5", "choice.high is 0.5; it must be a number of at least 1.0"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_wanted(word: str, said: str) -> None:
    with pytest.raises(LifelongError) as error:
        check(composed(word))
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("group", ["method=finetune", "experiment=lambda_search", "trainer=ddp"])
def test_what_the_package_ships_is_in_range(group: str) -> None:
    check(composed(group))


def test_a_number_in_quotes_is_a_number_and_off_is_a_word() -> None:
    config = composed("method.ewc_lambda='1e4'", "seed='3'", "model.hidden=['64']", "stages=off")
    check(config)
    assert repr(config.method.ewc_lambda) == "10000.0"
    assert repr(config.seed) == "3"
    assert config.model.hidden == [64]
    assert config.stages == "off"
    assert config.output_dir == "out"


def test_a_users_own_network_and_method_have_arguments_of_their_own() -> None:
    check(composed("model._target_=mine.Net", "model.hidden=wide"))
    check(composed("method._target_=mine.Method", "method.step=7"))
    with pytest.raises(LifelongError, match=r"method\.ewc_lambda is -1"):
        check(composed("method._target_=mine.Method", "method.ewc_lambda=-1"))


@pytest.mark.parametrize(("word", "code"), [("model.hidden=128", 1), ("trainer.devices=0", 1)])
def test_an_error_comes_within_two_seconds_and_before_torch(
    tmp_path: Path, word: str, code: int
) -> None:
    script = (
        f"import sys\nsys.argv = ['lifelong-train', {word!r}]\n"
        "from lifelong.cli.train import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code)\n"
        "print({'torch', 'lightning'} & set(sys.modules))"
    )
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    after = os.times()
    # the processor's seconds: what a machine that does nothing else would need
    used = after.children_user + after.children_system
    assert used - before.children_user - before.children_system < 2
    assert done.stdout.splitlines() == [str(code), "set()"], done.stderr


@pytest.fixture
def flat_method(tmp_path: Path) -> Path:
    (tmp_path / "method").mkdir()
    (tmp_path / "method/flat.yaml").write_text(
        "_target_: lifelong.methods.EWC\nname: flat\newc_lambda: 1.0\ndamping: 0.01\n"
    )
    return tmp_path


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_key_that_moved_answers_with_its_new_name(flat_method: Path, old: str, new: str) -> None:
    typed = new if "=" in new else f"{new}=0.5"
    said = f"{old} is {new} now; type {typed}"
    with pytest.raises(Exception) as error:  # noqa: PT011  # Hydra's own, of several kinds
        compose_run(["method=flat", f"{old}=0.5", "output_dir=out"], config_dir=flat_method)
    assert one_line(error.value) == said
    with pytest.raises(LifelongError) as ours:
        compose_run(["method=flat", f"+{old}=0.5", "output_dir=out"], config_dir=flat_method)
    assert str(ours.value) == said


def test_a_key_that_never_was_is_no_key(flat_method: Path) -> None:
    with pytest.raises(Exception) as error:  # noqa: PT011
        compose_run(["method=flat", "method.lambda=1", "output_dir=out"], config_dir=flat_method)
    assert one_line(error.value).startswith("method.lambda is no key of the configuration")
    assert moved("method.lambda") is None


def test_a_method_without_lambda_says_so(flat_method: Path) -> None:
    (flat_method / "method/none.yaml").write_text("_target_: mine.Method\nname: none\n")
    words = ["method=none", "method.ewc_lambda=1", "output_dir=out"]
    with pytest.raises(Exception) as error:  # noqa: PT011
        compose_run(words, config_dir=flat_method)
    assert one_line(error.value).startswith(
        "this method has no penalty, so no method.ewc_lambda; leave"
    )


def test_a_run_of_an_earlier_version_is_named_with_the_new_keys() -> None:
    then: dict[str, Any] = {"method": {"penalty": {"damping": 0.01}}, "data_dir": "x"}
    now: dict[str, Any] = {"method": {"damping": 0.01}, "data_dir": "y"}
    assert differences(then, now) == [
        "method.penalty.damping=0.01 there, None here (it is method.damping now)",
        "method.damping=None there, 0.01 here",
    ]


def test_auto_is_resolved_before_anything_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from lifelong.config.build import build_job

    words = ["benchmark=embedded_digits", f"output_dir={tmp_path}", "logger=none"]
    config = compose_run(words)
    assert config.trainer.accelerator == "auto"
    job = build_job(config)
    expected = "gpu" if torch.cuda.is_available() else "cpu"
    assert job.config["trainer"]["accelerator"] == expected
    assert config.trainer.accelerator == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert build_job(config).config["trainer"]["accelerator"] == "gpu"
    late = [*words, "trainer.precision=16-mixed", "trainer.gradient_clip_val=1"]
    with pytest.raises(LifelongError, match=r"optimizer\.fused=false"):
        build_job(compose_run(late))


def test_what_is_free_is_taken_from_the_command_that_resumes(tmp_path: Path) -> None:
    words = ["benchmark=usps_mnist", "data_dir=old", "seed=3", f"output_dir={tmp_path}"]
    note_run(compose_run(words), words)
    (tmp_path / ".hydra/config.yaml").touch()
    again = composed(f"output_dir={tmp_path}", "data_dir=new", "resume=true", "choice.low=2")
    found = continued(again, ["data_dir=new", "resume=true", "choice.low=2", "hydra.run.dir=x"])
    assert (found.benchmark.name, found.seed, found.resume) == ("usps_mnist", 3, True)
    assert (found.data_dir, found.benchmark.tasks.usps.data_dir, found.choice.low) == (
        "new",
        "new",
        2,
    )
    for other in ("batch_size=3", "~logger.tensorboard"):
        assert continued(again, ["resume=true", other]) is again


@pytest.mark.parametrize(
    ("method", "key", "value", "said"),
    [
        ("l2", "anchors", "first", "type method.anchors=each or method.anchors=last"),
        ("mas", "damping", "-1", "it must be a finite number of at least 0"),
        ("mas", "decay", "2", "it must be a number from 0 to 1"),
        ("si", "xi", "0", "it must be a finite number above 0"),
        ("lwf", "temperature", "0", "it must be a finite number above 0"),
        ("lwf", "ewc_lambda", "-1", "it must be a finite number of at least 0"),
        ("replay", "buffer_size", "-1", "it must be a whole number of at least 0"),
        ("replay", "buffer_size", "2.5", "it must be a whole number of at least 0"),
        ("replay", "minibatch_size", "0", "it must be a whole number of at least 1"),
        ("replay", "fill", "fifo", "type method.fill=reservoir or method.fill=balanced"),
        ("replay", "seed", "-1", "it must be a whole number of at least 0"),
        ("derpp", "alpha", "-1", "it must be a finite number of at least 0"),
        ("derpp", "beta", "nan", "it must be a finite number of at least 0"),
        ("agem", "minibatch_size", "many", "it must be a whole number of at least 1"),
    ],
)
def test_a_key_of_each_method_is_named_with_what_is_wanted(
    method: str, key: str, value: str, said: str
) -> None:
    check(composed(f"method={method}"))
    with pytest.raises(LifelongError, match=f"^method.{key} is {value}; {said}") as error:
        check(composed(f"method={method}", f"method.{key}={value}"))
    assert "\n" not in str(error.value)
