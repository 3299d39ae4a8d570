r"""Reads the Chinese words of an answer: `24元` is 24 yuan, `3或5` is 3 or 5, `无解` is the empty set.

What is not covered: numbers in words, and sentences around an answer other than "the answer is".
"""

from __future__ import annotations

import re

HAN = "\u3400-\u9fff"
"""The range of Chinese signs, for a class of a regular expression."""
_UNITS = {
    "元": "yuan", "块": "yuan", "块钱": "yuan", "美元": "dollars", "欧元": "euros", "角": "jiao", "毫米": "mm",
    "厘米": "cm", "公分": "cm", "分米": "dm", "米": "m", "千米": "km", "公里": "km", "海里": "nautical miles",
    "毫克": "mg", "克": "g",
    "千克": "kg", "公斤": "kg", "吨": "tons", "毫升": "ml", "升": "l", "秒": "s", "秒钟": "s", "分钟": "min",
    "分": "min",
    "小时": "h", "时": "h", "天": "days", "日": "days", "周": "weeks", "星期": "weeks", "年": "years",
    "度": "degrees", "摄氏度": "celsius", "米每秒": "m/s", "千米每小时": "km/h", "公里每小时": "km/h",
    "个": "", "平方单位": "square units", "立方单位": "cubic units",
}  # fmt: skip
_SIZES = {"万": "myriad", "亿": "hundred million", "千": "thousand", "百万": "million", "百": "hundred"}
_SPOKEN = {
    "无解": "no solution", "没有解": "no solution", "方程无解": "no solution", "无实数解": "no solution",
    "空集": "the empty set", "全体实数": "all real numbers", "一切实数": "all real numbers",
    "任意实数": "all real numbers", "所有实数": "all real numbers", "实数集": "all real numbers",
}  # fmt: skip
_CHOSEN = re.compile(r"^[,\s]*(?:故|应)?(?:选择?|选项)(?:为|是)?\s*[::]?\s*(?=\(?[A-H]\)?\s*$)")
_RELATION = re.compile(
    "(充分|必要|充要|充分必要|充分[不非]必要|必要[不非]充分|既[不非]充分[也又]?[不非]必要)(?:的?条件)?"
)
_LEAD = re.compile("(?:所以|因此|故|综上)?[,:\\s]*(?:最终|正确)?(?:答案(?:就?是|为)?|答)\\s*[::=]?\\s*(?=\\S)")
_ABOUT = re.compile("^(?:大约|约为|约是|约)\\s*")
_IN_ALL = re.compile("^(?:一共|总共|共)有?\\s*(?=[0-9])")
_OR = re.compile(r"\\text\s*\{\s*(?:或者?)\s*\}|或者?")
# "and" joins values only before a number, a formula or a bracket; 和为 is "the sum is".
_AND = re.compile(rf"\\text\s*\{{\s*(?:和|与|及|且|以及|并且)\s*\}}|(?:以及|并且|[和与及且])(?=\s*[^\s{HAN}])")
NO_UNITS = re.compile(
    "[不非没无错否或与和约余超半折几]|以上|以下|左右|至少|至多|大于|小于|等于|之间|分之|次方|方根|根号|阶乘|倍数|[的比]"
    "|^多|[个只条元米克升岁人]多|^成(?!人)|(?:平方|立方|倒数|相反数)$"
)
"""Words that say more of a number than what it counts."""
_FRACTION = re.compile(r"(?<![\d.])([0-9]+)\s*分之\s*([0-9]+)(?![\d.])")
_RUN = re.compile(rf"\\text\s*\{{\s*([{HAN}/]+)\s*\}}|([{HAN}]+(?:/[{HAN}]+)*)")
_WHOLE = re.compile(rf"[{HAN}\s,.:;!?(){{}}]+")


def translated(text: str) -> str:
    r"""Returns the text with Chinese words as LaTeX and English; what has no translation becomes `\text{...}`."""
    if not re.search(f"[{HAN}]", text):
        return text
    text = _LEAD.sub("", text, count=1) if _LEAD.match(text) else text
    text = _FRACTION.sub(r"\\frac{\2}{\1}", _ABOUT.sub(r"\\approx ", _IN_ALL.sub("", text)))
    text = _CHOSEN.sub("", text)
    bare = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text).strip(" .")
    if relation := _RELATION.fullmatch(bare):  # of one statement to another
        kind = re.sub("[也又]", "", relation[1].replace("非", "不"))
        return rf"\text{{{'充要' if kind == '充分必要' else kind}}}"
    if _WHOLE.fullmatch(bare):
        return rf"\text{{{_SPOKEN.get(bare, bare)}}}"
    text = _OR.sub(r"\\text{ or }", text)
    text = _AND.sub(r"\\text{ and }", text)
    return _RUN.sub(lambda found: _unit(found[1] or found[2]), text)


def _unit(words: str) -> str:
    # 千米 is a kilometre and no thousand metres, so that a size is looked for only in what is no measure as a whole.
    english = "/".join(map(_measure, words.split("/")))
    if english == words:
        size = next((size for size in sorted(_SIZES, key=len, reverse=True) if words.startswith(size)), "")
        english = f"{_SIZES.get(size, '')} {_measure(words.removeprefix(size))}".strip()
    return rf"\text{{ {english}}}" if english else ""


def _measure(words: str) -> str:
    """Returns one measure in English: 平方厘米 is cm^2; words that only name what is counted stay as they are."""
    if words in _UNITS:
        return _UNITS[words]
    for prefix, power in (("平方", "^2"), ("立方", "^3")):
        if words.startswith(prefix) and words.removeprefix(prefix) in _UNITS:
            return _UNITS[words.removeprefix(prefix)] + power
    return words
