"""Which language a visitor reads, and the texts in it."""

from __future__ import annotations

import re
from typing import Any, Literal

from hawkeye.serve.texts import TEXTS

Language = Literal["en", "zh"]

# What the service says in English and operators meet most: pattern, 简体中文. What is not here stays English.
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
        # tests of sources, and how they fail
        (r"(.+) answers but gives no picture", r"\1 有响应，但没有画面"),
        (r"(.+): pictures of (\d+) x (\d+), (\d+) per second", r"\1：画面 \2 × \3，每秒 \4 帧"),
        (r"(.+): pictures of (\d+) x (\d+)", r"\1：画面 \2 × \3"),
        (r"its pictures cannot be decoded", "画面无法解码"),
        (r"cannot open (.+)", r"无法打开 \1"),
        (r"no pictures in it, or no answer", "没有画面或没有响应"),
        (r"(.+): no answer", r"\1：没有响应"),
        (r"(.+): Connection refused", r"\1：连接被拒绝"),
        (r"(.+): No route to host", r"\1：无法到达该主机"),
        (r"(.+): Network is unreachable", r"\1：网络不可达"),
        (r"check that it is on, and its address", "请检查设备是否开启、地址是否正确"),
        (r"check that it is plugged in, and its number", "请检查是否插好、编号是否正确"),
        (r"check host, path, user and password", "请检查主机、路径、用户名和密码"),
        (r"replace the file: it is damaged or of an unknown kind", "请更换文件：文件损坏或类型不明"),
        (r"the session is over", "检测会话已结束"),
        (r"(.+), one more source", r"又加一个视频源 \1"),
        (r"(.+) closed the connection or fell silent", r"\1 断开了连接或不再发送"),
        (r"(.+) is neither a picture nor a video", r"\1 既不是图片也不是视频"),
        (r"there is no file or folder (.+)", r"没有文件或文件夹 \1"),
        (r"there is no camera (\d+)", r"没有摄像头 \1"),
        (r"(/dev/video\d+) does not exist", r"\1 不存在"),
        (r"a camera; none is connected", "一个摄像头；目前一个也没有连接"),
        (r"one of ([\d, ]+)", r"\1 之一"),
        (r"plug it in, or name another number", "请插好，或换一个编号"),
        # refusals of the guard
        (r"there is no host (.+)", r"没有主机 \1"),
        (r"no address", "没有地址"),
        (r"check its name", "请检查名称"),
        (r"the address of (.+) is not allowed", r"不允许使用 \1 的地址"),
        (r"(.+): link-local and metadata addresses are never opened", r"\1：链路本地地址和元数据地址一律不打开"),
        (r"(.+): not the address of one host", r"\1：不是单个主机的地址"),
        (r"(.+): a private address that is not allowed", r"\1：未获允许的内网地址"),
        (r"start the service with (--allow-network \S+), or set (networks = .+)", r"启动服务时加 \1，或设置 \2"),
        (r"cameras of this machine are not allowed", "不允许使用本机摄像头"),
        (r"camera (\d+)", r"摄像头 \1"),
        (r"set (cameras = true)", r"设置 \1"),
        (r"files are not allowed as sources here", "此处不允许用文件作视频源"),
        (r"a path", "文件路径"),
        (r"start the service with --media FOLDER and name a file in it",
         "启动服务时加 --media 文件夹，再填写其中的文件"),
        (r"there is no such file in the media folder", "媒体文件夹中没有这个文件"),
        (r"a path relative to that folder", "相对于该文件夹的路径"),
        (r"one source at a time", "一次只能用一个视频源"),
        (r"(\d+) in that folder", r"该文件夹中有 \1 个"),
        (r"name one file", "请指定一个文件"),
        (r"sources of this kind are not opened", "不支持这种视频源"),
        (r"did you mean (.+)\?", r"是不是 \1？"),
        (r"name a file by its path alone", "文件只需填写路径"),
        (r"not an address", "不是有效的地址"),
        (r"write scheme://host:port/path, and special signs of a password as %40 and the like",
         "请写成 scheme://host:port/path，密码中的特殊字符写成 %40 等形式"),
        # sources, lines, zones and models
        (r"there is a source of this name", "已有同名的视频源"),
        (r"there is a line or zone of this name", "已有同名的线或区域"),
        (r"a name for each", "名称互不相同"),
        (r"give it another name", "请换一个名称"),
        (r"too many sources", "视频源过多"),
        (r"remove one, or set max_sources", "请移除一个，或调大 max_sources"),
        (r"there is no such source", "没有这个视频源"),
        (r"there is no such rule", "没有这条线或这个区域"),
        (r"there is no such model", "没有这个模型"),
        (r"rule (.+) names a class that the model does not know", r"规则 \1 含有模型不认识的类别"),
        (r"zone (.+) crosses itself", r"区域 \1 自相交"),
        (r"(.+) does not know what is counted on (.+)", r"\1 不认识 \2 上计数的类别"),
        (r"change that rule first", "请先修改该规则"),
        (r"there is no model to go back to", "没有可回滚的模型"),
        (r"none was served before this one", "此前没有用过其他模型"),
        # requests
        (r"the service is busy", "服务繁忙"),
        (r"every place is taken", "所有位置已占满"),
        (r"fewer requests at once", "减少同时的请求"),
        (r"try again in ([\d.]+) s", r"请在 \1 秒后重试"),
        (r"not a picture", "不是图片"),
        (r"(\d+) bytes that are none", r"\1 字节，内容不是图片"),
        (r"the picture is too large", "图片过大"),
        (r"at most ([\d,]+) pixels", r"不超过 \1 像素"),
        (r"the picture cannot be decoded", "图片无法解码"),
        (r"damaged content", "内容损坏"),
        (r"the picture is cut off", "图片不完整"),
        (r"a JPEG without its end", "JPEG 缺少结尾"),
        (r"a whole picture file", "完整的图片文件"),
        (r"(.+) holds no pictures", r"\1 中没有画面"),
        (r"a video with at least one frame", "至少有一帧的视频"),
        # history
        (r"no history: (.+)", r"没有历史记录：\1"),
        (r"the store cannot be (?:read|written)", "存储无法读写"),
        (r"database or disk is full", "磁盘已满"),
        (r"attempt to write a readonly database", "存储只能读取"),
        (r"disk I/O error", "磁盘读写出错"),
        (r"database is locked", "存储正被占用"),
        (r"free some space", "请腾出空间"),
    )
)  # fmt: skip
# An error's parts, see `errors.HawkeyeError`, in lines or in one.
_BREAK = re.compile(r"(?:;|\n ) (?=got: |expected: |to mend it: )")
_LABELS = {"got: ": "实际：", "expected: ": "应为：", "to mend it: ": "解决办法："}


def translated(words: str, language: Language) -> str:
    """What the service says, also of what went wrong, in a language; parts that are not known stay as they are."""
    if language == "en":
        return words
    for pattern, chinese in _SAID:
        if found := pattern.fullmatch(words):
            return re.sub(r"\\(\d)", lambda group: translated(found[int(group[1])], language), chinese)
    first, *parts = _BREAK.split(words)
    if not parts:
        return words
    said = [translated(first, language)]
    for part in parts:
        label = part[: part.index(": ") + 2]
        said.append(_LABELS[label] + translated(part.removeprefix(label), language))
    return "；".join(said)


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
