"""Every text of the pages, in English and Chinese; one row each, so that neither language can lack one.

Messages of errors come from `hawkeye.errors` in English; the pages show them as they are, under a line of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

Language = Literal["en", "zh"]

# key: (English, 简体中文)
TEXTS: Mapping[str, tuple[str, str]] = {
    # everywhere
    "skip": ("To the content", "跳到正文"),
    "nav": ("Pages", "页面"),
    "nav.live": ("Live", "实时"),
    "nav.detect": ("Detect", "检测"),
    "nav.counts": ("Counts", "计数"),
    "nav.models": ("Models", "模型"),
    "nav.runs": ("Runs", "压缩任务"),
    "nav.system": ("System", "系统"),
    "language": ("Change the language to Chinese", "把语言换成英语"),
    "language.other": ("中文", "English"),
    "theme.auto": ("Colours: as the system has them", "配色：跟随系统"),
    "theme.light": ("Colours: light", "配色：浅色"),
    "theme.dark": ("Colours: dark", "配色：深色"),
    "sign_out": ("Sign out", "退出登录"),
    "role.viewer": ("viewer", "查看者"),
    "role.operator": ("operator", "操作员"),
    "role.admin": ("administrator", "管理员"),
    "cancel": ("Cancel", "取消"),
    "close": ("Close", "关闭"),
    "save": ("Save", "保存"),
    "delete": ("Delete", "删除"),
    "all": ("all", "全部"),
    "whole_picture": ("whole picture", "整个画面"),
    "class": ("Class", "类别"),
    "name": ("Name", "名称"),
    "failed": ("That did not work", "操作没有成功"),
    "denied": ("Your role may not do this.", "你的角色没有此权限。"),
    "nothing": ("–", "–"),
    "error.title": ("This page could not be shown", "此页面无法显示"),
    # Live
    "live.title": ("Live", "实时"),
    "live.add": ("Add a source", "添加视频源"),
    "live.none": ("No source yet", "还没有视频源"),
    "live.none.how": (
        "A source is a video file, a camera or an address. Objects in it are found, followed and counted.",
        "视频源可以是视频文件、摄像头或网络地址。其中的目标会被检测、跟踪和计数。",
    ),
    "live.picture": ("Live picture of {name}", "{name} 的实时画面"),
    "live.no_picture": ("No picture yet", "还没有画面"),
    "live.lost": ("The picture does not come through; trying again", "画面传输中断，正在重试"),
    "live.now": ("Now", "当前"),
    "live.hour": ("Last hour", "最近一小时"),
    "live.nobody": ("Nothing seen yet", "还没有发现目标"),
    "live.fps": ("{done} fps", "{done} 帧/秒"),
    "live.fps.of": ("{done} of {into} fps", "{done}/{into} 帧/秒"),
    "live.latency": ("{ms} ms latency", "延迟 {ms} 毫秒"),
    "live.drops": ("{n} dropped", "丢帧 {n}"),
    "live.rules": ("Lines and zones", "计数线与区域"),
    "live.edit": ("Draw", "绘制"),
    "live.edit.of": ("Lines and zones of {name}", "{name} 的计数线与区域"),
    "live.remove": ("Remove", "移除"),
    "live.remove.sure": (
        "Remove {name}? Its counts stay, its lines and zones are lost.",
        "移除 {name}？计数会保留，计数线与区域将丢失。",
    ),
    "live.removed": ("{name} is removed", "已移除 {name}"),
    "live.added": ("{name} is added", "已添加 {name}"),
    "live.in": ("in {n}", "进 {n}"),
    "live.out": ("out {n}", "出 {n}"),
    "live.enter": ("entered {n}", "进入 {n}"),
    "live.exit": ("left {n}", "离开 {n}"),
    "live.inside": ("inside {n}", "在内 {n}"),
    "live.address": ("File, camera number or address", "文件、摄像头编号或网络地址"),
    "live.address.hint": (
        "such as door.mp4, 0, rtsp://user:password@192.168.1.20/stream1",
        "例如 door.mp4、0、rtsp://用户:密码@192.168.1.20/stream1",
    ),
    "live.name.hint": ("optional: letters, digits, - and _", "可不填：字母、数字、- 和 _"),
    "live.loop": ("Begin a file again when it ends", "文件结束后从头播放"),
    "live.test": ("Test", "测试"),
    "live.testing": ("Opening it; this takes up to ten seconds …", "正在打开，最多需要十秒……"),
    "live.test.ok": ("It works", "可以使用"),
    "live.test.bad": ("It does not work", "无法使用"),
    "live.adding": ("Adding …", "正在添加……"),
    "live.add.held": ("You may add only: {names}", "你只能添加：{names}"),
    "live.address.empty": ("Say which file, camera or address.", "请填写文件、摄像头或地址。"),
    "live.gone": ("This source is gone", "该视频源已不存在"),
    # states of a source
    "state.connecting": ("connecting", "正在连接"),
    "state.live": ("live", "实时"),
    "state.no data": ("no data", "无数据"),
    "state.reconnecting": ("reconnecting", "正在重连"),
    "state.ended": ("ended", "已结束"),
    "state.failed": ("failed", "已失败"),
    "state.stopped": ("stopped", "已停止"),
    # drawing
    "draw.line": ("Draw a line", "画一条线"),
    "draw.zone": ("Draw a zone", "画一个区域"),
    "draw.line.how": (
        "Drag from the start of the line to its end. The arrow shows what counts as “in”.",
        "从线的起点拖到终点。箭头所指方向计为“进”。",
    ),
    "draw.zone.how": (
        "Click the corners one after another; the first corner again, or Enter, closes the zone. Esc gives up.",
        "依次点击各个角点；再次点击第一个角点或按回车闭合区域，按 Esc 放弃。",
    ),
    "draw.move.how": (
        "Drag a point to move it. With the keyboard: Tab to a point, then the arrow keys; Shift makes larger steps.",
        "拖动端点即可移动。键盘：用 Tab 选中端点后按方向键，按住 Shift 步长更大。",
    ),
    "draw.keyboard": (
        "No mouse? Add one in the middle and move it:",
        "没有鼠标？先在画面中央添加，再移动：",
    ),
    "draw.middle.line": ("Line in the middle", "在中央添加线"),
    "draw.middle.zone": ("Zone in the middle", "在中央添加区域"),
    "draw.none": ("No lines or zones yet.", "还没有计数线或区域。"),
    "draw.kind.line": ("Line", "线"),
    "draw.kind.zone": ("Zone", "区域"),
    "draw.classes": ("Classes that count", "参与计数的类别"),
    "draw.classes.all": ("None chosen: all count", "不选则全部计数"),
    "draw.anchor": ("Point of the box that counts", "以目标框的哪一点计数"),
    "draw.anchor.bottom": ("middle of its lower edge", "下边中点"),
    "draw.anchor.centre": ("its centre", "中心"),
    "draw.repeat": ("Count every crossing of the same object", "同一目标每次越线都计数"),
    "draw.dwell": ("Report stays longer than (s)", "停留超过多少秒时上报"),
    "draw.turn": ("Turn the direction round", "反转方向"),
    "draw.saved": ("{name} is saved and counts from now on", "{name} 已保存，即刻开始计数"),
    "draw.deleted": ("{name} is deleted", "已删除 {name}"),
    "draw.point": ("Point {n} of {name}", "{name} 的第 {n} 个点"),
    "draw.wait": ("Lines can be drawn as soon as there is a picture.", "有画面后即可绘制。"),
    "draw.moved": ("A line that moves counts anew from zero.", "移动后的线会从零重新计数。"),
    # Detect
    "detect.title": ("Detect", "检测"),
    "detect.drop": ("Drop pictures or a video here, or choose files", "把图片或视频拖到这里，或选择文件"),
    "detect.limits": ("Up to {mb} MB each: JPEG, PNG, WebP, BMP, TIFF, MP4, AVI, MKV, MOV.",
                      "每个文件不超过 {mb} MB，支持 JPEG、PNG、WebP、BMP、TIFF、MP4、AVI、MKV、MOV。"),
    "detect.private": ("Files stay on this machine and are forgotten when the page is closed.",
                       "文件只留在本机，关闭页面后即被清除。"),
    "detect.rejected": ("Too large or not a picture or video; up to {mb} MB.", 
                        "文件过大，或不是图片或视频；上限 {mb} MB。"),
    "detect.working": ("Working on {name} …", "正在处理 {name}……"),
    "detect.working.video": ("Working on {name}: {done} of {total} frames", "正在处理 {name}：第 {done}/{total} 帧"),
    "detect.every": ("Every {n}th frame of this video is looked at: {frames} in all.",
                     "此视频每 {n} 帧看一帧，共 {frames} 帧。"),
    "detect.stop": ("Stop", "停止"),
    "detect.file": ("File", "文件"),
    "detect.frame": ("Frame at {s} s", "第 {s} 秒的画面"),
    "detect.conf": ("Score at least", "置信度不低于"),
    "detect.iou": ("Overlap at most", "重叠度不高于"),
    "detect.classes": ("Only these classes", "只看这些类别"),
    "detect.beside": ("Beside it", "对照模型"),
    "detect.beside.none": ("nothing", "不对照"),
    "detect.model": ("Model", "模型"),
    "detect.found": ("{n} objects", "{n} 个目标"),
    "detect.found.one": ("1 object", "1 个目标"),
    "detect.none": ("No objects above this score.", "没有达到该置信度的目标。"),
    "detect.score": ("Score", "置信度"),
    "detect.box": ("Box (pixels)", "框（像素）"),
    "detect.total": ("{ms} ms for this picture", "此图共 {ms} 毫秒"),
    "detect.network": ("network {ms} ms", "网络 {ms} 毫秒"),
    "detect.median": ("median of {n} passes", "{n} 次的中位数"),
    "detect.faster": ("{factor} times as fast as {other}", "速度是 {other} 的 {factor} 倍"),
    "detect.again": ("Measure again, 10 times", "重测十次"),
    "detect.save": ("Download", "下载"),
    "detect.picture": ("Picture with boxes", "带框图片"),
    "detect.wide": ("only {shown} of {n} shown", "仅显示 {n} 个中的 {shown} 个"),
    "detect.weak": ("{n} more below this score", "另有 {n} 个低于该置信度"),
    "stage.decode": ("decode the file", "解码"),
    "stage.wait": ("wait for a place", "排队"),
    "stage.pre": ("prepare", "预处理"),
    "stage.network": ("network", "网络"),
    "stage.post": ("boxes from output", "后处理"),
    "stage.live": ("live, frame to result", "实时：从帧到结果"),
    "stage.total": ("in all", "合计"),
    "stage.live_network": ("live, network", "实时：网络"),
    "queue.requests": ("requests", "请求"),
    "queue.live": ("live frames", "实时帧"),
    "queue.alerts": ("alerts", "告警"),
    # Counts
    "counts.title": ("Counts", "计数"),
    "counts.source": ("Source", "视频源"),
    "counts.where": ("Line or zone", "计数线或区域"),
    "counts.measure": ("Measure", "指标"),
    "counts.range": ("Period", "时间范围"),
    "counts.bucket": ("Per", "粒度"),
    "counts.from": ("From", "从"),
    "counts.to": ("To", "到"),
    "counts.custom": ("other", "自定义"),
    "counts.auto": ("automatic", "自动"),
    "counts.unit.s": ("{n} s", "{n} 秒"),
    "counts.unit.m": ("{n} min", "{n} 分钟"),
    "counts.unit.h": ("{n} h", "{n} 小时"),
    "counts.unit.d": ("{n} d", "{n} 天"),
    "counts.none": ("Nothing was counted in this time.", "这段时间没有计数。"),
    "counts.none.how": ("Counting begins with the first source on the page Live.",
                        "在“实时”页面添加视频源后即开始计数。"),
    "counts.gap": ("no data", "无数据"),
    "counts.gaps": ("Shaded: no data. That is not zero.", "阴影处没有数据，并不是零。"),
    "counts.covered": ("data for {percent} % of this time", "这段时间中 {percent}% 有数据"),
    "counts.shorter": ("Too many points: shown per {bucket}.", "数据点过多，改为每 {bucket} 一个点。"),
    "counts.order": ("The end must lie after the beginning.", "结束时间必须晚于开始时间。"),
    "counts.sum": ("Sum", "合计"),
    "counts.most": ("Most", "最大"),
    "counts.mean": ("Mean", "平均"),
    "counts.export": ("Export", "导出"),
    "counts.chart": ("Counts over time", "计数随时间变化"),
    "counts.live": ("Follow", "持续刷新"),
    "measure.in": ("crossed, in", "越线：进"),
    "measure.out": ("crossed, out", "越线：出"),
    "measure.enter": ("entered", "进入"),
    "measure.exit": ("left", "离开"),
    "measure.occupancy_mean": ("inside, mean", "在内：平均"),
    "measure.occupancy_max": ("inside, most", "在内：最多"),
    "measure.dwell_mean_s": ("stay, mean (s)", "停留：平均（秒）"),
    "measure.seen": ("new objects", "新目标"),
    "measure.present_mean": ("in the picture, mean", "画面内：平均"),
    "measure.present_max": ("in the picture, most", "画面内：最多"),
    # Models
    "models.title": ("Models", "模型"),
    "models.served": ("served", "正在使用"),
    "models.candidate": ("in the comparison", "对比中"),
    "models.loaded": ("loaded", "已加载"),
    "models.available": ("available", "可用"),
    "models.none": ("No models are known here.", "没有已知的模型。"),
    "models.size": ("Size", "大小"),
    "models.input": ("Input", "输入"),
    "models.classes": ("Classes", "类别数"),
    "models.precision": ("Precision as compiled", "编译后的精度"),
    "models.precision.unknown": ("known once it is loaded", "加载后可知"),
    "models.created": ("Made", "生成时间"),
    "models.row": ("Its row of the table", "表中的这一行"),
    "models.row.none": ("Its run has no figures for it.", "所属任务没有它的数据。"),
    "models.serve": ("Serve this", "换用"),
    "models.serve.sure": (
        "Serve {name} instead of {old}? No frame is dropped; the old one finishes what it has begun.",
        "用 {name} 替换 {old}？不会丢帧，旧模型会先处理完手头的帧。",
    ),
    "models.switching": ("Compiling {name}; the old one works on meanwhile …", "正在编译 {name}，旧模型继续工作……"),
    "models.switched": ("{name} is served now", "现在使用 {name}"),
    "models.back": ("Roll back", "回滚"),
    "models.back.sure": ("Serve the model before {old} again?", "恢复使用 {old} 之前的模型？"),
    "models.why_not": ("Cannot be opened", "无法打开"),
    "ab.title": ("A/B on live frames", "实时画面 A/B 对比"),
    "ab.how": (
        "Both models look at every n-th live frame. The served one alone goes on counting.",
        "两个模型同时查看每第 n 帧实时画面，计数仍只用正在使用的模型。",
    ),
    "ab.candidate": ("Compare with", "对比模型"),
    "ab.every": ("Every n-th frame", "每隔几帧"),
    "ab.start": ("Compare", "开始对比"),
    "ab.starting": ("Compiling {name} …", "正在编译 {name}……"),
    "ab.stop": ("End the comparison", "结束对比"),
    "ab.choose": ("Choose a model to compare with.", "请选择对比模型。"),
    "ab.no_live": ("No source is live: there are no frames to compare on.", "没有实时视频源，无画面可对比。"),
    "ab.agreement": ("agreement", "一致率"),
    "ab.frames": ("{n} frames compared, {skipped} skipped", "已对比 {n} 帧，跳过 {skipped} 帧"),
    "ab.waiting": ("Waiting for the first frame …", "等待第一帧……"),
    "ab.network": ("network, median", "网络耗时中位数"),
    "ab.only": ("boxes that only it finds, per frame", "仅它检出的框（每帧）"),
    # Runs
    "runs.title": ("Runs", "压缩任务"),
    "runs.none": ("No runs yet.", "还没有压缩任务。"),
    "runs.none.how": ("Start one on the command line: {command}", "在命令行启动：{command}"),
    "runs.running": ("running", "进行中"),
    "runs.finished": ("finished", "已完成"),
    "runs.unfinished": ("unfinished", "未完成"),
    "runs.stages": ("finished stages", "已完成阶段"),
    "runs.report": ("Report", "报告"),
    "runs.changed": ("changed {when}", "更新于 {when}"),
    "runs.ago.s": ("{n} s ago", "{n} 秒前"),
    "runs.ago.m": ("{n} min ago", "{n} 分钟前"),
    "runs.ago.h": ("{n} h ago", "{n} 小时前"),
    "runs.ago.d": ("{n} d ago", "{n} 天前"),
    "runs.progress": ("Progress of the stage", "当前阶段进度"),
    "runs.go_on": ("Start the same command again and it goes on where it was.", "再次运行同一命令即可继续。"),
    # System
    "system.title": ("System", "系统"),
    "system.slow": ("Why it is slow", "为什么慢"),
    "system.fine": ("Nothing holds it up.", "没有瓶颈。"),
    "system.cpu": ("CPU, this service", "CPU（本服务）"),
    "system.cpu.of": ("of {cores} cores; machine {percent} %", "共 {cores} 核；整机 {percent}%"),
    "system.memory": ("Memory", "内存"),
    "system.memory.of": ("of {total}", "共 {total}"),
    "system.uptime": ("Running for", "已运行"),
    "system.drops": ("Frames dropped", "丢帧"),
    "system.drops.of": ("{lost} without a result", "无结果 {lost}"),
    "system.requests": ("Requests", "请求"),
    "system.requests.of": ("{rejected} refused as busy", "因繁忙拒绝 {rejected}"),
    "system.history": ("History", "历史记录"),
    "system.history.on": ("counts are kept", "计数会保存"),
    "system.history.off": ("Counts are not kept now", "计数目前无法保存"),
    "system.latency": ("Latency", "延迟"),
    "system.latency.share": ("Share of frames and requests per latency", "各延迟区间所占比例"),
    "system.stage": ("Stage", "阶段"),
    "system.times": ("Measured", "次数"),
    "system.queues": ("Queues", "队列"),
    "system.queue": ("Queue", "队列"),
    "system.waiting": ("Waiting", "等待"),
    "system.capacity": ("Capacity", "容量"),
    "system.sources": ("Sources", "视频源"),
    "system.state": ("State", "状态"),
    "system.log": ("Log", "日志"),
    "system.log.none": ("Nothing in the log.", "日志为空。"),
    "system.hidden": ("For operators who see every source.", "仅限可查看全部视频源的操作员。"),
    "system.none": ("Nothing measured yet.", "还没有测量数据。"),
    "share": ("share", "占比"),
}  # fmt: skip


# What the service says in English, as `metrics.why_slow` puts it: pattern, 简体中文.
_SAID: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), chinese)
    for pattern, chinese in (
        (r"(.+): camera or network gives nothing \((.*)\)", r"\1：摄像头或网络没有画面（\2）"),
        (r"(.+): camera, network or decoding gives ([\d.]+) of (\d+) frames per second",
         r"\1：摄像头、网络或解码每秒只给出 \2/\3 帧"),
        (r"(.+): ([\d.]+) of ([\d.]+) frames per second looked at: the processor is full",
         r"\1：每秒只处理 \2/\3 帧：处理器已满"),
        (r"(.+): ([\d.]+) of ([\d.]+) frames per second looked at: the network is the slowest step",
         r"\1：每秒只处理 \2/\3 帧：网络推理是最慢的一步"),
        (r"requests: decoding takes (\d+) ms, the network (\d+) ms: send smaller pictures",
         r"请求：解码需 \1 毫秒，网络推理需 \2 毫秒：请发送更小的图片"),
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
