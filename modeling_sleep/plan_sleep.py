"""Who reads what, and who sleeps before: a row, not the batch, has windows.

A call brings every row some new tokens, and every row's window holds some already. The plan walks all rows to their
ends in waves: in each, every row that still has tokens reads up to the end of its own window; before it, those whose
window is full are slept over. So what a row gets does not depend on its neighbours. Padding is only what a mask says.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from .window_sleep import PerRow, column_of, largest, of_rows, per_row


class Wave(NamedTuple):
    """
    Attributes
    ----------
    rows : tuple[int, ...] | None
        The rows that read. None: all.
    begin : PerRow
        For each of them, how many of the call's tokens it has read before.
    lengths : PerRow
        For each of them, how many it reads now.
    count : int
        The whole windows that each of them reads side by side.
    sleepers : tuple[int, ...] | None
        The rows that are slept over before. None: all.
    windows_left : PerRow
        For each of the sleepers, how many windows it begins in this call from here on; 0 before its first.
    """

    rows: tuple[int, ...] | None
    begin: PerRow
    lengths: PerRow
    count: int
    sleepers: tuple[int, ...] | None
    windows_left: PerRow


def plan(counts: PerRow, stored: PerRow, batch: int, window_size: int, side_by_side: int, to_be_kept: bool):
    """
    The waves of one call.

    Parameters
    ----------
    counts : PerRow
        New tokens of each row.
    stored : PerRow
        Tokens in the window of each row.
    batch : int
        Number of rows.
    window_size : int
        L.
    side_by_side : int
        How many whole windows may be read at once. More than 1 only if nothing but S of them is needed afterwards.
    to_be_kept : bool
        Whether the last window of each row is needed afterwards, so that it stands in a wave of its own.

    Returns
    -------
    list[Wave]
    """
    if not (isinstance(counts, tuple) or isinstance(stored, tuple)):  # all rows go the same way
        waves = _plan([counts], [stored], window_size, side_by_side, to_be_kept)
        return [wave._replace(rows=None, sleepers=None if wave.sleepers else ()) for wave in waves]
    everybody = tuple(range(batch))
    return [
        wave._replace(
            rows=None if wave.rows == everybody else wave.rows,
            sleepers=None if wave.sleepers == everybody else wave.sleepers,
        )
        for wave in _plan(of_rows(counts, batch), of_rows(stored, batch), window_size, side_by_side, to_be_kept)
    ]


def _plan(counts, stored, window_size: int, side_by_side: int, to_be_kept: bool) -> Iterator[Wave]:
    counts, stored, begin = list(counts), list(stored), [0] * len(counts)
    while rows := [i for i, count in enumerate(counts) if begin[i] < count]:
        sleepers = [i for i in rows if stored[i] >= window_size]
        windows_left = [-(-(counts[i] - begin[i]) // window_size) if begin[i] else 0 for i in sleepers]
        for i in sleepers:
            stored[i] = 0
        count = 1
        if side_by_side > 1 and not any(stored[i] for i in rows):
            whole = min((counts[i] - begin[i] - int(to_be_kept)) // window_size for i in rows)
            count = max(1, min(whole, side_by_side))
        lengths = [
            count * window_size if count > 1 else min(window_size - stored[i], counts[i] - begin[i]) for i in rows
        ]
        yield Wave(
            rows=tuple(rows),
            begin=per_row([begin[i] for i in rows]),
            lengths=per_row(lengths),
            count=count,
            sleepers=tuple(sleepers),
            windows_left=per_row(windows_left) if sleepers else 0,
        )
        for i, length in zip(rows, lengths, strict=True):
            begin[i] += length
            stored[i] = 0 if count > 1 else stored[i] + length


class Tokens(NamedTuple):
    """
    Where the tokens of a call stand in its (batch, length) columns.

    Attributes
    ----------
    batch, length : int
        Rows and columns.
    counts : PerRow
        How many tokens each row has.
    places : PerRow
        Sum of the columns in which they stand.
    columns : torch.Tensor | None
        (batch, largest count): the column of each token of a row. None: every column holds one.
    numbers : torch.Tensor | None
        (batch, length): which of its row's tokens stands in a column, or in the last column before it that holds
        one; -1 before the first. None as above.
    """

    batch: int
    length: int
    counts: PerRow
    places: PerRow = 0
    columns: torch.Tensor | None = None
    numbers: torch.Tensor | None = None

    @classmethod
    def of_mask(cls, mask: torch.Tensor | None, batch: int, length: int) -> "Tokens":
        """`mask` is (batch, length) of bool, False at padding, or None if there is none."""
        if mask is None:
            return cls(batch, length, length, length * (length - 1) // 2)
        return cls._of_padding(mask, batch, length)

    @classmethod
    @torch.compiler.disable  # rows that differ would make another graph for every number of tokens
    def _of_padding(cls, mask: torch.Tensor, batch: int, length: int) -> "Tokens":
        column = torch.arange(length, device=mask.device)
        counts, places = (per_row(numbers) for numbers in torch.stack([mask.sum(1), (mask * column).sum(1)]).tolist())
        if counts == length:
            return cls.of_mask(None, batch, length)
        columns = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, : largest(counts)]
        return cls(batch, length, counts, places, columns, mask.cumsum(1) - 1)

    def read(self, wave: Wave, inputs: torch.Tensor) -> torch.Tensor:
        """Of `inputs`, (batch, length, ...), what a wave reads: (rows, largest length, ...), padding behind."""
        length = largest(wave.lengths)
        if self.columns is None and not isinstance(wave.begin, tuple):
            part = inputs if wave.rows is None else inputs[list(wave.rows)]
            # Contiguous, so that a compiled layer meets every window in one layout.
            return part[:, wave.begin : wave.begin + length].contiguous()
        rows, numbers = self._tokens_of(wave, length, inputs.device)
        last = numbers[:, :1] + column_of(wave.lengths, len(rows), rows.device) - 1
        numbers = numbers.minimum(last)  # padding repeats a row's last
        return inputs[rows, numbers if self.columns is None else self.columns[rows, numbers]]

    def write(self, waves: list[Wave], pieces: list[torch.Tensor], before: torch.Tensor | None) -> torch.Tensor:
        """
        What the waves gave, back in the call's columns. Padding repeats the last token before it, so that the last
        column always is a row's last token.

        Parameters
        ----------
        pieces : list[torch.Tensor]
            For each wave (rows, largest length, hidden_size).
        before : torch.Tensor | None
            (batch, 1, hidden_size): each row's last token of the calls before. None: zeros.

        Returns
        -------
        torch.Tensor
            (batch, length, hidden_size).
        """
        if self.columns is None and all(wave.rows is None and not isinstance(wave.lengths, tuple) for wave in waves):
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
        before = pieces[0].new_zeros(self.batch, 1, pieces[0].shape[-1]) if before is None else before
        flat = torch.cat([piece.flatten(0, 1) for piece in (before, *pieces)])
        return flat[self._places(waves, flat.device)]

    def _places(self, waves: list[Wave], device: torch.device) -> torch.Tensor:
        """(batch, length): where each column's token stands when one row's last token after the other, then wave
        after wave with all its rows and columns are counted through."""
        places = torch.arange(self.batch, device=device).unsqueeze(1).repeat(1, 1 + largest(self.counts))
        begin = self.batch
        for wave in waves:
            length = largest(wave.lengths)
            rows, numbers = self._tokens_of(wave, length, device)
            is_read = torch.arange(length, device=device) < column_of(wave.lengths, len(rows), rows.device)
            counted = begin + torch.arange(len(rows) * length, device=device).view(len(rows), length)
            places[rows.expand_as(is_read)[is_read], 1 + numbers[is_read]] = counted[is_read]
            begin += len(rows) * length
        numbers = self.numbers
        if numbers is None:
            numbers = torch.arange(self.length, device=device).expand(self.batch, -1)
        return places.gather(1, 1 + numbers)

    def _tokens_of(self, wave: Wave, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of a wave, (rows, 1), and the numbers of the tokens that each reads, (rows, length)."""
        rows = range(self.batch) if wave.rows is None else wave.rows
        rows = torch.tensor(list(rows), device=device).unsqueeze(1)
        return rows, column_of(wave.begin, len(rows), device) + torch.arange(length, device=device)
