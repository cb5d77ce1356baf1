"""Tables: what CSV files do, which kinds of columns they have, and that held-out rows change nothing in training."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlcli.datasets.batches.examples import Data
from dlcli.datasets.batches.records import Records
from dlcli.datasets.files.columns import Category, Number, as_plain, fit_column, from_plain
from dlcli.datasets.files.csv_text import read_table
from dlcli.datasets.files.table_files import Target, prepare_csv, prepare_diabetes, split_rows
from dlcli.datasets.table import made_up, read_adult, read_csv, read_diabetes
from dlcli.errors import ConfigError, DataError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write("a,b\\n1,2\\n") writes the text to a file and gives its path."""

    def write(text: str | bytes, name: str = "rows.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def fitted(cells: list[str], train: int | None = None, **settings: Any) -> Any:
    rows = np.arange(len(cells) if train is None else train)
    return fit_column("x", cells, rows, **{"max_categories": 100} | settings)


def encoded(cells: list[str], train: int | None = None, **settings: Any) -> list[list[float]]:
    return fitted(cells, train, **settings).encode(cells).features.tolist()


# -------------------------------------------------------------------------------------------------------- text to cells


def test_quotes_commas_line_ends_and_blank_lines_are_what_they_are_in_csv(write: Write) -> None:
    text = '\ufeff name , "the ""city""",n\r\n"Smith, J.", Bonn ,1\r\n\r\n"two\r\nlines",,2\r\n\r\n'
    table = read_table(write(text))
    assert table.names == ("name", 'the "city"', "n") and table.num_rows == 2
    assert table.cells("name") == ["Smith, J.", "two\r\nlines"]
    assert table.cells('the "city"') == ["Bonn", ""]


@pytest.mark.parametrize(("separator", "word"), [(",", "comma"), (";", "semicolon"), ("\t", "tab"), ("|", "pipe")])
def test_the_delimiter_is_found(write: Write, separator: str, word: str) -> None:
    rows = [["a", "b", "c"], ["1", '"x, y; z|w\tv"', "0,5" if separator != "," else "0.5"], ["2", "u", ""]]
    path = write("\n".join(map(separator.join, rows)) + "\n")
    for delimiter in ("auto", word):
        table = read_table(path, delimiter=delimiter)
        assert table.names == ("a", "b", "c") and table.cells("b") == ["x, y; z|w\tv", "u"]


@pytest.mark.parametrize(
    ("text", "has_header"),
    [
        ("age,sex\n1,m\n2,f\n", True),
        ("1,m\n2,f\n", False),
        (",v\n0,3\n1,4\n", True),  # a column without a name, as pandas writes its index
        ("colour,taste\nred,sour\nblue,sour\n", True),
        ("red,sour\nblue,sour\nred,sweet\n", False),
        ("?,x\n1,y\n", False),
    ],
)
def test_a_header_is_told_from_a_row(write: Write, text: str, has_header: bool) -> None:
    table = read_table(write(text))
    assert table.has_header is has_header
    assert read_table(write(text), header=not has_header).has_header is not has_header


def test_a_compressed_table_is_read_where_it_lies(write: Write) -> None:
    table = read_table(write(gzip.compress(b"a\tb\n1\tx\n"), "rows.tsv.gz"))
    assert (table.names, table.cells("b")) == (("a", "b"), ["x"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a,b\n1,2\n\n3\n", "line 4: 1 cell, where the first row has 2"),
        ("a,b\n1,2\n1,2,3\n", "line 3: 3 cells"),
        ("a,b\n1,2\n1,2,3\n1,2\n9\n", "2 rows do not have 2 cells, as the first one has .line 3: 3; line 5: 1"),
        ("a,b\n" + "1\n" * 12, "12 rows do not have 2 cells.*line 11: 1; and 2 more"),
        ('a,b\n"1,2\n3,4\n', "line 3: unexpected end"),
        ("a,b,a\n1,2,3\n", "columns 1 and 3 are both called a"),
        ("", "holds no rows"),
        ("\n\n", "holds no rows"),
        ("a,b\n", "a header and no rows"),
        ("a,b\n1,Köln\n".encode("latin-1"), "not UTF-8 text"),
        ("a,b\n1,2\n".encode("utf-16"), "not UTF-8 text"),
        ("a,b\n1,x\0y\n", "NUL"),
    ],
)
def test_malformed_tables_are_told_with_their_line(write: Write, content: str | bytes, told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        read_table(write(content))
    assert "rows.csv" in caught.value.message and caught.value.hint


def test_a_damaged_archive_is_told(write: Write) -> None:
    whole = gzip.compress(b"a,b\n" + b"1,2\n" * 1000)
    for content in (whole[:-20], b"a,b\n1,2\n"):
        with pytest.raises(DataError, match="cannot be read"):
            read_table(write(content, "rows.csv.gz"))


# ----------------------------------------------------------------------------------------------------- kinds of columns


def test_numbers_are_standardised_and_missing_ones_are_the_mean_and_marked() -> None:
    features = encoded(["1", "3", "?", "NA", "", "5e0"])
    std = (8 / 3) ** 0.5
    assert features == pytest.approx(
        np.array([[-2 / std, 0], [0, 0], [0, 1], [0, 1], [0, 1], [2 / std, 0]], dtype=np.float32)
    )
    assert encoded(["1", "3", "x"], train=2)[2] == [0], "a word in a held-out row is a missing number"
    assert fitted(["1", "3", "x"], train=2).encode(["x", "", "2"]).is_bad.tolist() == [True, False, False]


@pytest.mark.parametrize("cell", ["1_000", "0x10", "1,5", "12a", "inf", "1e999", "--1", "١"])
def test_what_only_looks_like_a_number_makes_a_category(cell: str) -> None:
    assert isinstance(fitted(["1", "1", "2", "2", cell, cell]), Category)


@pytest.mark.parametrize(
    "cells", [["True", "false", "TRUE", "false"], ["yes", "no", "yes", "no"], ["t", "f", "t", "f"]]
)
def test_yes_and_no_are_one_feature(cells: list[str]) -> None:
    assert encoded(cells) == [[1], [-1], [1], [-1]]
    assert encoded([*cells, ""])[-1] == [0, 1]


def test_categories_are_one_feature_each_of_those_in_training_rows() -> None:
    cells = ["b", "a", "b", "a", "?", "rare", "unseen"]
    column = fitted(cells, train=6)
    assert column == Category("x", ("a", "b"), has_missing=True, has_others=True)
    a, b, lacking, others = np.eye(4).tolist()
    assert encoded(cells, train=6) == [b, a, b, a, lacking, others, others]


def test_an_unseen_value_gets_no_feature_that_was_never_trained() -> None:
    cells = ["b", "a", "b", "a", "unseen", "?"]
    assert encoded(cells, train=4) == [[0, 1], [1, 0], [0, 1], [1, 0], [0, 0], [0, 0]]


def test_only_the_commonest_categories_are_told_apart() -> None:
    cells = ["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"] * 2
    column = fitted(cells, max_categories=2)
    assert (column.values, column.has_others, column.width) == (("a", "b"), True, 3)


def test_numbers_that_are_names_can_be_categories() -> None:
    column = fitted(["53111", "53111", "10115", "10115"], is_category=True)
    assert column == Category("x", ("10115", "53111"), has_missing=False, has_others=False)


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        (["", "?", "NaN"], "it is empty"),
        (["0.1"] * 7, "it is the same in every row"),
        (["red"] * 3, "it is the same in every row"),
        ([str(i) for i in range(5, 30)], "it numbers the rows"),
        ([f"Mr {i}" for i in range(25)], "it differs in every row"),
    ],
)
def test_columns_that_tell_nothing_are_left_out_with_the_reason(cells: list[str], why: str) -> None:
    assert fitted(cells) == why


def test_a_number_that_is_the_same_wherever_it_is_known_is_only_a_mark() -> None:
    assert encoded(["7", "", "7", "7"]) == [[0], [1], [0], [0]]


def test_fitted_columns_are_plain_data_and_come_back() -> None:
    columns = [
        Number("n", 1.5, 0.1, True),
        Number("b", 0.5, 0.5, False, ("no", "yes")),
        Category("c", ("x",), True, True),
    ]
    assert from_plain(json.loads(json.dumps(as_plain(columns)))) == columns


# --------------------------------------------------------------------------------------------------------- whole tables


def shop(num_rows: int = 200, seed: int = 0) -> list[list[str]]:
    """Rows of: a row number, size, city, open (yes or no), what is earned, whether that is much."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(num_rows):
        size, city, is_open = random.integers(1, 9), random.integers(3), random.integers(2)
        earned = 10 * size + 30 * city + 20 * is_open + random.normal()
        lacking = i % 11 == 0
        words = ["" if lacking else str(size), ("Bonn", "Köln", "New, York")[city], ("no", "yes")[is_open]]
        rows.append([str(i), *words, f"{earned:.3f}", "much" if earned > 75 else "little"])
    return rows


def text_of(rows: list[list[str]], header: str = "id,size,city,open,earned,much") -> str:
    return "\n".join([header, *(",".join(f'"{cell}"' for cell in row) for row in rows)]) + "\n"


def read(path: Path, **settings: Any) -> Data:
    return read_csv(None, str(path), **{"target": "much", "drop_columns": ["earned"]} | settings)


def features(split: Any) -> torch.Tensor:
    assert isinstance(split, Records)
    return split.batch(torch.arange(len(split))).features


def test_a_table_becomes_splits_facts_and_notes(write: Write) -> None:
    data = read(write(text_of(shop())))
    assert data.classes == ("little", "much") and data.val is not None
    assert (len(data.train), len(data.val), len(data.test)) == (144, 16, 40)
    assert data.facts == {"num_classes": 2, "num_features": 2 + 3 + 1}
    assert data.notes == (
        "columns: 1 number (size), 1 yes or no (open), 1 category (city); predicted: much, one of 2 classes",
        "columns left out: id (it numbers the rows)",
        "missing cells (a number becomes the mean and is marked; else a category): size 19",
    )
    train = features(data.train)
    assert train.dtype == torch.float32 and train[:, 0].mean().abs() < 1e-6
    assert train[:, -1].std(correction=0) == pytest.approx(1, abs=1e-6)


def test_every_row_is_in_one_split_the_same_for_every_run(write: Write) -> None:
    rows = [[str(v), str(v % 2)] for v in np.random.default_rng(0).permutation(60)]
    path = write("v,even\n" + "\n".join(map(",".join, rows)) + "\n")
    first, second = (read(path, target="even", drop_columns=[], val_size=6) for _ in range(2))
    assert first.val is not None and first.fingerprints() == second.fingerprints()
    values = torch.cat([features(split)[:, 0] for split in (first.train, first.val, first.test)])
    assert len(values.unique()) == 60 and (len(first.val), len(first.test)) == (6, 12)
    assert first.test.labels is not None and first.test.labels.bincount().tolist() == [6, 6], "a fifth of each class"


@pytest.mark.parametrize("kind", ["class", "number"])
def test_rows_held_out_change_no_training_feature(write: Write, kind: str) -> None:
    """Cells of test and validation rows: wild numbers, words for numbers, other categories, gaps."""
    rows = shop()
    settings: dict[str, Any] = {"target_kind": kind, "target": "much" if kind == "class" else "earned"}
    settings["drop_columns"] = ["earned" if kind == "class" else "much", "id"]
    plain = read(write(text_of(rows)), **settings)
    wild = np.random.default_rng(1)
    for i in held_out_rows(len(rows), [row[5] for row in rows] if kind == "class" else None):
        cells = wild.choice(["1e9", "word", "", "-5"]), wild.choice(["Rom", "", "7"]), wild.choice(["maybe", "yes"])
        rows[i] = [rows[i][0], *map(str, cells), *rows[i][4:]]
    changed = read(write(text_of(rows), "changed.csv"), **settings)
    assert changed.train.fingerprint == plain.train.fingerprint, "not a bit"
    assert changed.fitted["columns"] == plain.fitted["columns"]
    assert changed.test.fingerprint != plain.test.fingerprint
    assert any("not numbers, treated as missing: size" in note for note in changed.notes)


def held_out_rows(num_rows: int, classes: list[str] | None) -> list[int]:
    """The places of test and validation rows."""
    labels = np.zeros(num_rows) if classes is None else np.array([cls == "much" for cls in classes], dtype=np.int64)
    splits = split_rows(Target("", labels, () if classes is None else ("little", "much")), None, 0.1)
    return [*splits["val"].tolist(), *splits["test"].tolist()]


def test_a_number_to_predict_is_standardised_by_the_training_rows(write: Write) -> None:
    path = write(text_of(shop()))
    data = read(path, target="earned", target_kind="number", drop_columns=["much", "id"])
    assert data.classes == () and data.facts["num_classes"] == 1
    batch = data.train.batch(torch.arange(len(data.train)))  # type: ignore[union-attr]
    prepared = prepare_csv(None, str(path), target="earned", target_kind="number", drop_columns=["much", "id"])
    raw = prepared.targets["train"]
    assert batch.targets.mean().abs() < 1e-6 and batch.unit == pytest.approx(raw.std())
    np.testing.assert_allclose(batch.targets * batch.unit + raw.mean(), raw, rtol=1e-6)
    with pytest.raises(ConfigError, match="a number") as caught:
        _ = batch.labels
    assert caught.value.hint == "task=regression"


def test_a_file_of_test_rows_is_matched_by_name(write: Write) -> None:
    rows = shop()
    train = write(text_of(rows[:150]))
    turned = [[row[5], row[3], row[2], row[1], row[0], row[4], "more"] for row in rows[150:]]
    test = write(text_of(turned, "much,open,city,size,id,earned,more"), "test.csv")
    data = read(train, test_path=str(test), val_size=15)
    assert (len(data.train), len(data.test)) == (135, 50)
    lacking = write("much,size\nlittle,3\n", "lacking.csv")
    with pytest.raises(DataError, match="lacks the columns id, city, open, earned; it has much, size"):
        read(train, test_path=str(lacking))


def test_rows_without_a_target_are_left_out_and_told(write: Write) -> None:
    rows = shop()
    for i in (0, 7, 199):
        rows[i][5] = "?"
    data = read(write(text_of(rows)))
    assert len(data.train) + len(data.val or ()) + len(data.test) == 197
    assert "3 rows without a much are left out" in data.notes


def test_a_table_without_header_names_columns_by_their_number(write: Write) -> None:
    path = write(text_of(shop(), header="").lstrip("\n"))
    data = read(path, target=6, drop_columns=["1", "column 5"])
    assert data.classes == ("little", "much") and not data.fitted["has_header"]
    assert [column["name"] for column in data.fitted["columns"]] == ["column 2", "column 3", "column 4"]
    assert read(path, target=None, drop_columns=[1, 5]).fingerprints() == data.fingerprints(), "the last by default"


@pytest.mark.parametrize(
    ("settings", "told", "hint"),
    [
        ({"target": "muhc"}, "target=muhc: .* has the columns id, size", "dataset.target=much"),
        ({"target": 7}, "target=7", "Choose"),
        ({"drop_columns": ["earn"]}, "dataset.drop_columns=earn", "dataset.drop_columns=earned"),
        ({"target": "earned"}, "200 different values in 200 rows: these are not classes", "task=regression"),
        (
            {"target_kind": "number"},
            "the target much of .* is not a number in 200 of 200 rows .line 2: ",
            "task=classification",
        ),
        ({"val_size": 160}, "does not leave any of the 160", "1 to 159"),
        ({"drop_columns": ["id", "size", "city", "open", "earned"]}, "no column of .* tells anything", ""),
    ],
)
def test_mistakes_are_told_with_the_remedy(write: Write, settings: dict[str, Any], told: str, hint: str) -> None:
    with pytest.raises((ConfigError, DataError), match=told) as caught:
        read(write(text_of(shop())), **settings)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("target", ["same", "empty"])
def test_a_target_with_nothing_to_tell_is_an_error(write: Write, target: str) -> None:
    path = write("v,same,empty\n" + "".join(f"{i % 5},1.5,\n" for i in range(30)))
    for kind in ("class", "number"):
        with pytest.raises(DataError, match=f"the target {target}"):
            read(path, target=target, target_kind=kind, drop_columns=[])


def test_a_table_is_found_beside_the_user_and_under_a_root(write: Write, tmp_path: Path) -> None:
    path = write(text_of(shop()))
    other = tmp_path / "elsewhere"
    other.mkdir()
    path.rename(other / "moved.csv")
    assert len(read_csv(str(other), "moved.csv", drop_columns=["earned"]).train) == 144
    assert len(read_csv(None, "elsewhere/moved.csv", drop_columns=["earned"]).train) == 144
    with pytest.raises(DataError, match=r"moved.csv"):
        read_csv(None, "moved.csv")
    with pytest.raises(DataError, match="which table"):
        read_csv(None, None)


def test_a_peek_needs_no_torch(write: Write) -> None:
    path = write(text_of(shop()))
    code = (
        "import sys; from dlcli.datasets.files.table_files import peek_csv;"
        f"print(peek_csv(root=None, path={str(path)!r}, drop_columns=['earned']), 'torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'num_classes': 2, 'num_features': 6} False"


def test_made_up_rows_have_the_shapes_that_are_said() -> None:
    classes = made_up({"num_features": 5, "num_classes": 3}, 8).batch(torch.arange(4))
    numbers = made_up({"num_features": 5, "num_classes": 1}, 8).batch(torch.arange(4))
    assert (classes.features.shape, classes.labels.dtype) == ((4, 5), torch.int64)
    assert (numbers.features.shape, numbers.targets.dtype) == ((4, 5), torch.float32)


# ------------------------------------------------------------------------------------------ numbers of other countries


def in_half_of_europe(rows: list[list[str]]) -> str:
    """The shop as a spreadsheet there writes it: semicolons, and a comma in what is earned."""
    header = "id;size;city;open;earned;much"
    return "\n".join([header, *(";".join([*row[:4], row[4].replace(".", ","), row[5]]) for row in rows)]) + "\n"


def test_a_decimal_comma_behind_semicolons_is_a_decimal_point(write: Write) -> None:
    rows = [[*row[:2], row[2].replace(",", ""), *row[3:]] for row in shop()]
    point, comma = write(text_of(rows)), write(in_half_of_europe(rows), "comma.csv")
    settings: dict[str, Any] = {"target": "earned", "target_kind": "number", "drop_columns": ["much", "id"]}
    theirs, ours = (read(path, **settings) for path in (point, comma))
    assert ours.fingerprints() == theirs.fingerprints()
    assert "read with a decimal comma: earned" in ours.notes
    settings = {"drop_columns": ["id"]}
    theirs, ours = (read(path, **settings) for path in (point, comma))
    assert ours.fingerprints() == theirs.fingerprints()
    assert "read with a decimal comma: earned" in ours.notes
    assert ours.notes[0].startswith("columns: 2 numbers (size, earned), 1 yes or no (open), 1 category (city)")
    with pytest.raises(DataError, match="not classes") as caught:
        read(comma, target="earned", drop_columns=[])
    assert caught.value.hint == "To predict a number: task=regression"


@pytest.mark.parametrize(
    ("cells", "delimiter", "values"),
    [
        (["0,5", "1,25", "3", "-2"], ";", [0.5, 1.25, 3, -2]),
        (["0,5", "1,5e3"], "\t", [0.5, 1500]),
        (["1,234", "2,345"], ";", [1.234, 2.345]),  # the comma is why there are semicolons
        (["1.234,5", "1.000", "7"], ";", [1234.5, 1000, 7]),
        (["1,234", "2,345"], "\t", None),  # English thousands, or fractions
        (["0,5", "0,6"], ",", None),
        (["1,2,3", "1,2"], ";", None),
    ],
)
def test_which_commas_are_decimal(cells: list[str], delimiter: str, values: list[float] | None) -> None:
    column = fitted(cells * 2, delimiter=delimiter)
    if values is None:
        assert isinstance(column, Category)
    else:
        assert column.mean == pytest.approx(np.mean(values)) and column.std == pytest.approx(np.std(values))
        assert from_plain(json.loads(json.dumps(as_plain([column])))) == [column]


def test_points_and_commas_in_one_column_are_refused(write: Write) -> None:
    path = write("v;much\n" + "".join(f"{('0.5', '0,7')[i % 2]};{i % 3}\n" for i in range(60)))
    with pytest.raises(DataError, match=r"column v has numbers of two kinds: 0\.5 \(line 2\) and 0,7 \(line 3\)"):
        read(path, drop_columns=[])
    assert len(read(path, drop_columns=[], categories=["v"]).train) > 0


def test_fractions_with_a_comma_are_no_delimiters_and_no_header(write: Write) -> None:
    table = read_table(write("0,5;1,5;0,7\n0,6;1,6;0,8\n0,1;1,7;0,9\n"))
    assert (table.delimiter, table.has_header, table.cells("column 2")) == (";", False, ["1,5", "1,6", "1,7"])
    assert read_table(write("a,b;c\nd,e;f\n")).delimiter == ",", "these are words"


@pytest.mark.parametrize("delimiter", ["auto", "semicolon"])
def test_points_between_thousands_change_nothing_of_that(write: Write, delimiter: str) -> None:
    table = read_table(write("8.648,27;8.582,62;ja\n7.001,50;9.120,11;nein\n"), delimiter=delimiter)
    assert (table.delimiter, table.has_header) == (";", False)
    assert [table.cells(name) for name in table.names] == [
        ["8.648,27", "7.001,50"],
        ["8.582,62", "9.120,11"],
        ["ja", "nein"],
    ]
    all_numbers = read_table(write("8.648,27;8.582,62\n7.001,50;9.120,11\n"), delimiter=delimiter)
    assert not all_numbers.has_header and all_numbers.num_rows == 2
    assert read_table(write("net;gross\n7.001,50;9.120,11\n"), delimiter=delimiter).names == ("net", "gross")


def test_a_slip_in_a_column_of_numbers_is_missing_and_told_with_its_line(write: Write) -> None:
    rows = shop()
    train = next(i for i in range(len(rows)) if i not in held_out_rows(len(rows), [row[5] for row in rows]))
    for i, cell in ((train, "four"), (held_out_rows(len(rows), [row[5] for row in rows])[0], "inf")):
        rows[i][1] = cell
    data = read(write(text_of(rows)))
    (told,) = [note for note in data.notes if "not numbers" in note]
    assert "treated as missing: size 2 (" in told and f"line {train + 2}: four" in told and ": inf" in told
    assert told.endswith("dataset.categories=[size]")
    column = next(column for column in data.fitted["columns"] if column["name"] == "size")
    assert column["kind"] == "number" and column["marks_missing"]
    own = read(write(text_of(rows)), test_path=str(write(text_of(rows), "test.csv")))
    assert any(f"test.csv, line {train + 2}: four" in note for note in own.notes)


def test_many_words_make_a_column_one_of_categories() -> None:
    cells = ["1", "2"] * 9 + ["x", "x"]
    assert isinstance(fitted(cells), Number) and isinstance(fitted([*cells, "y"]), Category)


def test_a_bad_number_to_predict_is_told_with_its_line(write: Write) -> None:
    rows = shop()
    rows[4][4], rows[8][4] = "four", "inf"
    with pytest.raises(DataError, match=r"is not a number in 2 of 200 rows \(line 6: four; line 10: inf\)") as caught:
        read(write(text_of(rows)), target="earned", target_kind="number", drop_columns=["much"])
    assert "leave them empty" in (caught.value.hint or "")


# ---------------------------------------------------------------------------------------------------------- real tables


def test_adult_is_what_its_description_says(real_data: Path) -> None:
    data = read_adult(str(real_data), val_size=3256)
    assert data.classes == ("<=50K", ">50K") and data.val is not None
    assert (len(data.train), len(data.val), len(data.test)) == (32561 - 3256, 3256, 16281)
    train, val, test = (split.labels for split in (data.train, data.val, data.test))
    assert train is not None and val is not None and test is not None
    # adult.names: 76.07 % and 76.38 % earn at most 50K; those of the test file end in a full stop
    assert torch.cat([train, val]).bincount().tolist() == [24720, 7841] and test.bincount().tolist() == [12435, 3846]
    assert any("workclass 2,799" in note for note in data.notes), "1,836 and 963"
    columns = {column["name"]: column for column in data.fitted["columns"]}
    assert len(columns) == 14 and columns["workclass"]["has_missing"] and columns["age"]["kind"] == "number"
    assert data.facts["num_features"] == features(data.test).shape[1] == 108


def test_diabetes_is_scikit_learns() -> None:
    from sklearn.datasets import load_diabetes

    theirs = load_diabetes(scaled=False)
    prepared = prepare_diabetes(val_size=71)
    targets = np.concatenate([prepared.targets[split] for split in ("train", "val", "test")])
    assert sorted(targets) == sorted(theirs.target)
    columns = from_plain(prepared.fitted["columns"])
    raw = np.concatenate([prepared.features[split] for split in ("train", "val", "test")]) * [
        c.std for c in columns if isinstance(c, Number)
    ] + [c.mean for c in columns if isinstance(c, Number)]
    np.testing.assert_allclose(raw[targets.argsort(kind="stable")].sum(0), theirs.data.sum(0), rtol=1e-5)
    order, their_order = (
        np.lexsort((raw[:, 2].round(3), targets)),
        np.lexsort((theirs.data[:, 2].round(3), theirs.target)),
    )
    np.testing.assert_allclose(raw[order], theirs.data[their_order], rtol=1e-4)
    assert (len(read_diabetes(val_size=71).train), len(read_diabetes(val_size=71).test)) == (283, 88)


def test_a_stored_number_without_a_feature_is_refused() -> None:
    plain = as_plain([Number("size", 1.0, 0.0, marks_missing=False)])
    with pytest.raises(ValueError, match="has no feature"):
        from_plain(plain)
