"""Look for wanted and unwanted words: the plainest taste, and one whose truth is known.

What is not covered: what the words mean together. "Not lovely" holds a lovely word.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.base import Reward, Sample

_WORD = re.compile(r"\w+")


class Words:
    """The balance of words, from -1 to 1: (wanted - unwanted) / (wanted + unwanted), and 0 where there are neither.

    A word counts as often as it stands there, wherever that is, in any case of letters. The balance does not grow with
    the length, so saying a wanted word again earns nothing.
    """

    independent = True

    def __init__(self, wanted: Sequence[str], unwanted: Sequence[str] = ()) -> None:
        """Raises ValueError for a text in the place of a list, for no words at all, and for one in both lists."""
        for name, words in (("wanted", wanted), ("unwanted", unwanted)):
            if isinstance(words, str) or any(not isinstance(word, str) or not _WORD.fullmatch(word) for word in words):
                raise ValueError(f"{name}={words!r} is no list of single words, such as [please, thanks]")
        self.wanted, self.unwanted = ({word.lower() for word in words} for words in (wanted, unwanted))
        if not self.wanted | self.unwanted:
            raise ValueError("wanted=[] and unwanted=[] leave nothing to look for; name a word")
        if both := sorted(self.wanted & self.unwanted):
            raise ValueError(f"{both[0]!r} is wanted and unwanted; take it out of one of the lists")

    def __call__(self, samples: Sequence[Sample]) -> list[Reward]:
        """Judges each sample. Reasons: wanted, unwanted, both, neither; the logs count each kind."""
        return [self._one(sample.completion) for sample in samples]

    def _one(self, completion: str) -> Reward:
        words = _WORD.findall(completion.lower())
        wanted, unwanted = (sum(word in known for word in words) for known in (self.wanted, self.unwanted))
        reason = "both" if wanted and unwanted else "wanted" if wanted else "unwanted" if unwanted else "neither"
        value = (wanted - unwanted) / max(1, wanted + unwanted)
        return Reward(value, reason, logs={"wanted": wanted, "unwanted": unwanted})
