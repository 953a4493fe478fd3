"""How studies show themselves: as text, tables, figures and data."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

from unrolled._base.results import Result
from unrolled._base.text import screen, table_of


class Study(Result):
    """A record with paragraphs and tables as `parts`, and a `figure` with a caption."""

    caption: ClassVar[str] = ""

    def parts(self) -> list[str]:
        """The paragraphs and tables of a report."""
        raise NotImplementedError

    def figure(self) -> Any:
        """The figure, with matplotlib."""
        raise NotImplementedError

    def text(self) -> str:
        """`parts` as Markdown."""
        return "\n".join(self.parts())

    def __repr__(self) -> str:
        """The text, shortened to fit on a screen."""
        return screen(self.text().splitlines())

    def short(self) -> str:
        """A table for a terminal, at most six columns and 100 characters wide; may be empty."""
        return ""

    def figures(self) -> dict[str, Callable[[], Any]]:
        """The functions that draw the figures, by caption."""
        return {self.caption: self.figure}


class Measured(Study):
    """A study of errors and their bounds after every step."""

    def rows(self) -> tuple[list[str], list[list]]:
        """Header and rows of a table with errors and bounds after every step."""
        raise NotImplementedError

    def table(self, form: str = "markdown") -> Any:
        """The numbers of `rows`, in the forms of `comparison.Comparison.table`."""
        head, rows = self.rows()
        return table_of(form, [dict(zip(head, row)) for row in rows])


class Compared(Study):
    """A study that compares methods, and shows itself as its comparison does."""

    depth: int  # K, the number of steps of every layer
    comparison: Any  # the comparison of the methods
    remarks: list[str]  # sentences about the settings
    seconds: dict[str, float]  # the seconds of calibration and training

    def answer(self) -> str:
        """The best learned, calibrated and analytic params, and what theory covers."""
        return self.comparison.why

    def timed(self) -> Self:
        """The study with the CPU times of its methods, which differ from run to run."""
        return self

    def short(self) -> str:
        """A row for each method: error and median, or gap; failures; costs; proofs."""
        return self.comparison.table("text")

    def __repr__(self) -> str:
        """The comparison, shortened to fit on a screen."""
        return repr(self.comparison)

    def table(self, form: str = "markdown", *, all: bool = False) -> Any:
        """`Comparison.table`, in any of its forms."""
        return self.comparison.table(form, all=all)

    def to_dict(self) -> dict[str, Any]:
        """The comparison and the seconds that calibration and training took."""
        return {"comparison": self.comparison, "seconds": self.seconds}
