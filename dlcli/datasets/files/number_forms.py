"""The form of a column's numbers: with a decimal point or, as spreadsheets in half of Europe write them, a comma.

    1.5        everywhere
    1,5        if a comma does not divide the cells
    1.000,5    the same, with points between the thousands: if a cell has both, so that 1.000 cannot mean 1

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
    """A number in `form`, rewritten as float() takes it."""
    return cell if form == POINT else cell.replace(".", "").replace(",", ".")


def possible_forms(cells: Iterable[str], delimiter: str) -> list[str]:
    """The forms that some of these (distinct) cells may be written in, the commonest first.

    Between semicolons 1,234 is a fraction, since the comma is the reason for the semicolons; between tabs and the like
    some cell must show it beyond doubt.
    """
    with_comma = [cell for cell in cells if "," in cell and is_number_in_some_form(cell)]
    if delimiter == "," or not with_comma or (delimiter != ";" and all(map(THOUSANDS.fullmatch, with_comma))):
        return [POINT]
    return [POINT, GROUPED if any("." in cell for cell in with_comma) else COMMA]
