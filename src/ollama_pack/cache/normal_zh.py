"""The normal form of a question in Chinese: see `normal_form`."""

import re

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_FEWEST = 2  # characters
_KANA = re.compile(r"[\u3040-\u30ff\uac00-\ud7af]")
_ENDS = "。，,.!?！？；;：:~～… 、¶"  # noqa: RUF001 - as people write them
_SMILES = re.compile("(?<=[。，,.!?！？；;～~… 、谢了🙏🙂😊👍])[🙏🙂😊👍]+$")  # noqa: RUF001 - elsewhere they may be asked about
# What is left of a question about a word that was taken for a courtesy: 麻烦用英语怎么说, 请问怎么读
_OF_NOTHING = re.compile(
    "^(?:用.{1,6}(?:怎么|如何|怎样)(?:说|写|读|念|讲|表达|翻译)|(?:怎么|如何|怎样)(?:说|写|读|念|讲|用|翻译)"
    "|是?什么意思|的?意思是什么|的(?:意思|拼音|读音|用法|近义词|反义词).*)(?:吗|呢)?$"
)
_DO = (
    "(?:解释|介绍|说明|翻译|总结|分析|描述|比较|推荐|讲解|列举|列出|修改|检查|润色|写|编写|生成|提供|计算|制定|设计|讲|举"
    "|概括|简述|改写|转换|规划|起草|画|做一|想一|给我|用|把|将|详细|简单|简要)"
)
_ASKS = (
    "(?:什么|哪|谁|怎么|如何|为什么|多少|几|何时|多长|多高|多大|多久|多远|是否|有没有|能不能|是不是|可不可以)"
)
_MARK = r"[，,。.!！?？、：:~～…\s¶]"  # noqa: RUF001
_MAY = "(?:能不能|可不可以|可以|能否|可否|能|会)"
# 你会写代码吗 asks what one can do; a request says what it wants, or is of what nobody else is asked
_FOR_THE_ASKER = (
    "(?:(?:解释|说明|介绍|讲解|总结|概括|简述|推荐|列举|列出)(?!.*自己)|给我|(?:翻译|修改|检查|润色|改写)(?:一下|这|以下|下面|：|:)"  # noqa: RUF001
    f"|{_DO}(?:一(?:个|首|篇|份|段|封|则|下)|[几两三五]|这|以下|下面))"
)
_START = re.compile(
    r"^(?:"
    rf"(?:你好|您好|嗨|哈喽|大家好|早上好|下午好|晚上好|早|在吗|hi|hello)(?:啊|呀)?(?:{_MARK}+|(?=请问|请帮|请你|我想问|我想知道|麻烦))"
    rf"|(?:那么?|嗯|额|呃|好的?|ok){_MARK}+"
    r"|请问(?:一下|下)?|打扰一下|打扰了|不好意思|冒昧问一下|求问|请教一下|问一下|想问一下|有个问题"
    r"|我?想(?:请)?问(?:一下|一问|下|问)?|我?想请教(?:一下)?"
    rf"|(?:我?(?:很)?想(?:要)?知道|我想了解一下|我想弄清楚)(?=.*{_ASKS})"
    rf"|麻烦(?:你|您)?(?:一下)?(?={_MARK}|请|帮|告诉|{_DO})"
    rf"|请?(?:你|您)?{_MAY}?请?(?:告诉我|跟我说说|和我说说|告知)(?:一下)?(?={_MARK}*.*{_ASKS})"
    rf"|(?:请|拜托)?(?:你|您)?{_MAY}?(?:帮我|帮忙|帮个忙|替我|为我)(?={_DO})"
    rf"|(?:请|拜托)(?:你|您)?(?={_DO})"
    rf"|(?:请(?:你|您)|你|您)(?:能不能|可不可以|可以|能否|可否|能)(?:请)?(?={_FOR_THE_ASKER})"
    rf"|请?(?:解释|说明)(?:一下|下)?(?=什么是|为什么|如何|怎么|怎样)"
    rf"){_MARK}*"
)
_MAY_I = re.compile(rf"^请?(?:你|您)?{_MAY}.*?(?:告诉我|帮我|帮忙|给我|解释|介绍|推荐|说说|{_DO}一)")
_THANKS = "(?:(?:非常|十分)?感谢(?:您|你)?|谢谢(?:你|您|啦|了|大家)?|多谢(?:了)?|谢了|拜托了?|麻烦了|辛苦了)"
_END = re.compile(rf"(?:{_MARK}+{_THANKS})+$")
_PARTICLE = re.compile(r"(?<=.)(?:呢|呀|啊|哈|哦|嘛)$")
_GENTLY = re.compile(
    r"(解释|介绍|说明|翻译|总结|分析|描述|比较|推荐|讲解|列举|修改|检查|润色|计算|概括)(?:一下|下(?=\S))"
)
_NOT_HOW = "(?!样|了|会|还|不|没|这|那|能|可能|又|就|才|都|回事|啦|啊|呢|着|看|想|$)"
_THING = "(?:[^是什么和与跟,，。?？]+)"  # noqa: RUF001
_RELATION = (
    "(?:首都|人口|面积|总统|总理|主席|货币|作者|官方语言|国旗|国歌"
    "|高度|长度|沸点|熔点|冰点|密度|市长|邮编|时区)"
)

_TURNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), said)
    for pattern, said in (
        ("啥", "什么"),
        ("为何|为什么", "为什么"),
        ("哪儿|什么地方|哪里", "哪里"),
        ("在哪$", "在哪里"),
        (f"(?:怎样|怎么|如何){_NOT_HOW}", "如何"),
        ("何时|什么时候|什么时间", "什么时候"),
        (f"^什么是({_THING})$", r"\1是什么"),
        (f"^({_THING})的意思是什么$", r"\1是什么意思"),
        (f"^({_THING})什么意思$", r"\1是什么意思"),
        ("^(.+?)是是什么意思$", r"\1是什么意思"),
        (
            r"^([^和与跟]+)[和与跟]([^和与跟]+?)(?:之间)?的?(?:有什么|有哪些|有何)?(?:区别|不同|差别)(?:是什么|有哪些|在哪里)?$",
            r"区别 \1 和 \2",
        ),
        (rf"的(?={_RELATION})", ""),
        ("首都是(?:哪里|什么|哪个城市|哪座城市|哪一座城市)$", "首都是哪里"),
        (r"^([^的]+?)(?:有|一共有|共有)多少人口?$", r"\1人口是多少"),
        ("人口(?:有|是)?多少$", "人口是多少"),
        (r"^(.+)是谁写的$", r"谁写了\1"),
        (r"^(《[^》]+》)作者是谁$", r"谁写了\1"),
        (r"^(.+)是谁发明的$", r"谁发明了\1"),
        ("位于哪里$", "在哪里"),
        ("的高度是多少$|高度是多少$", "有多高"),
        ("的长度是多少$|长度是多少$", "有多长"),
        (r"^((?:(?![说觉认想知问告解猜以相希]).){1,8}?)为什么(?=是|会)", r"为什么\1"),
        (r"^如何(做|煮|炒|炖|蒸)([\u4e00-\u9fff]{2,6})$", r"\2如何\1"),
        ("(?<=哪)一(?=年|天|个)", ""),
        ("(?:有哪些|是什么|有什么)(优点|缺点|症状|好处|坏处)$", r"的\1有哪些"),
        ("的(优点|缺点|症状|好处|坏处)(?:是什么|有哪些|有什么)$", r"的\1有哪些"),
        ("((?:在|用)[A-Za-z ]+)(?:里面|里)(?=[\u4e00-\u9fff])", r"\1中"),
        ("^给我(?=推荐|讲|介绍|列)", ""),
        ("^讲一?个", "讲个"),
    )
)


def chinese_form(text: str, tokens: list[str]) -> str:
    """The form; empty where there is none.

    Args:
        text: the question.
        tokens: what it is made of, in the case that matters.
    """
    if _KANA.search(text):
        return ""
    said, ended = _joined(tokens), ""
    asks_may = bool(_MAY_I.match(_START.sub("", said)))
    while True:
        shorter = said.rstrip(_ENDS)
        ended = "?" if said[len(shorter) :].strip().startswith(("?", "？")) else ended  # noqa: RUF001
        shorter = _SMILES.sub("", _END.sub("", shorter))
        without = _START.sub("", shorter)
        asks_may = asks_may or bool(_MAY_I.match(shorter))
        shorter = _GENTLY.sub(r"\1", without)
        if re.search(_ASKS, shorter):
            shorter = _PARTICLE.sub("", shorter)
        if asks_may and shorter.endswith("吗") and without != said:
            shorter, asks_may = shorter[:-1], False
        if shorter == said:
            break
        said = shorter
    asked_of_it = _OF_NOTHING.match(said) and not _OF_NOTHING.match(_joined(tokens).rstrip(_ENDS))
    if len(said) < _FEWEST or asked_of_it:
        return ""
    for pattern, instead in _TURNS:
        said = pattern.sub(instead, said)
    asks = re.search(rf"{_ASKS}|吗$|^{_DO}|^区别 ", said)
    return f"zh {said}" + (" ?" if ended and not asks else "")


def _joined(tokens: list[str]) -> str:
    """The tokens with a space where neither side is Chinese: `Python列表` and `Python 列表` are one."""
    said = ""
    for token in tokens:
        between = said and not _HAN.match(said[-1]) and not _HAN.match(token[0]) and token not in _ENDS
        said += f" {token}" if between else token
    return said
