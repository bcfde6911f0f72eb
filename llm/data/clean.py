"""What is wrong with a document: functions of texts that normalise, measure, and find near-copies and overlaps.

In: texts. Out: texts, shares, groups; a pure function each, the same in every process and for every order of texts.
Left out: records and the account of what was dropped (`corpus.py`).

Words are runs of letters and digits without capitals, so a script without spaces has few of them.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
import functools
import re
import unicodedata
import zlib

import numpy as np
import py3langid

from llm.config import CleanConfig
from llm.door import nearest
from llm.errors import UserError

PHRASE_WORDS = 5  # of repetitions and near-copies
# A phrase in more documents than this is a template of theirs, not a copy of one: the rule of Brown et al., "Language
# Models are Few-Shot Learners" (2020), appendix C, for overlaps of 13 words.
TEMPLATE_DOCUMENTS = 10
_WORD = re.compile(r'\w+')
_LINE_END = re.compile('\r\n|[\r\v\f\x1c-\x1f\x85\u2028\u2029]')
# Control characters but tab and line feed; soft hyphen, zero-width space, word joiner, byte-order mark; marks that
# turn the direction of a whole passage. Joiners (U+200C, U+200D) stay: scripts and emoji need them.
_INVISIBLE = re.compile('[\x00-\x08\x0e-\x1b\x7f-\x9f\u00ad\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]')
_BLANK_LINES = re.compile(r'\n(?:[ \t]*\n){3,}')
# A passage ends after a line, or after a sentence; a full stop after a digit ends none (numbers of verses, lists).
_PASSAGE_END = re.compile(r'\n+|(?<=[^\d\s][.!?])["\'’”)\]]*\s+')
_PERMUTATIONS = 128  # of MinHash; they only propose pairs, which are then compared exactly
_JUDGED_LETTERS = 200  # below it a guess at the language is too often wrong
_LANGUAGE_CHARS, _LANGUAGE_PASSAGES = 1000, 32  # length and number of the passages whose language is guessed


def normalise(text: str) -> str:
    """NFC; every line end is a line feed; no invisible characters; at most two blank lines in a row."""
    # Composed last: what is invisible may stand between a letter and its accent.
    text = unicodedata.normalize('NFC', _INVISIBLE.sub('', _LINE_END.sub('\n', text)))
    return _BLANK_LINES.sub('\n\n\n', text)


def fold(text: str) -> str:
    """The text without capitals, and with one space for every run of white space."""
    return ' '.join(text.casefold().split())


def runs(text: str, words: int) -> list[str]:
    """Every phrase of `words` words, in order; none where there are fewer."""
    found = _words(text)
    return [' '.join(found[start:start + words]) for start in range(len(found) - words + 1)]


def fault(text: str, clean: CleanConfig) -> str | None:
    """Why a document is left out, whatever the others are: 'too_short', 'too_long', 'repetitive', 'language'."""
    if len(text.strip()) < clean.min_chars:
        return 'too_short'
    if clean.max_chars and len(text) > clean.max_chars:
        return 'too_long'
    if clean.max_repeated_share < 1 and repeated_share(text) > clean.max_repeated_share:
        return 'repetitive'
    if clean.language and language_share(text, clean.language) < clean.min_language_share:
        return 'language'
    return None


def repeated_share(text: str) -> float:
    """Share of the words that stand in a phrase of five words which the text has said before."""
    phrases, seen = runs(text, PHRASE_WORDS), set()
    repeated = np.zeros(len(phrases) + PHRASE_WORDS - 1, bool)
    for start, phrase in enumerate(phrases):
        if phrase in seen:
            repeated[start:start + PHRASE_WORDS] = True
        seen.add(phrase)
    return float(repeated.mean()) if phrases else 0.0


def language_share(text: str, language: str) -> float:
    """Share of the letters in passages of that language, of up to 32 passages evenly spaced; 1 for short texts."""
    if language not in _languages():
        raise UserError(f'clean.language={language} is not a language that py3langid tells'
                        f'{nearest(language, _languages())}')
    if sum(map(str.isalpha, text)) < _JUDGED_LETTERS:
        return 1.0
    starts = range(0, len(text), _LANGUAGE_CHARS)
    step = max(1, len(starts) / _LANGUAGE_PASSAGES)
    passages = [text[starts[int(number * step)]:][:_LANGUAGE_CHARS] for number in range(int(len(starts) / step))]
    letters = [sum(map(str.isalpha, passage)) for passage in passages]
    fitting = sum(count for passage, count in zip(passages, letters) if py3langid.classify(passage)[0] == language)
    return fitting / max(1, sum(letters))


@functools.cache
def _languages() -> list[str]:
    return sorted(label for label, _ in py3langid.rank(''))


def clusters(texts: Sequence[str], similarity: float, words: int = PHRASE_WORDS,
             templates: bool = True) -> np.ndarray:
    """Groups near-copies: texts that are equal when folded, or whose phrases have this Jaccard similarity.

    Pairs come from MinHash (Broder, "On the resemblance and containment of documents", 1997) and are compared exactly;
    groups are connected components, so two texts of a group may differ by more.

    Args:
      words: of a phrase.
      templates: whether phrases in more than ten texts count. In chats they are instructions, the same for all.
    Returns:
      [texts] int64: the index of the text that stands for its group, the first when folded texts are sorted.
    """
    from scipy.sparse import coo_array  # slow to import, and prepared data need it no more
    from scipy.sparse.csgraph import connected_components
    index_of: dict[str, int] = {}
    for index, text in enumerate(texts):
        index_of.setdefault(fold(text), index)
    distinct = sorted(index_of)
    if not distinct:
        return np.zeros(0, np.int64)
    pairs = np.array(_alike(_shingler(distinct, words, templates), len(distinct), similarity)).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs)), pairs.T.astype(np.int64)), shape=(len(distinct), len(distinct)))
    group = connected_components(graph, directed=False)[1]
    _, first = np.unique(group, return_index=True)  # the first of each group in sorted order
    stands_for = {text: index_of[distinct[first[number]]] for text, number in zip(distinct, group)}
    return np.array([stands_for[fold(text)] for text in texts], np.int64)


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _shingler(texts: Sequence[str], words: int, templates: bool) -> Callable[[int], set[str]]:
    """index -> the phrases of a text; one that is too short for any, or has templates alone, is its own phrase."""
    count = Counter() if templates else Counter(phrase for text in texts for phrase in set(runs(text, words)))

    def shingles(index: int) -> set[str]:
        kept = {phrase for phrase in runs(texts[index], words) if count[phrase] <= TEMPLATE_DOCUMENTS}
        return kept or {' '.join(_words(texts[index])) or texts[index]}
    return shingles


def _alike(shingles: Callable[[int], set[str]], number: int, similarity: float) -> list[tuple[int, int]]:
    """Pairs of indices whose shingles are similar enough."""
    from datasketch import MinHash, MinHashLSH  # slow to import, too
    # Proposed pairs are compared, so a missed one is the worse mistake: hence the lower threshold and the weights.
    near = MinHashLSH(threshold=0.7 * similarity, num_perm=_PERMUTATIONS, weights=(0.1, 0.9))
    phrases = ([phrase.encode() for phrase in shingles(index)] for index in range(number))
    pairs = []
    for index, signature in enumerate(MinHash.generator(phrases, num_perm=_PERMUTATIONS, hashfunc=zlib.crc32)):
        for other in sorted(near.query(signature)):
            one, two = shingles(index), shingles(other)
            if len(one & two) >= similarity * len(one | two):
                pairs.append((other, index))
        near.insert(index, signature, check_duplication=False)
    return pairs


def without(text: str, phrases: Collection[str], words: int) -> tuple[str, list[str]]:
    """The text without the passages (lines or sentences) that share one of the phrases of `words` words.

    A phrase may begin in one passage and end in another: both go, and what is between.
    Returns what is left, '' where that has no words, and the passages that went.
    """
    hits = np.array([start for start, phrase in enumerate(runs(text, words)) if phrase in phrases], np.int64)
    if not len(hits):
        return text, []
    ends = [match.end() for match in _PASSAGE_END.finditer(text)] + [len(text)]
    home = np.searchsorted(ends, [match.start() for match in _WORD.finditer(text)], side='right')
    gone = {number for start in hits for number in range(home[start], home[start + words - 1] + 1)}
    passages = [text[start:end] for start, end in zip([0, *ends], ends)]
    left = ''.join(passage for number, passage in enumerate(passages) if number not in gone)
    return left if _WORD.search(left) else '', [passages[number] for number in sorted(gone)]
