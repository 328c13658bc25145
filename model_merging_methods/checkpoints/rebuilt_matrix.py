"""A vocabulary matrix with the rows of another vocabulary: own rows, rows of other models, means of rows, zeros."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from model_merging_methods.checkpoints.checkpoint_folder import read_float32
from model_merging_methods.checkpoints.vocabulary_matrices import Folder

# A row of a stored matrix: the number of the matrix, and of its row.
StoredRow = tuple[int, int]

_ROWS_AT_ONCE = 1024


class RebuiltMatrix:
    """A matrix whose rows are read, a stretch at a time, from `matrices` (folder and name each).

    `rows` says for each row which stored rows it is the mean of: one for a copy, none for zeros. `padding` more rows
    are each the mean of all those.
    """

    def __init__(self, matrices: Sequence[tuple[Folder, str]], rows: Sequence[Sequence[StoredRow]], padding: int = 0):
        self._matrices = matrices
        self._rows = rows
        folder, name = matrices[0]
        self._width = folder.tensors[name].shape[1]
        self.shape = (len(rows) + padding, self._width)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Values start … stop − 1 of the flattened matrix, float32."""
        first, last = start // self._width, -(-stop // self._width)
        values = np.concatenate([*self._stored(first, min(last, len(self._rows))), *self._padded(first, last)])
        return values.reshape(-1)[start - first * self._width : stop - first * self._width]

    def _stored(self, first: int, last: int) -> list[np.ndarray]:
        """Rows first … last − 1, float32 [rows, width], a piece for each run of consecutive stored rows."""
        pieces, row = [], first
        while row < last:
            sources, length = self._rows[row], 1
            if len(sources) == 1:
                (matrix, stored), following = sources[0], row + 1
                while following < last and tuple(self._rows[following]) == ((matrix, stored + following - row),):
                    following += 1
                length = following - row
                pieces.append(self._read(matrix, stored, length))
            else:
                parts = [self._read(matrix, stored, 1) for matrix, stored in sources]
                pieces.append(sum(parts) / np.float32(len(parts)) if parts else np.zeros((1, self._width), np.float32))
            row += length
        return pieces

    def _padded(self, first: int, last: int) -> list[np.ndarray]:
        number = last - max(first, len(self._rows))
        return [np.tile(self._mean, (number, 1))] if number > 0 else []

    @cached_property
    def _mean(self) -> np.ndarray:
        """The mean of all rows but the padding, summed in double precision: float32 [width]."""
        total = np.zeros(self._width)
        for first in range(0, len(self._rows), _ROWS_AT_ONCE):
            for piece in self._stored(first, min(first + _ROWS_AT_ONCE, len(self._rows))):
                total += piece.sum(axis=0, dtype=np.float64)
        return (total / len(self._rows)).astype(np.float32)

    def _read(self, matrix: int, row: int, number: int) -> np.ndarray:
        folder, name = self._matrices[matrix]
        return read_float32(folder, name, row * self._width, (row + number) * self._width).reshape(-1, self._width)
