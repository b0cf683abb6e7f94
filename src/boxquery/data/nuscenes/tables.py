"""The JSON tables of nuScenes: lists of rows that refer to each other by tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from boxquery.errors import UserError, one_line

VERSIONS = ("v1.0-trainval", "v1.0-mini", "v1.0-test")


def find(folder: Path) -> Path | None:
    """The folder with the tables: this one, or the only one in it that is called as a version is; None where there is none.

    Raises:
        UserError: there are several.
    """
    if folder.name in VERSIONS and (folder / "sample.json").is_file():
        return folder
    found = [folder / name for name in VERSIONS if (folder / name / "sample.json").is_file()]
    if len(found) > 1:
        raise UserError(f"{folder}: several versions: {', '.join(place.name for place in found)}; give one of these folders")
    return found[0] if found else None


class Row:
    """A row of a table, whose values are checked as they are asked for; ``where`` names it in messages."""

    def __init__(self, values: dict[str, Any], where: str):
        self.values, self.where = values, where

    def __getitem__(self, name: str) -> Any:
        if name not in self.values:
            raise UserError(f"{self.where}: no {name}; the table is of another kind or was edited: unpack it again")
        return self.values[name]

    def text(self, name: str) -> str:
        """A text."""
        value = self[name]
        if not isinstance(value, str):
            raise UserError(f"{self.where}: {name} is {value!r}, not a text; unpack the table again")
        return value

    def numbers(self, name: str, *shape: int) -> np.ndarray:
        """Numbers, float64 of a shape; NaN and inf are left to who uses them."""
        try:
            values = np.array(self[name], np.float64)
        except (TypeError, ValueError):
            values = None
        if values is None or values.shape != shape:
            what = " x ".join(map(str, shape)) + " numbers" if shape else "a number"
            raise UserError(f"{self.where}: {name} is {self[name]!r:.80}, not {what}; unpack the table again")
        return values


class Tables:
    """The tables in a folder, read as they are asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._tables: dict[str, dict[str, dict[str, Any]]] = {}

    def rows(self, table: str) -> Iterator[Row]:
        """All rows of a table in its order. Raises ``UserError`` where it is missing, broken, or holds a token twice."""
        return (Row(values, self._where(table, token)) for token, values in self._read(table).items())

    def row(self, table: str, token: str, wanted_by: str) -> Row:
        """The row with a token. Raises ``UserError``, which names the row that refers to it, where there is none."""
        values = self._read(table).get(token)
        if values is None:
            raise UserError(f"{wanted_by}: there is no {token!r} in {table}.json; unpack all tables of one version")
        return Row(values, self._where(table, token))

    def drop(self, table: str) -> None:
        """Free the memory of a table; it is read again where it is asked for."""
        self._tables.pop(table, None)

    def _where(self, table: str, token: str) -> str:
        return f"{self.folder.name}/{table}.json: {token}"

    def _read(self, table: str) -> dict[str, dict[str, Any]]:
        if table not in self._tables:
            self._tables[table] = self._load(self.folder / f"{table}.json")
        return self._tables[table]

    def _load(self, path: Path) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; nuScenes has 13 tables, unpack all of them") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read ({one_line(error)}); unpack it again") from error
        if not isinstance(content, list):
            raise UserError(f"{path}: a {type(content).__name__}, not a list of rows; unpack it again")
        rows: dict[str, dict[str, Any]] = {}
        for number, values in enumerate(content):
            if not isinstance(values, dict) or not isinstance(values.get("token"), str):
                raise UserError(f"{path}: row {number} has no token; unpack it again")
            if values["token"] in rows:
                raise UserError(f"{path}: two rows have the token {values['token']}; unpack it again")
            rows[values["token"]] = values
        return rows
