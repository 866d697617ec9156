"""The directive ``mermaid``, which draws a flowchart on the page.

Its argument says what the flowchart shows, for readers who cannot see it.
"""

from __future__ import annotations

from typing import Any

import flowchart
from docutils import nodes
from docutils.parsers.rst import Directive


class Mermaid(Directive):
    """The directive."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Draw the content."""
        try:
            chart = flowchart.parse("\n".join(self.content))
        except ValueError as error:
            raise self.error(str(error)) from error
        title = " ".join(self.arguments) or ", ".join(chart.labels)
        return [nodes.raw("", flowchart.draw(chart, title), format="html")]


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("mermaid", Mermaid)
    return {"parallel_read_safe": True}
