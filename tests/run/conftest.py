"""The commands, run in this process: exit code, standard output and standard error."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

# A network and a training small enough for a test, through the keys that a user has.
SMALL = ("benchmark=embedded_digits", "max_epochs=2", "model.hidden=[32]", "optimizer.lr=0.01")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """What went wrong, without the lines that say where the images come from."""
        return [line for line in self.err.splitlines() if "embedded digits (scikit" not in line]


Command = Callable[..., Outcome]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The word for a store that tests share whose runs only have to be there."""
    return f"stages={tmp_path_factory.mktemp('stages')}"


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIFELONG_DATA", raising=False)

    def run(name: str, *words: str) -> Outcome:
        from lifelong.cli import quickstart, train

        main = {"train": train.main, "quickstart": quickstart.main}[name]
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [f"lifelong-{name}", *words])
        capfd.readouterr()
        code: str | int | None = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
        said = capfd.readouterr()
        return Outcome(int(code or 0), said.out, said.err)

    return run
