"""The functions and classes of the package as the docs site shows them: entries, links to them, and an index

Everything is read from the sources, and nothing is run: so a type is shown as it is written, and a default too."""
import ast, html, io, re, textwrap, tokenize
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fastcore.nbio import read_nb
from nbdev.config import nbpath2html
from nbdev.doclinks import patch_name

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Parameter:
    "A parameter, or a field of a dataclass"
    name: str
    type: str
    default: str
    meaning: str

    @property
    def required(self): return not self.default and not self.name.startswith('*')


@dataclass
class Symbol:
    "A public function or class, with the page that shows it"
    name: str
    page: Path # of the notebook, relative to the notebooks' folder
    module: str
    file: str # relative to the repository
    node: ast.AST = field(repr=False)
    comments: dict = field(repr=False) # Line to comment
    others: dict = field(repr=False, default_factory=dict) # Name to the symbols of the package, for delegated parameters

    @property
    def anchor(self): return self.name.lower()
    @property
    def html(self): return nbpath2html(self.page).with_suffix('.html').as_posix()
    @property
    def href(self): return f'{self.html}#{self.anchor}'
    @property
    def doc(self): return ast.get_docstring(self.node) or ''
    @property
    def summary(self): return self.doc.split('\n')[0].replace('`', '')
    @property
    def is_class(self): return isinstance(self.node, ast.ClassDef)

    @cached_property
    def function(self):
        "The function whose parameters are shown: for a class its `__init__`, where it has one of its own"
        if not self.is_class: return self.node
        return next((o for o in self.node.body if isinstance(o, ast.FunctionDef) and o.name == '__init__'), None)

    @cached_property
    def parameters(self):
        if self.function is not None: return self.delegated(function_parameters(self.function, self.comments))
        if self.is_class and any('dataclass' in ast.unparse(o) for o in self.node.decorator_list): return fields(self.node, self.comments)
        return []

    def delegated(self, own):
        "`own` with the keyword arguments of the function that a decorator `@delegates(f, but=[…])` names in place of `**kwargs`"
        call = next((o for o in self.node.decorator_list if isinstance(o, ast.Call) and ast.unparse(o.func) == 'delegates'), None)
        to = call and self.others.get(ast.unparse(call.args[0]))
        if not to: return own
        but = next((ast.literal_eval(o.value) for o in call.keywords if o.arg == 'but'), [])
        left_out = {*but, *(o.name for o in own)} - {'**kwargs'}
        passed_on = [o for o in to.parameters if (o.default or o.name[:2] == '**') and o.name not in left_out]
        return [o for o in own if o.name[:2] != '**'] + passed_on

    @cached_property
    def returns(self):
        "Type and meaning of what a function returns"
        if self.is_class: return '', ''
        kind = ast.unparse(self.node.returns).strip("'") if self.node.returns else ''
        last = max([o.end_lineno for o in ast.walk(self.node.args) if hasattr(o, 'end_lineno')], default=self.node.lineno)
        used = {o.lineno for o in ast.walk(self.node.args) if isinstance(o, ast.arg)}
        lines = range(last, self.node.body[0].lineno + (self.node.body[0].lineno == self.node.lineno))
        return kind, next((self.comments[i] for i in lines if i in self.comments and i not in used), '')


def type_of(default):
    "The type that the default in `default` has, where it is written out"
    if isinstance(default, ast.Constant) and default.value is not None: return type(default.value).__name__
    return {ast.Tuple: 'tuple', ast.List: 'list', ast.Dict: 'dict'}.get(type(default), '')


def meaning(line, comments, lines):
    "The comment on `line`, or those on the lines right before it that belong to no other parameter"
    if line in comments: return comments[line]
    found = []
    while (line := line - 1) in comments and line not in lines: found.insert(0, comments[line])
    return ' '.join(found)


def described(arg, default, comments, lines, stars=''):
    "A parameter of the source"
    kind = ast.unparse(arg.annotation).strip("'") if arg.annotation else type_of(default)
    shown = '' if default is None else ast.unparse(default)
    last_on_line = lines.get(arg.lineno) == arg.arg
    return Parameter(stars + arg.arg, kind, shown, meaning(arg.lineno, comments, lines) if last_on_line else '')


def function_parameters(node, comments):
    "The parameters of a function; `self` is left out"
    a = node.args
    plain = [*a.posonlyargs, *a.args]
    lines = {o.lineno: o.arg for o in [*plain, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg])]}
    defaults = [None]*(len(plain) - len(a.defaults)) + a.defaults
    found = [described(o, d, comments, lines) for o,d in zip(plain, defaults)]
    if a.vararg: found.append(described(a.vararg, None, comments, lines, '*'))
    elif a.kwonlyargs: found.append(Parameter('*', '', '', ''))
    found += [described(o, d, comments, lines) for o,d in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg: found.append(described(a.kwarg, None, comments, lines, '**'))
    return [o for o in found if o.name != 'self']


def fields(node, comments):
    "The fields of a dataclass"
    found = [o for o in node.body if isinstance(o, ast.AnnAssign) and isinstance(o.target, ast.Name)]
    lines = {o.lineno: o.target.id for o in found}
    def default(o): return ast.unparse(o.value) if o.value else ''
    return [Parameter(o.target.id, ast.unparse(o.annotation), default(o), meaning(o.lineno, comments, lines)) for o in found]


def comments_of(source):
    "Line number to comment"
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {o.start[0]: o.string.lstrip('# ').strip() for o in tokens if o.type == tokenize.COMMENT}


def module_of(path):
    "The module that the notebook at `path` exports to, or None"
    code = '\n'.join(o.source for o in read_nb(path).cells if o.cell_type == 'code')
    found = re.search(r'^\s*#\|\s*default_exp\s+(\S+)', code, re.M)
    return found and found[1]


def symbols(root, nbs, lib):
    "The public functions and classes of each notebook, in the order in which they are defined"
    found = []
    for path in sorted(o for o in nbs.rglob('*.ipynb') if not any(p[0] in '._' for p in o.relative_to(nbs).parts)):
        if not (module := module_of(path)): continue
        file = lib/f'{module.replace(".", "/")}.py'
        source = file.read_text(encoding='utf-8')
        comments = comments_of(source)
        for node in ast.parse(source).body:
            if not isinstance(node, DEFINITIONS) or node.name.startswith('_'): continue
            names = patch_name(node) if not isinstance(node, ast.ClassDef) else node.name
            for name in [names] if isinstance(names, str) else names:
                found.append(Symbol(name, path.relative_to(nbs), module, file.relative_to(root).as_posix(), node, comments))
    others = {o.name: o for o in found}
    for o in found: o.others = others
    return found


def as_code(text):
    "`text` as inline code in Markdown, with nothing in it that Markdown or a table could take for its own, and nothing that gets a link"
    return f'<code>{re.sub("[^A-Za-z0-9 ]", lambda m: f"&#{ord(m[0])};", text)}</code>' if text else ''


def in_cell(text):
    "Prose for a cell of a Markdown table"
    parts = re.split(r'(`[^`]+`|\$[^$]+\$)', ' '.join(text.split()))
    def plain(o): return re.sub(r'([*_|<>\[\]^~])', lambda m: f'&#{ord(m[0])};', o)
    return ''.join(as_code(o[1:-1]) if o[:1] == '`' else (o if o[:1] == '$' else plain(o)) for o in parts)


def signature(symbol, width=72):
    "Name and parameter names, wrapped"
    names = [o.name if o.required or o.name[0] == '*' else f'{o.name}=…' for o in symbol.parameters]
    start = f'{symbol.name}('
    line = start + ', '.join(names) + ')'
    if len(line) <= width: return line
    filled = textwrap.wrap(', '.join(names), width - 4, break_long_words=False, break_on_hyphens=False)
    return start + '\n    ' + '\n    '.join(filled) + ')'


def table(symbol):
    "The parameters as a Markdown table, and what is returned"
    shown = [o for o in symbol.parameters if o.name != '*']
    kind, what = symbol.returns
    columns = [('Parameter', 'name'), ('Type', 'type'), ('Default', 'default'), ('Meaning', 'meaning')]
    returned = dict(type=kind, meaning=what)
    used = [c for c in columns if c[1] == 'name' or any(getattr(o, c[1]) for o in shown) or returned.get(c[1])]
    if not shown and not (kind or what): return ''
    def cell(o, column): return in_cell(o.meaning) if column == 'meaning' else as_code(getattr(o, column))
    rows = [[cell(o, c) for _,c in used] for o in shown]
    last = dict(name='*returns*', type=as_code(kind), meaning=in_cell(what))
    if kind or what: rows.append([last.get(c, '') for _,c in used])
    width = dict(name=20, type=16, default=14, meaning=60)
    head = [' | '.join(t for t,_ in used), ' | '.join('-'*width[c] for _,c in used)]
    return '\n'.join(['::: {.parameters}', ''] + [f'| {o} |' for o in [*head, *map(' | '.join, rows)]] + ['', ':::'])


def entry(symbol, source_url):
    "A function or class in Markdown: where it lies, how it is called, what it does, its parameters"
    source = f'[source]({source_url}/{symbol.file}#L{symbol.node.lineno}){{.source}}'
    bases = [ast.unparse(o) for o in symbol.node.bases] if symbol.is_class else []
    kind = f'Bases: {", ".join(map(as_code, bases))}' if bases else ''
    code = f'```python\n{"class " if symbol.is_class else ""}{signature(symbol)}\n```'
    parts = [f'### {symbol.name} {{#{symbol.anchor} .entry}}', source, code, symbol.doc, kind, table(symbol)]
    return '\n\n'.join(filter(None, parts))


# Names of ours that mean something else in prose: a header of HTTP, a function of PyTorch
NOT_LINKED = {'Range', 'affine_grid'}


class Links:
    "Links from a name in backticks to its entry, for names that the package exports"
    def __init__(self, found, order=None):
        self.found = {}
        for o in sorted(found, key=order or (lambda o: 0)): self.found.setdefault(o.name, []).append(o)

    def symbol(self, name, page):
        "The one that `name` means on `page`: its own, one of its room, or the one on the lowest floor"
        some = [] if name in NOT_LINKED else self.found.get(name, [])
        own = [o for o in some if o.page == page] or [o for o in some if o.page.parent == page.parent]
        if name.islower() and '_' not in name: own = some = [o for o in own if o.page == page] # a plain word
        return next(iter(own or some), None)

    def url(self, name, page):
        "Where the code `name` on `page` leads, or None"
        at = self.symbol(name, page)
        if at: return f'{up_to(page)}{at.page.as_posix()}#{at.anchor}' if at.page != page else f'#{at.anchor}'

    def link(self, text, page):
        "`text` with links on the names in backticks; code blocks, links, and code marked with `{.no-link}` stay as they are"
        spans = re.compile(r'(?P<fence>^(?P<ticks>```+|~~~+).*?^(?P=ticks)[ \t]*$)|(?P<long>``+(?!`).*?``+)'
                           r'|(?P<link>!?\[(?:[^\[\]`]|`[^`]*`|\[[^\]]*\])*\]\([^)]*\)(?:\{[^}]*\})?)'
                           r'|(?P<code>(?<!`)`(?P<name>[^`\s]+?)(?P<call>\(\))?`(?!`)(?P<no>\{\.no-link\})?)', re.S | re.M)
        def fix(m):
            if not m['code']: return m[0]
            url = None if m['no'] else self.url(m['name'], page)
            code = f'`{m["name"]}{m["call"] or ""}`'
            return f'[{code}]({url})' if url else code
        return spans.sub(fix, text)


def up_to(page): return '../' * (len(page.parts) - 1)


def index_page(found):
    "All functions and classes from A to Z, as a page in Markdown"
    letters = {}
    for o in sorted(found, key=lambda o: (o.name.lower(), o.module)): letters.setdefault(o.name[0].upper(), []).append(o)
    bar = ' '.join(f'[{o}](#letter-{o.lower()})' for o in letters)
    about = f'{len(found)} functions and classes, each with its page'
    head = f'---\ntitle: "All functions, A to Z"\ndescription: "{about}"\ntoc: false\nsearch: false\n---\n\n{bar}\n'
    def row(o): return f'| [{as_code(o.name)}]({o.page.as_posix()}#{o.anchor}) | {as_code(o.module)} | {in_cell(o.summary)} |'
    def part(letter, some):
        head = ['| name | module | what it does |', f'| {"-"*24} | {"-"*20} | {"-"*56} |']
        rows = ['::: {.functions}', '', *head, *map(row, some), '', ':::']
        return f'## {letter} {{#letter-{letter.lower()}}}\n\n' + '\n'.join(rows)
    return '\n\n'.join([head, *(part(*o) for o in letters.items())]) + '\n'
