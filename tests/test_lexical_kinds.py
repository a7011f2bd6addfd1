"""What a gold answer and an answer must agree in, kind by kind: `gold | answer`; = is right, ! is wrong."""

from __future__ import annotations

import pytest

from seal_jax.graders.lexical import matches

KINDS = {
    "How many?": """
! 3.5 | 35
! 35 | 3.5
= 3.5 | 3.50
! 0.75 | 75
! 1.25 | 12.5
! -40 | 40
! 40 | -40
= -40 | minus 40
= −12 | -12
! +3 | -3
= minus seven | -7
! 24-10 | 10-24
= 24-10 | 24–10
= 24-10 | 24 to 10
! 2:1 | 1:2
= 2:1 | 2 to 1
! 3-2 | 2-3
! 3/4 | 4/3
= 3/4 | 0.75
= 1,500,000 | 1500000
= 1,500,000 | 1.5 million
= 1.5M | 1,500,000
! 1.5 million | 15 million
! 1,234 | 1.234
= 10^6 | one million
! 10^6 | 10^5
= 2½ | 2.5
! 6.02 | 602
! 1.10.3 | 1.10.4
= ９９ | 99
= ٣٥ | 35
! more than 5 | less than 5
! 101 | 1.01
! 1.5 | 1-5
""",
    "How much?": """
! $1.5 billion | $15 billion
! $5 | €5
! 5 dollars | 5 euros
= $5 | 5 dollars
= US$5 | $5
= £20 | 20 pounds
! £20 | $20
! ¥100 | $100
= €1.5bn | 1.5 billion euros
! 5 km | 5 miles
= 5 km | 5 kilometres
= 5 km | 5,000 m
= 1.5 km | 1500 metres
! 1.5 km | 1.5 m
! 10 kg | 10 g
= 10 kg | 10,000 grams
! 20 °C | 20 °F
= 20 °C | 68 °F
= 20 °C | 20 degrees Celsius
! -40 degrees | 40 degrees
= -5 °C | 5 degrees below zero
! 5 years | 5 months
= 2 years | 24 months
! 3 hours | 3 minutes
= 90 minutes | 1.5 hours
= 60% | sixty percent
= 50% | half
! 5% | 0.5%
! 12 volts | 12 watts
= 3 MW | 3,000 kW
! 100 square miles | 100 square kilometres
= 100 sq mi | 100 square miles
= one week | a week
= 6 feet | 6 ft
! 6 feet | 6 inches
""",
    "When?": """
! May 2003 | June 2003
= May 2003 | in May of 2003
! May | June
= May | It was in May.
! 12 May 2003 | 12 June 2003
! 4 July 1776 | 2 July 1776
! July 4 | July 14
= 4 July 1776 | July 4, 1776
= 4 July 1776 | the 4th of July, 1776
= 1776-07-04 | July 4, 1776
= July 4, 1776 | 1776-07-04
! 1776-07-04 | 1776-04-07
= July 4, 1776 | 7/4/1776
= 4 July 1776 | 04.07.1776
= 3 September 1939 | Sept. 3, 1939
= January 1 | 1st January
! 1 January | 31 January
! March 15, 44 BC | March 15, 44 AD
= 44 BC | 44 BCE
! 44 BC | AD 44
= AD 79 | 79 CE
! 1914 | 1941
= 1914-18 | 1914–1918
= 1914-1918 | from 1914 to 1918
! 1914-1918 | 1914-1917
= the 1970s | the '70s
! the 1970s | the 1980s
= 16th century | sixteenth century
! 16th century | 15th century
= nineteen eighty-four | 1984
= 1776年7月4日 | July 4, 1776
= 23 to 26 October 1944 | October 23-26, 1944
! 23 October 1944 | 24 October 1944
! 4 May 1919 | 4 March 1919
""",
    "At what time?": """
! 10:30 | 1030
! 10:30 | 10:13
! 5:30 p.m. | 5:30 a.m.
= 17:30 | 5:30 pm
= 17:30 | 5:30 p.m.
! 17:30 | 5:30 am
= 5:30 p.m. | 17:30
= 5 pm | 17:00
= 5 pm | 5:00 p.m.
! 5 pm | 5 am
= 5:30 PM | 5.30 pm
= 00:00 | midnight
= noon | 12 pm
= 12:00 | noon
! noon | midnight
= half past five | 5:30
! half past five | 4:30
= quarter to six | 5:45
= quarter past six | 6:15
! quarter to six | 6:15
= five o'clock | 5:00
! five o'clock | six o'clock
= 09:05 | 9:05 am
! 09:05 | 9:50 am
= 17h30 | 17:30
= 1730 hours | 5:30 pm
! 8 a.m. | 8 p.m.
= 8 a.m. | It opens at 8:00 AM.
! 11:59 pm | 11:59 am
! 3:16 | 16:3
= 3:16 | 3:16
""",
    "What number?": """
= one hundred and five | 105
= 105 | one hundred five
! one hundred and five | 150
= two thousand and three | 2003
= 2003 | two thousand three
! two thousand and three | 2300
= twenty-one | 21
! twenty-one | 12
= a hundred | 100
= a dozen | 12
= two dozen | 24
= half a dozen | 6
= one half | half
= half | 1/2
= half | 0.5
= three quarters | 3/4
! three quarters | one quarter
= two-thirds | 2/3
! two-thirds | one third
= half a million | 500,000
= two and a half million | 2.5 million
= one and a half | 1.5
= three point five | 3.5
! three point five | 35
= minus forty | -40
= third | 3rd
= the twenty-first | 21st
! the twenty-first | 22nd
= Henry VIII | Henry the Eighth
! Henry VIII | Henry VII
! George V | George VI
= World War II | World War Two
! World War II | World War I
= one million two hundred thousand | 1,200,000
= twice | two times
! fifteen | fifty
= nine hundred ninety-nine | 999
""",
    "Which one is it called?": """
! C++ | C
! C | C++
! C# | C++
! C# | C
= C++ | C++
= C# | C sharp
! F# | F
! A+ | A
! A+ | A-
! A- | A+
! O+ | O-
= O+ | O positive
! EUR | $
= EUR | €
= € | euro
= $ | dollar
! $ | €
! £ | $
! % | $
= % | percent
! + | -
= + | +
= + | plus
! & | @
! < | >
= AT&T | AT&T
! AT&T | BT
! R&D | R
! F-16 | F-15
= F-16 | F16
! CO2 | CO
! H2O | H2O2
! 4G | 5G
! Na+ | Na
""",
    "Who did it?": """
! Alice | Alice did not do it; Bob did.
! Alice | It was not Alice.
! Alice | It wasn't Alice.
! Alice | Alice didn't do it.
! Alice | Alice never did it.
! Alice | not Alice
! Alice | Bob, not Alice
= Alice | Alice, not Bob
! Alice | Not Alice but Bob did it.
= Alice | Not Bob but Alice did it.
! Alice | Bob rather than Alice
! Alice | Bob instead of Alice
= Alice | Alice instead of Bob
! Alice | neither Alice nor Bob
! Bob | neither Alice nor Bob
! Alice | Everyone but Alice
! Alice | I don't think it was Alice.
! Alice | Alice is incorrect.
! Alice | anyone except Alice
! Alice | Alice cannot have done it.
= Alice | Bob did not do it; Alice did.
= Alice | It was Alice who did it.
= Alice | Alice did it.
! Alice Smith | Alice Smith did not do it, Bob Jones did.
! Alice | Alice was not the one.
! Alice | Alice did not, but Bob did.
! Alice | It is not Alice, it is Bob.
= Alice | No, Alice did it.
! Alice | Alice won't have done it; Bob did.
! Alice | Contrary to belief, it was not Alice.
! Alice | It was no longer Alice.
""",
    "Which ones?": """
= red, white and blue | blue, white, and red
= red, white and blue | red, white & blue
! red, white and blue | red and green
! Paris | Paris or London
! Paris | either Paris or London
! Paris | London or Paris
! 5 | 5 or 6
! Paris | It was either Paris or Rome.
= Paris or London | London
= Paris | It was probably Paris.
= Paris | I think it is Paris.
! 15 | 10-15
! 15 | between 10 and 15
! 15 | 10 to 20
! 10-15 | 15
! 10-15 | 10
= 10-15 | between 10 and 15
= 10-15 | 10 to 15
= from 10 to 15 | 10-15
! 10-15 | 10-16
= 200,000 to 400,000 | 200,000-400,000
! 200,000 to 400,000 | 200,000 to 300,000
= 5-10 km | 5 to 10 kilometres
! 5-10 km | 5-10 miles
= 3,000 or 4,000 | 4,000
= iron, tin, and zinc | tin, zinc, iron
! iron, tin | gold, silver
= about 50 | 50
= around fifty | approximately 50
! at least 10 | at most 10
= Murray and Foster | Foster, Murray
! over 100 | under 100
""",
    "哪里？": """
= 東京 | 日本の首都は東京です。
! 東京 | 日本の首都は京都です。
! 京都 | 東京都
! 東京 | 東京ではない
! 東京 | 東京ではありません。大阪です。
= 北京 | 中国的首都是北京。
! 北京 | 中国的首都是南京。
! 北京 | 不是北京
= 上海 | 他在上海工作。
= กรุงเทพ | เมืองหลวงคือกรุงเทพ
! กรุงเทพ | เชียงใหม่
! กรุงเทพ | ไม่ใช่กรุงเทพ
= 서울 | 수도는 서울입니다.
= 서울 | 서울에서
! 서울 | 수도는 부산입니다.
! 서울 | 서울이 아닙니다
! 부산 | 부산물
= アメリカ | アメリカです
! ローマ | ローマンです
= アメリカ | ｱﾒﾘｶ
= がん | がんです
! かん | がん
= 105人 | 共有105人
! 105人 | 共有1105人
= 三十五 | 35
= 三百二十人 | 320人
! 三十五 | 53
= 5万人 | 50,000人
= 1776年7月4日 | 独立于1776年7月4日。
! 1776年7月4日 | 1776年7月2日
= 東京、大阪 | 大阪と東京です
! 東京、大阪 | 東京です
= 富士山 | 日本で一番高い山は富士山です。
= 水 | 答案是水。
""",
    "What is the name?": """
= Łódź | Lodz
= Æthelred | Aethelred
= Björk | Bjork
= São Paulo | Sao Paulo
= Müller | Mueller
= Müller | Muller
= Gödel | Goedel
= Straße | strasse
= Strasse | STRASSE
= Ørsted | Orsted
= Đà Nẵng | Da Nang
= Þórr | Thorr
= İstanbul | Istanbul
= naïve | naive
= café | CAFÉ
= cafe\u0301 | café
= Tōkyō | Tokyo
= Ｐａｒｉｓ | Paris
= Paris | ＰＡＲＩＳ
= ﬁnance | finance
= Ångström | Angstrom
= Dvořák | Dvorak
= Nguyễn | Nguyen
= Œuvre | oeuvre
= Αθήνα | ΑΘΗΝΑ
= Αθήνα | Αθηνα
= Москва | москва
= Королёв | Королев
= L’Oréal | L'Oreal
= Zürich | zurich
! Zürich | Züge
! Łódź | Lublin
! São Paulo | São Tomé
""",
}


def cases() -> list[tuple[str, str, str, bool]]:
    found = []
    for question, lines in KINDS.items():
        for line in lines.strip().splitlines():
            gold, answer = line[2:].split(" | ")
            found.append((question, gold, answer, line[0] == "="))
    return found


@pytest.mark.parametrize(("question", "gold", "answer", "right"), cases())
def test_right_or_wrong(question: str, gold: str, answer: str, right: bool):
    assert matches(question, gold, answer) == right


def test_there_are_thirty_pairs_of_each_kind():
    assert min(len(lines.strip().splitlines()) for lines in KINDS.values()) >= 30
