"""The exceptions that users see: the offending value, what was expected, and the fix."""

from __future__ import annotations

__all__ = ["OccupiedError", "TetherError"]


class TetherError(ValueError):
    """Bad input, said in one line; the command line prints it and exits with 2.

    Parameters
    ----------
    problem : str
        What is wrong, with the offending value in it.
    expected : str
        What would have been accepted.
    fix : str
        What the user can do about it.

    Examples
    --------
    >>> str(TetherError("`lr` is -1", expected="a positive number", fix="set training.lr=5e-4"))
    '`lr` is -1; expected a positive number; fix: set training.lr=5e-4'
    """

    def __init__(self, problem: str, *, expected: str, fix: str) -> None:
        self.problem, self.expected, self.fix = problem, expected, fix
        super().__init__(f"{problem}; expected {expected}; fix: {fix}")

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and worker processes
        # must be able to send this error to their parent.
        return _rebuild, (type(self), self.problem, self.expected, self.fix)


class OccupiedError(TetherError):
    """What is asked for is right, and another process is at it."""


def _rebuild(kind: type[TetherError], problem: str, expected: str, fix: str) -> TetherError:
    return kind(problem, expected=expected, fix=fix)
