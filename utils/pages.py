"""HTML pages from jinja2 templates, with one style sheet."""

from pathlib import Path
from typing import Any


def render_page(template: Path, **values: Any) -> str:
    """The page of a template that extends `page.html.j2`, which has the style sheet; `values` are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folders = [template.parent, Path(__file__).parent]
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(values)
