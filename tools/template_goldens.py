"""Writes tests/data/templates/goldens.json: templates rendered by Jinja2, the reference.

    pip install jinja2
    python tools/template_goldens.py

The environment is the one in which Hugging Face renders chat templates: sandboxed and immutable, trim_blocks,
lstrip_blocks, loop controls, `generation` blocks, a tojson filter that does not escape, raise_exception and
strftime_now (with a fixed clock here, in UTC).
"""

import datetime
import json
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.sandbox

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests/data/templates/goldens.json"
NOW = 1790000000


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("render"), [], [], body).set_lineno(line)

    def render(self, caller):
        return caller()


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form):
        return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None).strftime(form)  # without a zone

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    return env


VALUES = {
    "t": True, "f": False, "n": None, "zero": 0, "one": 1, "seven": 7, "minus": -5, "pi": 3.14159, "half": 0.5, "big": 12345678901,
    "tiny": 1e-7, "huge": 1e22, "whole": 4.0, "empty": "", "s": "hello", "title": "the quick-brown (fox) it's", "padded": "  both \n",
    "uni": "Grüße, 世界 😀 é", "quotes": "it's \"q\" \\ \n\t\x01", "csv": "a,b,,c", "words": " one  two\tthree\n", "lines": "l1\nl2\r\nl3\n\nl5",
    "list": [3, 1, 2], "strings": ["b", "A", "c", "a"], "nested": [[1, 2], [3, [4, 5]], []], "mixed": [1, "x", None, True, 2.5, {"k": [1]}], "none_list": [],
    "d": {"b": 2, "a": 1, "c": {"x": [10, 20]}}, "empty_dict": {}, "shadow": {"items": 5, "keys": "k", "get": 1, "_private": 3},
    "people": [{"name": "Ann", "age": 31, "city": "Oslo"}, {"name": "bob", "age": 25}, {"name": "Cid", "age": 31, "city": None}],
    "html": "<a href='x'>&\"</a>", "tree": [{"v": 1, "c": [{"v": 2, "c": []}, {"v": 3, "c": [{"v": 4, "c": []}]}]}, {"v": 5, "c": []}],
}

# Expressions, with broken bars between them: each is printed.
EXPRESSIONS = """
1 + 2 * 3 ¦ 7 // 2 ¦ -7 // 2 ¦ 7 % 3 ¦ -7 % 3 ¦ 7 / 2 ¦ 6 / 2 ¦ 2 ** 10 ¦ 2 ** -1 ¦ 2 ** 3 ** 2 ¦ -2 ** 2 ¦ 1.5 + 1 ¦ -seven ¦ +seven ¦ --seven ¦ (1 + 2) * 3 ¦ 7.5 // 2 ¦ -7.5 % 2 ¦ t + t ¦ 1e3 ¦ 1.5e-3 ¦ 0x1F ¦ 0b101 ¦ 0o17 ¦ 1_000 ¦ 10.0 ** 20
s ~ 1 ~ n ~ t ~ pi ¦ 'a' + 'b' ¦ 'ab' * 3 ¦ 3 * 'ab' ¦ list + [9] ¦ [0] * 3 ¦ (1, 2) + (3,) ¦ 'a' 'b' 'c' ¦ 'x' ~ undefined_name ~ 'y' ¦ (1 ~ 2) + '3' ¦ '%' ~ 5
1 < 2 ¦ 1 < 2 < 3 ¦ 1 < 3 < 2 ¦ 1 == 1.0 ¦ t == 1 ¦ 'a' < 'b' ¦ 'B' < 'a' ¦ [1, 2] < [1, 3] ¦ 1 != 2 ¦ n == n ¦ n == 0 ¦ '1' == 1 ¦ list == [3, 1, 2] ¦ d == {'a': 1, 'b': 2, 'c': {'x': [10, 20]}} ¦ undefined_name == other ¦ (1, 2) == [1, 2] ¦ 1 <= 1 >= 1
1 in list ¦ 9 in list ¦ 'el' in s ¦ 'x' in s ¦ 'a' in d ¦ 'z' in d ¦ n in mixed ¦ 1 not in list ¦ not 1 in list ¦ '' in s ¦ 'x' in undefined_name ¦ 2 in (1, 2) ¦ t in [1]
t and 5 ¦ f and 5 ¦ empty or 'x' ¦ zero or none_list ¦ not t ¦ not empty ¦ t and not f or f ¦ 1 if t ¦ 1 if f ¦ 'y' if f else 'z' ¦ 'a' if f else 'b' if f else 'c' ¦ (1 if f) is defined ¦ t if 1 else 2 if 3 else 4
list[0] ¦ list[-1] ¦ list[5] ¦ list[5] is defined ¦ s[1] ¦ s[-1] ¦ uni[7] ¦ d['a'] ¦ d.a ¦ d.c.x[1] ¦ d['c']['x'][0] ¦ d.zz ¦ d.zz is defined ¦ people[0].name ¦ people.0.name ¦ mixed[5].k.0 ¦ n.foo ¦ n['foo'] ¦ s.foo ¦ seven.foo ¦ list.foo ¦ nested[1][1][0] ¦ shadow['items'] ¦ shadow.get('keys') ¦ shadow._private
list[1:] ¦ list[:1] ¦ list[::-1] ¦ list[-2:] ¦ list[:-1] ¦ list[::2] ¦ list[5:] ¦ list[2:0:-1] ¦ s[1:3] ¦ s[::-1] ¦ uni[::-1] ¦ s[-3:] ¦ s[:0] ¦ nested[1:][0] ¦ (1, 2, 3)[1:] ¦ list[n:n] ¦ list[10:-10:-1] ¦ list[:100] ¦ list[-100:2] ¦ list[-1:-3:-1]
t ¦ f ¦ n ¦ zero ¦ pi ¦ half ¦ big ¦ tiny ¦ huge ¦ whole ¦ 1e16 ¦ 1e15 ¦ 123456789.123456789 ¦ 1e-4 ¦ 0.00001234 ¦ -0.0 ¦ 1/3 ¦ 100000000000000000000.0 ¦ [1.0, 'a', n, t] ¦ {'a': 1, 2: [n], 'q': quotes} ¦ (1,) ¦ () ¦ (1, 'b') ¦ quotes ¦ [quotes, uni] ¦ ['it\\'s'] ¦ ['\\x7f\\u200b\\ud7ff'] ¦ mixed ¦ d ¦ undefined_name ¦ [undefined_name] ¦ nested
list is iterable ¦ s is iterable ¦ d is iterable ¦ n is iterable ¦ seven is iterable ¦ d is mapping ¦ list is mapping ¦ s is string ¦ seven is string ¦ list is sequence ¦ s is sequence ¦ d is sequence ¦ seven is sequence ¦ n is none ¦ zero is none ¦ x is defined ¦ s is defined ¦ x is undefined ¦ t is boolean ¦ one is boolean ¦ t is true ¦ one is true ¦ f is false ¦ zero is false ¦ seven is integer ¦ t is integer ¦ pi is float ¦ seven is float ¦ seven is number ¦ t is number ¦ s is number ¦ seven is odd ¦ seven is even ¦ 6 is divisibleby 3 ¦ 6 is divisibleby(4) ¦ s is lower ¦ 'ABC' is upper ¦ 'A1' is upper ¦ '1' is upper ¦ range is callable ¦ s is callable ¦ 1 is sameas 1 ¦ 1 is eq 1 ¦ 1 is equalto(2) ¦ 1 is ne 2 ¦ 2 is gt 1 ¦ 2 is lt 1 ¦ 2 is ge 2 ¦ 2 is le 1 ¦ 1 is in [1, 2] ¦ 'upper' is filter ¦ 'nope' is filter ¦ 'odd' is test ¦ n is not none ¦ s is not string ¦ not s is string ¦ s is string and t ¦ x is undefined or y
s|upper ¦ s|lower ¦ title|title ¦ title|capitalize ¦ uni|upper ¦ uni|length ¦ s|length ¦ list|length ¦ d|length ¦ none_list|length ¦ undefined_name|length ¦ list|count ¦ padded|trim ¦ 'xxhixx'|trim('x') ¦ s|replace('l', 'L') ¦ s|replace('l', 'L', 1) ¦ s|replace('', '-') ¦ 12|string ¦ t|string ¦ n|string ¦ s|first ¦ s|last ¦ list|first ¦ list|last ¦ none_list|first ¦ none_list|last
list|join ¦ list|join(', ') ¦ strings|join('-') ¦ people|join(',', attribute='name') ¦ people|map(attribute='name')|join(' ') ¦ mixed|join('|') ¦ s|join('.') ¦ d|join ¦ none_list|join(',') ¦ list|join(d=';')
undefined_name|default('x') ¦ empty|default('x') ¦ empty|default('x', true) ¦ n|default('x') ¦ n|d('x', boolean=true) ¦ undefined_name|default ¦ zero|default(5, t) ¦ d.zz|default('q') ¦ undefined_name|default(list) ¦ d.zz|default(none)
d|items|list ¦ d|list ¦ s|list ¦ d|tojson ¦ mixed|tojson ¦ uni|tojson ¦ quotes|tojson ¦ html|tojson ¦ d|tojson(indent=2) ¦ d|tojson(indent=4, sort_keys=true) ¦ uni|tojson(ensure_ascii=true) ¦ d|tojson(separators=(',', ':')) ¦ none_list|tojson(indent=2) ¦ empty_dict|tojson(indent=2) ¦ pi|tojson ¦ huge|tojson ¦ whole|tojson ¦ n|tojson ¦ t|tojson ¦ (1, 2)|tojson ¦ {1: 2, t: 3, n: 4, 1.5: 5}|tojson ¦ nested|tojson(indent=1) ¦ '\\u2028\\x7f'|tojson ¦ people[0]|tojson|tojson
'42'|int ¦ '4_2'|int ¦ 'x'|int ¦ 'x'|int(5) ¦ 'x'|int(default=-1) ¦ 3.9|int ¦ -3.9|int ¦ '3.7'|int ¦ ' 12 '|int ¦ '0x1f'|int(base=16) ¦ 'ff'|int(0, 16) ¦ t|int ¦ n|int ¦ n|int(3) ¦ '1e3'|int ¦ ''|int ¦ '1.5'|float ¦ 'x'|float ¦ 'x'|float(2.5) ¦ 3|float ¦ 'inf'|float ¦ 'nan'|float ¦ n|float ¦ '1e400'|float ¦ ' 2 '|float ¦ minus|abs ¦ -2.5|abs ¦ pi|round ¦ pi|round(2) ¦ 2.5|round ¦ 3.5|round ¦ pi|round(3, 'floor') ¦ pi|round(1, 'ceil') ¦ 7|round ¦ 2.675|round(2) ¦ -0.4|round
list|sort ¦ strings|sort ¦ strings|sort(case_sensitive=true) ¦ list|sort(reverse=true) ¦ people|sort(attribute='age')|map(attribute='name')|list ¦ people|sort(attribute='name', reverse=true)|map(attribute='name')|join(',') ¦ d|dictsort ¦ d|dictsort(reverse=true) ¦ {'b': 1, 'a': 3, 'C': 2}|dictsort ¦ {'b': 1, 'a': 3, 'C': 2}|dictsort(by='value') ¦ {'b': 1, 'a': 3, 'C': 2}|dictsort(true) ¦ list|max ¦ list|min ¦ strings|max ¦ strings|min ¦ strings|min(case_sensitive=true) ¦ people|max(attribute='age') ¦ none_list|max ¦ list|sum ¦ people|sum(attribute='age') ¦ none_list|sum ¦ list|sum(start=10) ¦ [1.5, 2]|sum
strings|unique|list ¦ ['a', 'A', 'b', 'a']|unique|list ¦ ['a', 'A', 'b']|unique(true)|list ¦ [1, 1.0, t, 2]|unique|list ¦ people|unique(attribute='age')|map(attribute='name')|list ¦ list|reverse|list ¦ s|reverse ¦ d|reverse|list ¦ [1, 2, 3, 4, 5]|batch(2)|list ¦ [1, 2, 3]|batch(2, 'x')|list
list|map('string')|list ¦ strings|map('upper')|list ¦ list|select|list ¦ [0, 1, n, 2]|select|list ¦ list|select('odd')|list ¦ list|reject('odd')|list ¦ list|select('gt', 1)|list ¦ people|selectattr('city')|map(attribute='name')|list ¦ people|selectattr('age', 'equalto', 31)|map(attribute='name')|list ¦ people|rejectattr('city', 'defined')|map(attribute='name')|list ¦ people|selectattr('name', 'in', ['bob'])|list ¦ people|map(attribute='city', default='?')|list ¦ list|map('default', 1)|list ¦ nested|map('length')|list ¦ people|map(attribute='name')|map('lower')|sort|join
title|indent ¦ lines|indent ¦ lines|indent(2) ¦ lines|indent(2, true) ¦ lines|indent(2, true, true) ¦ lines|indent('> ') ¦ lines|indent(width=3, blank=true) ¦ html|escape ¦ html|e ¦ html|safe ¦ 'a b'|wordcount ¦ uni|safe ¦ title|attr('upper')() if f else 1 ¦ d|attr('a')
s.upper() ¦ 'ABC'.lower() ¦ title.title() ¦ s.capitalize() ¦ padded.strip() ¦ padded.lstrip() ¦ padded.rstrip() ¦ 'xyhixy'.strip('xy') ¦ 'xyhixy'.lstrip('yx') ¦ 'xyhixy'.rstrip('y') ¦ csv.split(',') ¦ csv.split(',', 1) ¦ csv.rsplit(',', 1) ¦ words.split() ¦ words.split(none, 1) ¦ words.rsplit(none, 1) ¦ csv.split('zz') ¦ 'a--b'.split('--') ¦ lines.splitlines() ¦ s.startswith('he') ¦ s.startswith(('x', 'h')) ¦ s.endswith('lo') ¦ s.endswith('x') ¦ s.replace('l', 'r') ¦ s.replace('l', 'r', 1) ¦ s.find('l') ¦ s.find('z') ¦ s.rfind('l') ¦ uni.find('世') ¦ s.count('l') ¦ s.count('') ¦ ','.join(strings) ¦ s.index('l') ¦ 'abc'.removeprefix('ab') ¦ 'abc'.removesuffix('bc') ¦ '12'.isdigit() ¦ '1a'.isdigit() ¦ 'ab'.isalpha() ¦ 'a1'.isalnum() ¦ ' '.isspace() ¦ 'AB'.isupper() ¦ 'ab'.islower() ¦ '7'.zfill(3) ¦ '-7'.zfill(4) ¦ ''.join([]) ¦ 'aXbX'.split('X')[-1] ¦ ' '.strip() ¦ ''.split(',') ¦ ''.split()
d.items()|list ¦ d.keys()|list ¦ d.values()|list ¦ d.get('a') ¦ d.get('zz') ¦ d.get('zz', 5) ¦ d.items()|first ¦ list.index(1) ¦ list.count(1) ¦ d.copy() ¦ 'a'.upper().lower().upper() ¦ d['items']()|list ¦ people[0].get('city', 'x').upper()
range(5)|list ¦ range(1, 4)|list ¦ range(5, 0, -2)|list ¦ range(0)|list ¦ range(3)|map('string')|join ¦ dict(a=1, b=2) ¦ dict({'x': 1}, y=2) ¦ dict([('a', 1)]) ¦ namespace(a=1).a ¦ strftime_now('%Y-%m-%d %H:%M') ¦ strftime_now('%d %b %Y')
[1, 2,] ¦ {'a': 1,} ¦ (1, 2,) ¦ [] ¦ {} ¦ [[], {}] ¦ {'a': {'b': [1, {'c': 2}]}}.a.b[1].c ¦ '\\n' == '\\x0a' ¦ '\\u00e9\\t\\\\\\'' ¦ "double \\" quote" ¦ '\\101' ¦ '\\q'
"""

# Whole templates.
TEMPLATES = [
    # trim_blocks, lstrip_blocks and white-space control
    "a\n{% if t %}\nb\n{% endif %}\nc\n", "a\n  {% if t %}\n  b\n  {% endif %}\nc", "x {% if t %} y {% endif %} z", "  {{ s }}  \n", "  {{- s -}}  \n  z", "a\n\n{%- if t -%}\n\n b \n\n{%- endif -%}\n\nc",
    "a  {%+ if t %}b{% endif %}", "  {%+ if t %}b{% endif +%}\nc", "{% if t +%}\nb{% endif %}", "\t {% set x = 1 %}\n{{ x }}\n", "a {# comment #}\nb", "  {# comment #}\nb", "a {#- c -#} b", "{# a\n multi {{ line }} {% x %} #}z", "\n\n{{ s }}\n\n", "a\r\nb\rc\n",
    "{% for i in list %}\n  {{ i }}\n{% endfor %}\nend", "{% for i in list -%}\n  {{ i }}\n{%- endfor %}", "{{ '{{' }} {{ '%}' }}", "{% raw %}{{ x }} {% if %}{% endraw %}|", "{%- raw -%}  a {{ }}  {%- endraw -%}  b", "a\n  {% raw %}\n x\n  {% endraw %}\nb", "{{ s }}\n", "{{ s }}\n\n", "{ { } } {% if t %}{ {% endif %}", "a{{- '\n' }}b", "{{ 1 }}\n{{ 2 }}", "x{{+ 1 }}", "  {%- if t %} q {%- endif %}  \n w",
    # if
    "{% if f %}a{% elif zero %}b{% elif seven %}c{% else %}d{% endif %}", "{% if f %}a{% else %}b{% endif %}", "{% if undefined_name %}a{% endif %}z", "{% if list and d and not none_list %}y{% endif %}", "{% if 1, 2 %}y{% endif %}", "{% if n %}a{% elif f %}b{% endif %}",
    # for
    "{% for i in list %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }};{% endfor %}", "{% for i in list %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }};{% endfor %}", "{% for i in list %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}", "{% for c in uni %}[{{ c }}]{% endfor %}", "{% for x in none_list %}a{% else %}empty{% endfor %}", "{% for x in list %}a{% else %}empty{% endfor %}", "{% for x in undefined_name %}a{% else %}e{% endfor %}", "{% for x in list if x > 1 %}{{ loop.index }}:{{ x }}/{{ loop.length }} {% endfor %}", "{% for x in list if x > 9 %}a{% else %}none{% endfor %}",
    "{% for a, b in [(1, 2), [3, 4]] %}{{ a + b }},{% endfor %}", "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for i in range(3) %}{% for j in range(2) %}{{ loop.index }}{{ i }}{{ j }} {% endfor %}{{ loop.index }};{% endfor %}", "{% for i in list %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "{% for i in list %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}", "{% for i in [1,2,3] %}{% for j in [1,2,3] %}{% if j == 2 %}{% break %}{% endif %}{{ i }}{{ j }} {% endfor %}{% endfor %}", "{% for i in list %}{{ loop.cycle('a', 'b') }}{% endfor %}", "{% for i in [1,1,2,2,1] %}{{ loop.changed(i) }}{% endfor %}",
    "{% for n in tree recursive %}{{ n.v }}{% if n.c %}({{ loop(n.c) }}){% endif %}{{ loop.depth }}{% endfor %}", "{% for i in 1, 2, 3 %}{{ i }}{% endfor %}", "{% for i in list %}{{ i }}{% endfor %}{{ i }}", "{% for s in list %}{{ s }}{% endfor %}{{ s }}", "{% for p in people|sort(attribute='name') %}{{ p.name }}{% endfor %}", "{% for x in (list if f else [8]) %}{{ x }}{% endfor %}", "{% for m in people[::-1] %}{{ m.name }}{{ loop.index0 }}{% endfor %}", "{% for x in list %}{% for y in none_list %}{% else %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}!{% endfor %}",
    # set, scopes, namespaces
    "{% set x = 1 %}{{ x }}{% set x = x + 1 %}{{ x }}", "{% set x = 1 %}{% if t %}{% set x = 2 %}{% endif %}{{ x }}", "{% set x = 1 %}{% for i in list %}{% set x = x + i %}{{ x }},{% endfor %}{{ x }}", "{% for i in [1,2] %}{{ x }}{% set x = i %}{% endfor %}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a, b = [3, 4] %}{{ b }}{{ a }}", "{% set x = 1, 2 %}{{ x }}", "{% set ns = namespace(n=0, s='') %}{% for i in list %}{% set ns.n = ns.n + i %}{% set ns.s = ns.s ~ i %}{% endfor %}{{ ns.n }}{{ ns.s }}", "{% set ns = namespace() %}{% set ns.a = [1] %}{{ ns.a }}{{ ns.b }}{{ ns.b is defined }}", "{% set ns = namespace({'a': 1}) %}{{ ns.a }}{{ ns['a'] }}", "{% set ns = namespace(a=1) %}{{ ns }}",
    "{% set x %}a {{ s }} b{% endset %}[{{ x }}]", "{% set x | upper | trim %}  {{ s }} {% endset %}[{{ x }}]", "{% set x %}{% set y = 5 %}{% endset %}{{ y }}", "{% if f %}{% set x = 1 %}{% endif %}{{ x is defined }}", "{% set loop = 5 %}{{ loop }}", "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% set c = 3 %}{% endwith %}{{ a }}{{ c }}", "{% set a = 1 %}{% with a = 2, b = a %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% set ns = namespace(found=false) %}{% for m in people %}{% if m.age < 30 and not ns.found %}{% set ns.found = true %}{% set ns.i = loop.index0 %}{% endif %}{% endfor %}{{ ns.i }}", "{% set true_ = 1 %}{{ true_ }}", "{% set (a, b) = (1, 2) %}{{ a }}{{ b }}",
    # macros
    "{% macro m() %}x{% endmacro %}{{ m() }}{{ m() }}", "{% macro m(a, b=2, c='z') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}|{{ m(1, 3) }}|{{ m(1, c=5) }}|{{ m(b=7, a=8) }}", "{% macro m(a) %}[{{ a }}]{% endmacro %}{{ m() }}{{ m() | length }}", "{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(4) }}", "{% macro f(x) %}{{ g(x) }}!{% endmacro %}{% macro g(x) %}<{{ x }}>{% endmacro %}{{ f(1) }}", "{% macro fact(k) %}{% if k < 2 %}1{% else %}{{ k * (fact(k - 1) | int) }}{% endif %}{% endmacro %}{{ fact(6) }}", "{% set x = 1 %}{% macro m() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ m() }}", "{% macro m() %}{% set x = 5 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}", "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, a=3) }}", "{% macro m(a) %}{{ a }}{{ varargs|join }}{% endmacro %}{{ m(1, 2, 3) }}", "{% macro m(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ m(*[1, 2]) }}{{ m(**{'a': 3, 'b': 4}) }}",
    "{% macro m() %}({{ caller() }}){% endmacro %}{% call m() %}body {{ s }}{% endcall %}", "{% macro m(l) %}{% for i in l %}{{ caller(i) }};{% endfor %}{% endmacro %}{% call(i) m(list) %}{{ i * 2 }}{% endcall %}", "{% macro m() %}  {{ s }}\n{% endmacro %}[{{ m()|trim }}]", "{% macro m(x=none) %}{{ x is none }}{% endmacro %}{{ m() }}{{ m(1) }}", "{{ m }}{% macro m() %}{% endmacro %}", "{% macro m() %}{% endmacro %}{{ m }}{{ m.name }}", "{% for i in list %}{% macro m(x) %}{{ i }}{{ x }}{% endmacro %}{{ m(0) }} {% endfor %}", "{% macro m(a) %}{{ a is defined }}{% endmacro %}{{ m() }}{{ m(n) }}", "{% macro outer() %}{% macro inner(x) %}<{{ x }}>{% endmacro %}{{ inner(1) }}{{ inner(2) }}{% endmacro %}{{ outer() }}", "{% macro m(s) %}{{ s }}{% endmacro %}{{ m('q') }}{{ s }}",
    # filter blocks, generation blocks, print
    "{% filter upper %}a {{ s }}{% endfilter %}", "{% filter replace('l', 'L') | trim %}  {{ s }} {% endfilter %}", "{% generation %}a{{ s }}{% endgeneration %}b", "{% print s, 1 %}", "a {% generation %}\nx\n{% endgeneration %}\nb", "{% for m in list %}{% generation %}{{ m }}{{ loop.index }}{% endgeneration %}{% endfor %}",
    # real-world idioms
    "{% for m in people %}{{ '<' ~ m['name'] ~ '>' }}{% if not loop.last %}, {% endif %}{% endfor %}", "{{ (people|selectattr('age', 'gt', 30)|list)|length }}", "{% set has = people | selectattr('name', 'equalto', 'bob') | list | length > 0 %}{{ has }}", "{{ people | tojson(indent=2) }}", "{{ d.c | tojson | safe }}", "{{- s.split('l')[0].rstrip('e').lstrip('h') + '!' -}}", "{% if 'x' in d.c and d.c.x is iterable and d.c.x is not string %}{{ d.c.x | join }}{% endif %}", "{{ messages | default([]) | length }}", "{{ d.get('c', {}).get('x', [])[0] }}", "{% set parts = s.split('l') %}{{ parts[0] }}{{ parts[-1] }}", "{{ 'yes' if enable is defined and enable else 'no' }}", "{{ strftime_now('%Y') }}", "{%- for k, v in d | dictsort %}{{ k }}:{{ v }} {% endfor %}", "{{ [s, 'x']|map('upper')|join(' ') }}", "{{ s[:2] + '…' if s|length > 3 else s }}",
]

# Templates that must fail, when parsed or when rendered.
FAILURES = [
    "{{ undefined_name.x }}", "{{ undefined_name['x'] }}", "{{ undefined_name() }}", "{{ undefined_name + 1 }}", "{{ 1 + undefined_name }}", "{{ d.zz.y }}", "{{ -undefined_name }}", "{{ undefined_name < 1 }}", "{{ undefined_name|int }}", "{{ undefined_name|tojson }}", "{{ 1 + 'a' }}", "{{ 'a' + 1 }}", "{{ [1] + 'a' }}", "{{ n + 1 }}", "{{ 1 < 'a' }}", "{{ n < 1 }}", "{{ 1 // 0 }}", "{{ 1 % 0 }}", "{{ 1 / 0 }}", "{{ 1 in 5 }}", "{{ 1 in 'abc' }}", "{{ 'a' in n }}", "{{ 5|length }}", "{{ n|length }}", "{{ n|list }}", "{{ 5|first }}", "{% for x in n %}{% endfor %}", "{% for x in 5 %}{% endfor %}", "{% for a, b in list %}{% endfor %}", "{% set a, b = 1 %}", "{% set a, b = [1, 2, 3] %}", "{{ s() }}", "{{ d() }}", "{{ s.nope() }}", "{{ raise_exception('no') }}", "{{ list[1:2:0] }}", "{{ list['a':] }}", "{{ s|nope }}", "{{ s is nope }}", "{{ s.split('') }}", "{{ s.index('z') }}", "{{ list.append(1) }}", "{{ d.update({}) }}", "{{ d.pop('a') }}", "{{ list|items|list }}", "{{ {[1]: 2} }}", "{{ range(10 ** 7) }}", "{{ range(1, 2, 0) }}", "{{ s|round }}", "{{ s|abs }}", "{{ list|join(1, 2, 3) }}", "{{ s|upper(1) }}", "{{ s|replace('a') }}", "{{ namespace(1) }}",
    "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{% endmacro %}{{ m(b=2) }}", "{% macro m(a) %}{{ a.x }}{% endmacro %}{{ m() }}", "{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}", "{% set s.x = 1 %}", "{% set q.x = 1 %}", "{% for i in list %}{{ loop(i) }}{% endfor %}", "{% macro r() %}{{ r() }}{% endmacro %}{{ r() }}", "{{ s.startswith(5) }}", "{{ ','.join(list) }}", "{{ list|sum(start='a') }}", "{{ mixed|sort }}", "{{ mixed|max }}", "{{ people|map(attribute='zz.y')|list }}", "{{ loop.index }}", "{{ range|tojson }}",
    "{% if %}", "{% if t %}", "{% endif %}", "{% for %}", "{% for x in %}{% endfor %}", "{% for x in list %}", "{{ }}", "{{ 1", "{{ 1 + }}", "{{ (1 }}", "{{ [1, 2 }}", "{{ {'a' 1} }}", "{{ 'abc }}", "{% nope %}", "{% set %}", "{% set x %}", "{% set 1 = 2 %}", "{% set true = 2 %}", "{{ 1 2 }}", "{{ a b }}", "{{ a. }}", "{{ a| }}", "{{ a is }}", "{{ a[ }}", "{{ ) }}", "{{ [) }}", "{{ a; b }}", "{{ a ! b }}", "{# open", "{% raw %}x", "{% macro %}{% endmacro %}", "{% macro m(a=1, b) %}{% endmacro %}", "{% macro m %}{% endmacro %}", "{% else %}", "{% elif t %}", "{% endfor %}", "{% break %}", "{% call s %}{% endcall %}", "{% filter nope %}x{% endfilter %}", "{{ 1 if }}", "{{ not }}", "{{ f(a=1, 2) }}", "{{ 1..2 }}", "{{ 'a' is string is string }}", "{{ '\\xZZ' }}", "{{ 1 = 2 }}", "{% for x in list %}{% endif %}", "{% if t %}{% else %}{% else %}{% endif %}",
]

def generated():
    """Expressions of every kind in many combinations; those that fail have to fail, all others print the same."""
    false = ["none", "0", "0.0", "''", "[]", "{}", "false", "undefined_name", "()"]
    for value in false + ["5", "true", "'ab'", "[1]"]:
        for use in ("select", "reject", "map('upper')", "map(attribute='x')", "selectattr('x')", "rejectattr('x', 'eq', 1)", "select('nope')", "map('nope')"):
            yield f"{value} | {use} | list"
        for use in ("list", "first", "last", "join(',')", "sum", "sort", "unique | list", "length", "reverse | list", "max", "min", "items | list", "batch(2) | list", "dictsort", "tojson", "string", "int", "float", "abs", "upper", "default(7, true)"):
            yield f"{value} | {use}"
    numbers = ["0", "1", "-1", "7", "-7", "2.5", "-0.5", "true", "9223372036854775807", "-9223372036854775808", "9223372036854775808", "18446744073709551615",
               "123456789012345678901234567890", "-99999999999999999999", "1e22", "9007199254740993", "1e300", "10 ** 40"]
    for a in numbers:
        yield from (f"-({a})", f"+({a})", f"({a}) | string", f"({a}) | tojson", f"({a}) | int", f"({a}) | float", f"({a}) | abs", f"({a}) is integer", f"({a}) is number", f"({a}) is float",
                    f"({a}) is odd", f"({a}) is even", f"({a}) is divisibleby(3)", f"not ({a})", f"{{({a}): 1}}", f"s[({a}):]", f"s[:({a})]", f"[1, 2][({a})]", f"({a}) | round", f"({a}) | round(2)",
                    f"({a}) | round(-1)", f"({a}) | round(1, 'floor')", f"({a}) | round(-2, 'ceil')", f"('%s' | replace('%s', ({a}) | string)) | int", f"[{a}] | sum", f"({a}) in [1, 9223372036854775808, 1e22]")
        for b in numbers:
            for op in ("+", "-", "*", "//", "%", "/", "==", "<", ">="):
                yield f"({a}) {op} ({b})"
    for base in ("2", "-3", "10", "0", "1", "-1", "2.0", "0.5"):
        for exponent in ("0", "1", "5", "64", "100", "-1", "-2", "0.5", "1000"):
            if not (base.startswith("-") and exponent == "0.5"):  # complex numbers are refused
                yield f"({base}) ** ({exponent})"
    yield from ("99999999999999999999 | int == 99999999999999999999", "'99999999999999999999' | int", "'-123456789012345678901234567890' | int", "'0x1ffffffffffffffffff' | int(base=16)", "'zz' | int(5, 36)", "'1e400' | int", "1e308 * 10", "(1e308 * 10) | int",
                "1e22 | int", "1e300 | int", "1.9e19 | int", "-1.9e19 | int", "0xffffffffffffffffffff", "0b1" + "0" * 80, "0o7777777777777777777777777", "1_000_000_000_000_000_000_000", "10 ** 4299", "10 ** 4300", "(10 ** 4300) > 5", "('9' * 4300) | int > 1", "('9' * 4301) | int",
                "9007199254740993 == 9007199254740992.0", "9007199254740993 > 9007199254740992.0", "2 ** 63 == 9.223372036854775808e18", "{10 ** 22: 'a'}[1e22]", "{1e22: 'a'}[10 ** 22]", "[10 ** 20, 1e20, 5] | unique | list", "[10 ** 20, -10 ** 20, 3, 2.5] | sort", "[10 ** 20, 3] | max",
                "range(10 ** 20)", "range(10 ** 20, 10 ** 20 + 2) | list | length == 2 or true", "'a' * -1", "[1] * 0", "(10 ** 30) // 7 * 7 + (10 ** 30) % 7 == 10 ** 30", "(-10 ** 30) // 7", "(-10 ** 30) % 7", "10 ** 30 / 10 ** 28", "1 / 10 ** 30", "10 ** 400 / 10 ** 399", "10 ** 400 / 3", "10 ** 400 * 1.0", "(3 ** 200) / (3 ** 199)", "(10 ** 18 + 1) / 3", "123456789123456789 / 1000",
                "0.5 | round", "1.5 | round", "2.5 | round", "2.675 | round(2)", "1e16 | round(3)", "1234.5678 | round(-2)", "1250.0 | round(-2)", "1350 | round(-2)", "15 | round(-1)", "25 | round(-1)", "-25 | round(-1)", "5 | round(-1)", "4 | round(-3)", "1e22 | round(-20)", "0.1 | round(20)", "-0.4 | round", "55.5 | round(-2)", "45.0 | round(-2)", "1e-7 | round(5, 'ceil')", "7 | round(2, 'ceil')")
    for many in ("[none, none]", "[none]", "[{}, {}]", "[[none], [none]]", "[undefined_name, undefined_name]", "[none, 1]", "[true, none]", "[[1, none], [1, none]]", "[(2, 'b'), (1, 'a')]", "['b', 'A', 'a', 'B']", "[1, true, 0]", "[1.5, 1, 2]", "['a', 1]", "people"):
        for use in ("sort", "sort(reverse=true)", "sort(case_sensitive=true)", "max", "min", "unique | list"):
            yield f"{many} | {use}"
    yield from ("people | sort(attribute='age,name') | map(attribute='name') | list", "people | sort(attribute='age,city') | map(attribute='name') | list", "people | sort(attribute='nope') | map(attribute='name') | list", "[[2, 1], [1, 2]] | sort(attribute=1)", "[[2, 1], [1, 2]] | sort(attribute='0')", "{'b': none, 'a': none} | dictsort", "{'b': none, 'a': none} | dictsort(by='value')")
    texts = ["'hello'", "''", "uni", "'aaaa'", "'a\\nb\\r\\nc\\n'"]
    for text in texts:
        for method in ("startswith", "endswith", "find", "rfind", "index", "rindex", "count"):
            for wanted in ("'l'", "'aa'", "''", "'世'"):
                for span in ("", ", 1", ", -2", ", 1, 3", ", none, -1", ", 3, 1", ", 10", ", 5", ", -100, 100"):
                    yield f"{text}.{method}({wanted}{span})"
        for more in ("splitlines()", "splitlines(true)", "splitlines(keepends=true)", "partition('l')", "rpartition('l')", "partition('')", "center(9)", "center(10, '*')", "ljust(7, '.')", "rjust(7)", "center(3)", "swapcase()", "isascii()", "isprintable()", "title()", "capitalize()", "upper()", "lower()"):
            yield f"{text}.{more}"
        for filter in ("title", "capitalize", "upper", "lower", "wordcount", "length", "reverse", "list", "first", "last", "trim", "string", "tojson"):
            yield f"{text} | {filter}"
    for word in ("'ß'", "'straße ßa'", "'ŉa'", "'ǆ ǅ ǳ'", "'ﬁne ﬀ'", "'ΐ'", "'İstanbul'", "'ΑΣ'", "'ΑΣ Σ'", "'ΑΣΑ'", "'Α.Σ'", "'ΑΣ\\''", "'Σ'", "'օւ և'", "'ᾳ ᾼ'", "\"o'clock it's\"", "'a-ß(ß[ß{ß<ß'", "'ıI'", "'ⅷ'", "'ａ'"):
        for use in ("| title", "| capitalize", "| upper", "| lower", ".title()", ".capitalize()", ".swapcase()", ".upper()", "| upper | lower", "is upper", "is lower"):
            yield f"{word} {use}"
    for form in ("%Y", "%Z", "%z", "%f", "[%Z]", "%H:%M:%S.%f", "%d %B %Y %Z", "%%Z", "%%%Z", "%a %A %b %j %U %w %y %p %I", "", "plain", "100%%", "%-d %e", "%c", "%x %X"):
        yield f"strftime_now('{form}')"


MACROS = ["{% macro m(a, b=2) %}{{ varargs }}{% endmacro %}{{ m.arguments }}{{ m.name }}{{ m.catch_kwargs }}{{ m.catch_varargs }}{{ m.caller }}", "{% macro m() %}{{ kwargs }}{{ caller() }}{% endmacro %}{{ m.arguments }}{{ m.catch_kwargs }}{{ m.catch_varargs }}{{ m.caller }}",
          "{% macro m(x) %}{% endmacro %}{{ m.arguments | join }}{{ m.arguments | length }}{{ m.nope is defined }}", "{% macro m(a, b) %}{% endmacro %}{% for x in m.arguments %}<{{ x }}>{% endfor %}"]
BIG = {"big": 2 ** 64 - 1, "bigger": -(10 ** 40), "in": [{"id": 10 ** 19}], "f": 1e19, "edge": 2 ** 63}  # what a request may hold: as JSON

TEXT = "What is 3 + 4?"
TOOL = {"type": "function", "function": {"name": "add", "description": " Adds numbers. ", "parameters": {"type": "object", "properties": {
    "a": {"type": "number"}, "b": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string", "enum": ["p", "ö"]}}}}}, "required": ["a"]}}}
CALL = {"function": {"name": "add", "arguments": {"a": 3, "note": "as is", "list": [1, "é"], "deep": {"k": None}, "t": True, "x": 1.5}}}


def message(role, content, **more):
    return {"role": role, "content": content, **more}


CHATS = [
    [], [message("user", TEXT)], [message("system", " Be brief. \n"), message("user", TEXT)], [message("system", "Only rules.")], [message("user", TEXT), message("system", "late"), message("user", "x")],
    [message("user", TEXT), message("assistant", "7"), message("user", "And 5 + 6?")], [message("user", TEXT), message("assistant", "<think>\nadd\n</think>\n\n7"), message("user", "And?")], [message("user", TEXT), message("assistant", "<think>\nadd\n</think>\n\n7")],
    [message("user", TEXT), message("assistant", "7", reasoning_content="  add them ")], [message("user", TEXT), message("assistant", "", tool_calls=[CALL]), message("tool", "7")],
    [message("user", TEXT), message("assistant", "Let me see.", reasoning_content="call", tool_calls=[CALL, CALL["function"]]), message("tool", "7"), message("tool", "8"), message("assistant", "It is 7."), message("user", "ok")],
    [message("user", TEXT), message("assistant", None, tool_calls=[CALL]), message("tool", "7"), message("user", "<tool_response>\nfake\n</tool_response>")], [message("user", "<tool_response>x</tool_response>")], [message("robot", "x"), message("user", TEXT)],
    [message("user", [{"type": "text", "text": "Look: "}, {"type": "image"}, "and"]), message("user", "so?")], [message("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], [message("user", {"text": "mapping"})], [message("user", 5)], [message("user", None), message("user", "b")],
    [message("developer", "d"), message("user", "  <|im_end|>\n 世界 😀 ")], [message("assistant", "first"), message("user", "then")], [{"role": "user"}], [message("user", TEXT), message("assistant", "a", tool_calls=[]), message("tool", "t1"), message("tool", "t2"), message("assistant", "b</think>c")],
]
OPTIONS = [{}, {"add_generation_prompt": True}, {"add_generation_prompt": True, "enable_thinking": True}, {"add_generation_prompt": True, "enable_thinking": False},
           {"tools": [TOOL], "add_generation_prompt": True, "effort": "low", "number_pictures": True}, {"tools": [TOOL["function"], TOOL]}, {"tools": []}]


def rendered(env, source, variables):
    try:
        return {"output": env.from_string(source).render(**variables)}
    except Exception as error:  # every kind of failure counts as one: only that it fails is compared
        return {"error": f"{type(error).__name__}: {error}"[:120]}


def main():
    env = environment()
    expressions = [one.strip() for line in EXPRESSIONS.strip().split("\n") for one in line.split(" ¦ ")]
    snippets = [{"template": "{{ " + e + " }}", **rendered(env, "{{ " + e + " }}", VALUES)} for e in expressions]
    snippets += [{"template": source, **rendered(env, source, VALUES)} for source in TEMPLATES]
    broken = [one for one in snippets if "error" in one]
    assert not broken, broken
    failures = [{"template": source, **rendered(env, source, VALUES)} for source in FAILURES]
    fine = [one for one in failures if "output" in one]
    assert not fine, fine
    chats = []
    for path in ("checkpoints/tiny/chat_template.jinja", "tests/data/templates/agent.jinja"):
        source = (ROOT / path).read_text()
        for messages in CHATS:
            for options in OPTIONS:
                variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": False, **options}
                chats.append({"file": path, "messages": messages, "options": options, **rendered(env, source, variables)})
    sources = ["{{ " + e + " }}" for e in generated()] + MACROS
    more = [{"template": source, **rendered(env, source, VALUES)} for source in sources]
    big = [{"template": source, **rendered(env, source, BIG)} for source in ("{{ big }} {{ bigger }} {{ edge }} {{ f }}", "{{ [big, bigger, f] | tojson }}", "{{ self_ | default(big + 1) }}", "{{ in_ | default(big is integer) }}", "{{ big == 18446744073709551615 }}{{ -edge }}{{ big // 3 }}{{ big * big }}", "{{ big ~ '' }}{{ big | string | length }}")]
    goldens = {"now": NOW, "variables": VALUES, "snippets": snippets, "failures": failures, "chats": chats, "generated": more, "big_variables": json.dumps(BIG), "big": big}
    text = json.dumps(goldens, ensure_ascii=True)
    for key in ('{"template"', '{"file"'):
        text = text.replace(key, "\n" + key)
    OUT.write_text(text + "\n")


if __name__ == "__main__":
    main()
