"""A page: one HTML file with style, scripts and figures inside, which needs no network."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tether.atomic import write_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import plotly.graph_objects as go

__all__ = ["in_script", "own_source", "render_page", "write_page"]


def render_page(template: str, context: Mapping[str, Any]) -> str:
    """Fill a template that extends `page.html.j2`.

    Parameters
    ----------
    template : str
        Its file's name.
    context : mapping
        What it shows; ``title`` and ``subtitle`` among it.

    Returns
    -------
    str
        HTML with style, scripts and figures inside.
    """
    return (
        _environment()
        .get_template(template)
        .render(
            **context,
            style=Markup(own_source("style.css")),  # noqa: S704  (ours, without data)
            script=Markup(own_source("report.js")),  # noqa: S704
            plotly_js=Markup(get_plotlyjs().replace("</script", "<\\/script")),  # noqa: S704
        )
    )


def write_page(path: Path, page: str) -> Path:
    """Replace a page in one step.

    Parameters
    ----------
    path : Path
        Where.
    page : str
        Of `render_page`.

    Returns
    -------
    Path
        The same path.

    Raises
    ------
    TetherError
        If the folder cannot be written to.
    """
    write_text(path, page)
    return path


def own_source(name: str) -> str:
    """Text of a file beside the templates."""
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def in_script(text: str) -> Markup:
    """Write JSON so that nothing in it can end the script element around it."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tether.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
    )
    environment.globals["figure_json"] = _figure_json
    return environment


def _figure_json(figure: go.Figure) -> Markup:
    """Write a figure as JSON for a script element."""
    return in_script(str(figure.to_json()))
