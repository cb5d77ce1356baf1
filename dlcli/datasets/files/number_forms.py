"""How a column writes its numbers: with a decimal point or, as a spreadsheet of half of Europe does, a comma.

    1.5        everywhere
    1,5        where a comma does not divide the cells
    1.000,5    the same, with points between the thousands: where a cell has both, so that 1.000 cannot be one

Plain text: neither torch nor numpy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

POINT, COMMA, GROUPED = "1.5", "1,5", "1.000,5"
_EXPONENT = r"(e[+-]?\d+)?"
FORMS = {
    form: re.compile(rf"[+-]?({pattern}){_EXPONENT}", re.IGNORECASE | re.ASCII)
    for form, pattern in {
        POINT: r"\d+\.?\d*|\.\d+",
        COMMA: r"\d+,?\d*|,\d+",
        GROUPED: r"(\d+|\d{1,3}(\.\d{3})+)(,\d*)?|,\d+",
    }.items()
}
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+", re.ASCII)  # 1,234 may be English


def is_number(cell: str, form: str = POINT) -> bool:
    return FORMS[form].fullmatch(cell) is not None


def is_number_in_some_form(cell: str) -> bool:
    return any(is_number(cell, form) for form in FORMS)


def as_point(cell: str, form: str) -> str:
    """A number in `form` as float() takes it."""
    return cell if form == POINT else cell.replace(".", "").replace(",", ".")


def possible_forms(cells: Iterable[str], delimiter: str) -> list[str]:
    """Those that some of these (distinct) cells may be written in, the commonest first.

    Behind semicolons 1,234 is a fraction, for the comma is why semicolons stand there; behind tabs and the like some
    cell must be plain about it.
    """
    with_comma = [cell for cell in cells if "," in cell and is_number_in_some_form(cell)]
    if delimiter == "," or not with_comma or (delimiter != ";" and all(map(THOUSANDS.fullmatch, with_comma))):
        return [POINT]
    return [POINT, GROUPED if any("." in cell for cell in with_comma) else COMMA]
