"""The run's log: one JSON object a line, cut back to the checkpoint on resume."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tether.atomic import write_text

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["append_log", "cut_log", "read_log"]


def append_log(path: Path, event: dict[str, Any]) -> None:
    """Append one event.

    Parameters
    ----------
    path : Path
        The log.
    event : dict
        With ``event`` and ``step``.
    """
    with path.open("a") as stream:
        stream.write(json.dumps(event) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """All complete events; a last line that a kill cut short is left out.

    Parameters
    ----------
    path : Path
        The log, which may be missing.

    Returns
    -------
    list of dict
        In order.
    """
    events = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return events


def cut_log(path: Path, step: int) -> None:
    """Drop events after `step`: a resumed run writes them again.

    Parameters
    ----------
    path : Path
        The log.
    step : int
        Last step to keep.
    """
    kept = [event for event in read_log(path) if event["step"] <= step]
    write_text(path, "".join(json.dumps(event) + "\n" for event in kept))
