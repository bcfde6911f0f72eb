"""Rows of prepared data: dense arrays for any indices, without order, state or randomness.

In: a folder that `prepare.py` wrote. Out: PackedRows (text and chats), RankedRows, PromptRows.
Left out: which rows come when (`order.py`), which of them a process loads (`llm/sharding.py`).

A folder holds one stream of tokens, cut into documents, and an index of rows. A row is a list of pieces
(document, start, end); a window of text is a piece of a document, a chat is a whole one, a group of ranked
answers is a row of whole sequences. All arrays are memory-mapped.
"""

import json

from etils import epath
import numpy as np

from llm.data.tokenizer import Tokenizer


class Stored:
    """What all kinds of rows share: the stream, its documents and the index of rows.

    Attributes: name; sha256 of the arrays; seq_len in tokens; meta, counts of documents, dropped and bad ones;
    note, one line about them; cleaning, a `corpus.Account` as a dict.
    """

    def __init__(self, folder: epath.Path, tokenizer: Tokenizer):
        self._folder = folder
        self.meta = json.loads((folder / 'meta.json').read_text())
        self.name, self.sha256, self.seq_len = (self.meta[key] for key in ('name', 'sha256', 'seq_len'))
        self.note, self.cleaning = self.meta['note'], self.meta['cleaning']
        self._pad = tokenizer.special_ids['pad']
        self._tokens = self._array('tokens')  # of the whole stream
        self._learn = self._array('learn')  # uint8 beside every token: 1 where it is a target
        self._starts = self._array('starts')  # [documents + 1] into the stream
        self._pieces = self._array('pieces')  # [pieces, 3]: document, start, end within it
        self._row_starts = self._array('row_starts')  # [rows + 1] into the pieces

    def _array(self, name: str) -> np.ndarray:
        dtype, shape = self.meta['arrays'][name]
        return np.memmap(self._folder / f'{name}.bin', dtype, mode='r', shape=tuple(shape))

    def __len__(self) -> int:
        return len(self._row_starts) - 1

    def pieces(self, index: int) -> np.ndarray:
        """[pieces, 3]: the (document, start, end) of a row."""
        return self._pieces[self._row_starts[index]:self._row_starts[index + 1]]

    def document(self, number: int) -> np.ndarray:
        """Token ids of a whole document."""
        return self._tokens[self._starts[number]:self._starts[number + 1]]


class PackedRows(Stored):
    """Pieces of documents laid side by side, for next-token prediction."""

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Dense rows.

        Returns:
          tokens_BT int32; targets_BT int32, the next token of the same document, pad where there is none;
          mask_BT float32, 1 where the target counts; positions_BT int32, from 0 in every piece;
          segments_BT int32, 1, 2, ... by piece, 0 on padding.
        """
        shape = (len(indices), self.seq_len)
        tokens_BT, targets_BT = (np.full(shape, self._pad, np.int32) for _ in range(2))
        positions_BT, segments_BT = (np.zeros(shape, np.int32) for _ in range(2))
        mask_BT = np.zeros(shape, np.float32)
        for row, index in enumerate(indices):
            at = 0
            for segment, (number, start, end) in enumerate(self.pieces(index), 1):
                first, last = self._starts[number] + start, self._starts[number] + end
                # The token after the piece is a target too, if it is of the same document.
                after = min(last + 1, self._starts[number + 1])
                here, known = slice(at, at + end - start), slice(at, at + after - first - 1)
                tokens_BT[row, here] = self._tokens[first:last]
                targets_BT[row, known] = self._tokens[first + 1:after]
                mask_BT[row, known] = self._learn[first + 1:after]
                positions_BT[row, here] = np.arange(end - start)
                segments_BT[row, here] = segment
                at += end - start
        return {'tokens_BT': tokens_BT, 'targets_BT': targets_BT, 'mask_BT': mask_BT,
                'positions_BT': positions_BT, 'segments_BT': segments_BT}


class RankedRows(Stored):
    """Groups of R answers to one prompt with people's scores, R being meta['answers']."""

    def __init__(self, folder: epath.Path, tokenizer: Tokenizer):
        super().__init__(folder, tokenizer)
        self._scores = self._array('scores')  # beside every piece; higher is better

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Dense groups; groups of fewer than R answers are filled up with invalid ones of length 0.

        Returns:
          tokens_BRT int32, prompt, answer and eos, right-padded; length_BR int32, in tokens;
          score_BR float32; valid_BR bool.
        """
        shape = (len(indices), self.meta['answers'])
        tokens_BRT = np.full((*shape, self.seq_len), self._pad, np.int32)
        length_BR, score_BR = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        for row, index in enumerate(indices):
            pieces = self.pieces(index)
            for answer, (number, start, end) in enumerate(pieces):
                tokens_BRT[row, answer, :end - start] = self.document(number)
                length_BR[row, answer] = end - start
            score_BR[row, :len(pieces)] = self._scores[self._row_starts[index]:self._row_starts[index + 1]]
        return {'tokens_BRT': tokens_BRT, 'length_BR': length_BR, 'score_BR': score_BR,
                'valid_BR': length_BR > 0}


class PromptRows(Stored):
    """Prompts for a policy to answer."""

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """tokens_BT int32, right-padded; length_B int32, in tokens."""
        tokens_BT = np.full((len(indices), self.seq_len), self._pad, np.int32)
        length_B = np.zeros(len(indices), np.int32)
        for row, index in enumerate(indices):
            ids = self.document(index)
            tokens_BT[row, :len(ids)], length_B[row] = ids, len(ids)
        return {'tokens_BT': tokens_BT, 'length_B': length_B}
