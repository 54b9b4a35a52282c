"""Which language a visitor reads, and the texts in it."""

from __future__ import annotations

import re
from typing import Any, Literal

from hawkeye.serve.texts import TEXTS

Language = Literal["en", "zh"]

# What the service says in English, as `metrics.why_slow` puts it: pattern, 简体中文.
_SAID: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), chinese)
    for pattern, chinese in (
        (r"(.+): camera or network gives nothing \((.*)\)", r"\1：摄像头或网络没有画面（\2）"),
        (r"(.+): the file gives nothing \((.*)\)", r"\1：文件没有画面（\2）"),
        (r"(.+): camera or network gives ([\d.]+) of (\d+) frames per second", r"\1：摄像头或网络每秒只给出 \2/\3 帧"),
        (r"(.+): the file gives ([\d.]+) of (\d+) frames per second", r"\1：文件每秒只给出 \2/\3 帧"),
        (r"(.+): decoding gives ([\d.]+) of (\d+) frames per second: it takes (\d+) ms of a core each",
         r"\1：解码每秒只给出 \2/\3 帧：每帧占用一个核心 \4 毫秒"),
        (r"(.+): ([\d.]+) of (\d+) frames per second are read: the processor is full",
         r"\1：每秒只读到 \2/\3 帧：处理器已满"),
        (r"(.+): ([\d.]+) of ([\d.]+) frames per second looked at: the processor is full",
         r"\1：每秒只处理 \2/\3 帧：处理器已满"),
        (r"(.+): ([\d.]+) of ([\d.]+) frames per second looked at: the detector is the slowest step",
         r"\1：每秒只处理 \2/\3 帧：检测器是最慢的一步"),
        (r"requests: decoding takes (\d+) ms, the detector (\d+) ms: send smaller pictures",
         r"请求：解码需 \1 毫秒，检测器需 \2 毫秒：请发送更小的图片"),
        (r"requests: every place is taken; more are turned away", "请求：所有位置已占满，更多请求会被拒绝"),
        (r"the processor is full", "处理器已满"),
    )
)  # fmt: skip


def translated(words: str, language: Language) -> str:
    """What the service says of itself, in a language; as it is where it is not known."""
    if language == "zh":
        for pattern, chinese in _SAID:
            if found := pattern.fullmatch(words):
                return found.expand(chinese)
    return words


class Texts:
    """The texts in one language.

    Args:
        language: "en" or "zh".

    Example:
        >>> Texts("zh")("live.drops", n=3)
        '丢帧 3'
    """

    def __init__(self, language: Language) -> None:
        self.language = language
        self.html_lang: Literal["en-US", "zh-CN"] = "zh-CN" if language == "zh" else "en-US"
        self._column = 1 if language == "zh" else 0

    def __call__(self, key: str, **values: Any) -> str:
        """The text of `key` with `values` in its places."""
        text = TEXTS[key][self._column]
        return text.format(**values) if values else text

    def known(self, prefix: str, name: str) -> str:
        """The text of `prefix.name`, or the name itself where there is none: names that come from elsewhere."""
        row = TEXTS.get(f"{prefix}.{name}")
        return row[self._column] if row else name


def preferred(chosen: str | None, accepted: str) -> Language:
    """The language to show.

    Args:
        chosen: by the user, "en" or "zh"; anything else does not count.
        accepted: the browser's Accept-Language, such as "zh-CN,zh;q=0.9,en;q=0.8".
    """
    if chosen == "zh" or chosen == "en":
        return "zh" if chosen == "zh" else "en"
    weighted: list[tuple[float, str]] = []
    for part in accepted.split(",")[:20]:
        tag, _, weight = part.strip().partition(";q=")
        try:
            weighted.append((float(weight or 1), tag.lower()))
        except ValueError:
            continue
    for _, tag in sorted(weighted, key=lambda pair: -pair[0]):
        if tag.startswith("zh"):
            return "zh"
        if tag.startswith("en"):
            return "en"
    return "en"
