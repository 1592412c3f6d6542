"""Ctrl-C: one line on standard error, exit code 130, whatever processes there are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tether.cli.list
from tether.cli.main import main

#: Seconds that a busy machine may take to import torch and to begin.
PATIENCE = 120

#: A shell's background job is started deaf to Ctrl-C, and what it starts as well: heard again here.
HEARING = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from tether.cli.main import main; main()"
)

#: Of the workspace and a folder: arguments, and the file by which one sees that it has begun.
Command = Callable[[Any, Path], tuple[list[object], Path]]


def adapt(workspace: Any, folder: Path) -> tuple[list[object], Path]:
    config = workspace.write_config(folder)
    more = ["--recipe", "full", "training.property_steps=1000000"]
    return ["adapt", "--config", config, "--out", folder / "run", *more], folder / "run/log.jsonl"


def label(workspace: Any, folder: Path) -> tuple[list[object], Path]:
    out = folder / "out.arrow"
    more = ["--backbone", "tiny", "--workers", 2, "--n-per-structure", 10000]
    return ["label", workspace.store, "--out", out, *more], folder / "out.arrow.parts"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of a process group")
@pytest.mark.parametrize("command", [adapt, label])
def test_the_user_reads_one_line(command: Command, workspace: Any, tmp_path: Path) -> None:
    arguments, begun = command(workspace, tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HEARING, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while not begun.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(1.0)  # workers are starting
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            _, err = process.communicate(timeout=PATIENCE)
        finally:
            if process.poll() is None:  # a failure, not a wait without an end
                os.killpg(process.pid, signal.SIGKILL)
    assert err == "interrupted; the same command goes on where it was\n"
    assert process.returncode == 130


def test_a_verb_that_starts_anew_promises_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tether.cli.list, "_of_tether", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["list"])
    assert (stop.value.code, capsys.readouterr().err) == (130, "interrupted\n")
