"""A benchmark is a YAML of data modules, a user's own among them."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule
from omegaconf import DictConfig, OmegaConf
from tests.run.own_benchmark import FITS, SHAPE, Textures, write_conf
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from lifelong.config.benchmark import build_benchmark
from lifelong.config.compose import compose_run
from lifelong.data.benchmark import Benchmark
from lifelong.data.definition import check_benchmark
from lifelong.data.image_task import ImageTask
from lifelong.data.task import ModuleTask, as_task
from lifelong.errors import LifelongError

PAIRS = torch.arange(10.0).view(10, 1), torch.arange(10) % 3


class Plain(LightningDataModule):
    """Ten examples that are their own numbers; the three loaders are what a test gives."""

    def __init__(self, **loaders: Any) -> None:
        super().__init__()
        data = TensorDataset(*PAIRS)
        self.loaders = {part: DataLoader(data, 3) for part in ("train", "val", "test")} | loaders

    def train_dataloader(self) -> Any:
        return self.loaders["train"]

    def val_dataloader(self) -> Any:
        return self.loaders["val"]

    def test_dataloader(self) -> Any:
        return self.loaders["test"]


def task(module: LightningDataModule | None = None, name: str = "plain", **options: Any) -> Any:
    made = ModuleTask(name, module or Plain(), **options)
    made.setup("fit")
    return made


def numbers(batches: Any) -> list[int]:
    return [int(number) for images, _ in batches for number in images.flatten()]


def composed(folder: Path, *words: str) -> DictConfig:
    conf = write_conf(folder / "conf")
    search = f"hydra.searchpath=[file://{conf}]"
    return compose_run([search, "benchmark=textures", *FITS, f"output_dir={folder}", *words])


def silent(_: str) -> None:
    return


@pytest.mark.parametrize(
    ("benchmark", "tasks"),
    [
        ("mnist_usps", ["mnist", "usps"]),
        ("usps_mnist", ["usps", "mnist"]),
        ("embedded_digits", ["digits_as_mnist", "digits_as_usps"]),
    ],
)
def test_ours_are_yaml_of_tasks_in_order_that_single_keys_change(
    benchmark: str, tasks: list[str]
) -> None:
    words = [f"benchmark={benchmark}", f"benchmark.tasks.{tasks[0]}.batch_size=32", "seed=4"]
    config = compose_run([*words, "output_dir=x", "val_fraction=0.2"])
    assert list(config.benchmark.tasks) == tasks
    first, second = (config.benchmark.tasks[name] for name in tasks)
    assert (first.batch_size, second.batch_size) == (32, 64)
    assert (first.seed, second.val_fraction, first._target_) == (4, 0.2, "lifelong.data.ImageTask")
    assert config.benchmark.scenario == "domain"


def test_the_embedded_digits_are_built_with_the_names_and_settings_of_the_yaml() -> None:
    said: list[str] = []
    config = compose_run(["benchmark=embedded_digits", "output_dir=x", "seed=3"])
    benchmark = build_benchmark(config, said.append)
    direct = ImageTask("embedded_usps", "nowhere", name="digits_as_usps", batch_size=64, seed=3)
    direct.setup()
    built = benchmark.tasks[1]
    assert benchmark.task_names == ["digits_as_mnist", "digits_as_usps"]
    assert (built.fingerprint, built.num_classes) == (direct.fingerprint, 10)
    assert len(said) == 2
    for ours, its in (
        (direct.train_dataloader(), built.train_batches()),
        (direct.val_dataloader(), built.val_dataloader()),
    ):
        for one, other in zip(ours, its, strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])


def test_three_tasks_of_a_users_own_are_composed_set_up_and_loaded(tmp_path: Path) -> None:
    benchmark = build_benchmark(composed(tmp_path), silent)
    assert (benchmark.name, benchmark.scenario) == ("textures", "domain")
    assert benchmark.task_names == ["red", "green", "blue"]
    assert benchmark.tasks[1].source == "tests.run.own_benchmark.Textures"
    stage = benchmark.stage(1)
    assert stage.current is benchmark.tasks[1]
    assert len(stage.train_dataloader()) == 7
    assert [len(loader) for loader in stage.val_dataloader()] == [2, 2]
    assert [len(loader) for loader in stage.test_dataloader()] == [2, 2, 2]
    for loader in (stage.train_dataloader(), *stage.val_dataloader(), *stage.test_dataloader()):
        images, labels = next(iter(loader))
        assert (tuple(images.shape[1:]), images.dtype) == (SHAPE, torch.float32)
        assert labels.dtype == torch.int64
        assert set(labels.tolist()) <= set(range(7))
    held = torch.cat([images for images, _ in stage.val_dataloader()[0]])
    assert torch.equal(held, benchmark.tasks[0].module.val.tensors[0])  # type: ignore[attr-defined]


def test_all_that_is_drawn_is_a_function_of_seed_and_name(tmp_path: Path) -> None:
    def first_batches(seed: int) -> Tensor:
        torch.rand(1 + seed)
        config = OmegaConf.merge(composed(tmp_path / f"{torch.rand(())}"), {"seed": seed})
        tasks = build_benchmark(config, silent).tasks  # type: ignore[arg-type]
        return torch.cat([next(iter(one.train_batches()))[0] for one in tasks])

    assert torch.equal(first_batches(0), first_batches(0))
    assert not torch.equal(first_batches(0), first_batches(1))


@pytest.mark.parametrize(
    "change", [{"domain": 3}, {"noise": 0.5}, {"count": 147}, {"batch_size": 10}]
)
def test_two_settings_of_a_class_are_two_fingerprints(change: dict[str, Any]) -> None:
    given = {"domain": 0, "noise": 0.1} | change
    assert task(Textures(0)).fingerprint == task(Textures(0), name="other").fingerprint
    # as the command line makes it, and as Python does, where the attributes are all that is known
    assert task(Textures(**given)).fingerprint != task(Textures(0)).fingerprint
    settings = [task(Textures(0), settings=one).fingerprint for one in ({"domain": 0}, given)]
    assert settings[0] != settings[1]


def test_every_number_of_the_data_counts_in_a_fingerprint() -> None:
    def of(position: int, part: str) -> str:
        images = PAIRS[0].clone()
        images[position] += 1e-6
        return task(Plain(**{part: DataLoader(TensorDataset(images, PAIRS[1]), 3)})).fingerprint

    found = [of(place, part) for place in range(1, 10, 4) for part in ("train", "val", "test")]
    assert len({*found, task().fingerprint}) == len(found) + 1


def test_the_source_of_a_class_counts_in_its_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for text in ("", "# another augmentation\n"):
        (tmp_path / "edited.py").write_text(f"{text}from {__name__} import Plain\n\n"
                                            "class Mine(Plain):\n    pass\n")  # fmt: skip
        sys.modules.pop("edited", None)
        found.append(task(__import__("edited").Mine()).fingerprint)
    assert found[0] != found[1]


def test_a_fingerprint_and_a_source_of_the_modules_own_are_taken() -> None:
    module = Plain()
    module.fingerprint, module.source, module.num_classes = "v7", "the zoo", 5  # type: ignore[assignment]
    assert (task(module).fingerprint, task(module).source) == ("v7", "the zoo")
    assert task(module).num_classes == 5
    module.fingerprint = 7  # type: ignore[assignment]
    with pytest.raises(LifelongError, match="fingerprint of task plain is 7; give a text"):
        _ = task(module).fingerprint


def test_consolidation_has_all_training_examples_once_and_in_order() -> None:
    data = TensorDataset(*PAIRS)
    shuffled = task(Plain(train=DataLoader(data, 3, shuffle=True, drop_last=True)))
    assert numbers(shuffled.consolidation_batches()) == list(range(10))
    shares = [numbers(shuffled.consolidation_batches(rank=r, world_size=3)) for r in range(3)]
    assert shares == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    part = task(Plain(train=DataLoader(data, 3, sampler=SubsetRandomSampler([1, 4, 7]))))
    assert numbers(part.consolidation_batches()) == [1, 4, 7]
    own = Plain()
    own.consolidation_dataloader = lambda: DataLoader(data, 5)  # type: ignore[attr-defined]
    assert [len(labels) for _, labels in task(own).consolidation_batches()] == [5, 5]


def test_augmentation_is_alike_in_every_consolidation() -> None:
    def drawn() -> Tensor:
        torch.rand(1)
        return torch.cat([images for images, _ in task(Textures(0)).consolidation_batches()])

    assert len(drawn()) == 140
    assert torch.equal(drawn(), drawn())


def test_joint_training_mixes_the_training_sets_of_data_modules() -> None:
    benchmark = Benchmark("own", {"a": Textures(0), "b": Textures(1), "c": Textures(2)})
    stage = benchmark.stage(2, joint=True)
    for one in benchmark.tasks:
        one.setup("fit")
    joint = stage.train_dataloader()
    assert len(joint) == 3 * 7
    assert len(next(iter(joint))[0]) == 20
    sets = [one.module.train for one in benchmark.tasks]  # type: ignore[attr-defined]
    assert joint.loader.dataset.datasets == sets  # type: ignore[attr-defined]
    assert len(benchmark.stage(2).train_dataloader()) == 7


def test_what_cannot_be_mixed_says_so_on_one_line() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(zip(*PAIRS, strict=True))

        def __len__(self) -> int:
            return 10

    streamed = task(Plain(train=DataLoader(Stream())), name="streamed")
    with pytest.raises(LifelongError, match=r"task streamed cannot be mixed.*method=ewc"):
        task().train_batches([streamed])
    digits = ImageTask("embedded_mnist", "nowhere")
    digits.setup()
    with pytest.raises(LifelongError, match="task embedded_mnist cannot be mixed"):
        task().train_batches([digits])
    with pytest.raises(LifelongError, match="task plain cannot be mixed"):
        digits.train_batches([task()])


def test_the_modules_own_transfer_hooks_are_applied() -> None:
    class Normalising(Plain):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0] * 10, batch[1]

    assert numbers(task(Normalising()).val_dataloader()) == list(range(0, 100, 10))
    assert numbers(task(Normalising()).consolidation_batches()) == list(range(0, 100, 10))
    with pytest.raises(LifelongError, match="without transfer hooks"):
        task().train_batches([task(Normalising())])


def test_what_a_module_draws_while_it_is_set_up_is_a_function_of_seed_and_name() -> None:
    class Splitting(Plain):
        def prepare_data(self) -> None:
            self.first = float(torch.rand(()))

        def setup(self, stage: str) -> None:
            if stage == "fit":
                self.second = float(torch.rand(()))

    def drawn(seed: int) -> tuple[float, float]:
        torch.rand(1)
        made = task(Splitting(), seed=seed).module
        return made.first, made.second

    assert drawn(0) == drawn(0)
    assert len({*drawn(0), *drawn(1)}) == 4


class NoTest(LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*PAIRS))

    val_dataloader = train_dataloader


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: task(NoTest()).test_dataloader(), "NoTest has no test_dataloader"),
        (lambda: task(Plain(val={"a": 1})).val_dataloader(), "gave a dict; give one loader"),
        (lambda: task(Plain(val=[1, 2])).val_dataloader(), "gave a list; give one loader"),
        (lambda: as_task("x", 3), "benchmark.tasks.x is a int"),  # type: ignore[arg-type]
        (lambda: Benchmark("b", {}, scenario="class"), "scenario=class is not built yet"),
    ],
)
def test_what_is_no_task_is_refused_on_one_line(ask: Callable[[], Any], said: str) -> None:
    with pytest.raises(LifelongError, match=said) as caught:
        ask()
    assert "\n" not in str(caught.value)


GOOD = {"_target_": "mine.Data"}


@pytest.mark.parametrize(
    ("benchmark", "scenario", "said"),
    [
        ({"tasks": {"a": GOOD}}, "class", "scenario=class is not built yet.*scenario=domain"),
        ({"tasks": {"a": GOOD}}, "task", "scenario=task is not built yet"),
        ({"tasks": {"a": GOOD}}, "time", "scenario=time is not known"),
        ({"tasks": {"a": GOOD}, "scenario": "class"}, "domain", "benchmark.scenario=class is not"),
        ({"tasks": {"mnist": "mnist"}}, "domain", "tasks.mnist is mnist.*{dataset: mnist}"),
        ({"tasks": {"a": {"x": 1}}}, "domain", "benchmark.tasks.a has no _target_"),
        ({"tasks": {}}, "domain", "benchmark.tasks is {}"),
        ({"tasks": {"a/b": GOOD}}, "domain", "'a/b'; name it with letters"),
        ({"tasks": {"a": GOOD}, "_target_": "my.Benchmark"}, "domain", "_target_=my.Benchmark"),
    ],
)
def test_a_benchmark_that_cannot_be_made_is_refused_on_one_line(
    benchmark: dict[str, Any], scenario: str, said: str
) -> None:
    check_benchmark({"tasks": {"a.b-c_1": GOOD}}, "domain")
    with pytest.raises(LifelongError, match=said) as caught:
        check_benchmark(benchmark, scenario)
    assert "\n" not in str(caught.value)
    with pytest.raises(LifelongError):
        compose_run(["benchmark=embedded_digits", "output_dir=x", "scenario=class"])


def test_a_definition_is_checked_without_torch() -> None:
    code = "import lifelong.data.definition, sys; print({'torch', 'lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
