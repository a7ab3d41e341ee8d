"What is wrong with a built site: links that lead nowhere, pictures without a text, Markdown that shows"
import posixpath, re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

VOID = {'img', 'br', 'hr', 'input', 'meta', 'link', 'col', 'source', 'wbr', 'area', 'base', 'embed', 'track', 'path', 'use', 'rect',
        'circle'}
QUIET = {'script', 'style', 'svg', 'math'} # text in these is not prose
CODE = {'code', 'pre', 'textarea'}
RAW = {
    'a link': re.compile(r'\]\([^)\s]*\)'),
    'code': re.compile(r'`[^`\n]+`'),
    'bold': re.compile(r'\*\*\w[^*\n]*\*\*'),
    'a power': re.compile(r'\w\^[−\-+\w{(]'),
    'an attribute': re.compile(r'\{[.#][\w-]+[^}]*\}'),
    'a bar': re.compile(r'^\s*\||\|\s*$'),
    'a div': re.compile(r'^:::')}
RAW_OUTPUT = {'a link to a notebook': re.compile(r'\]\([^)\s]*\.ipynb[^)]*\)')}
LEFT_OVER = {
    'an address in memory': re.compile(r'\bat 0x[0-9a-f]{6,}|\b0x[0-9a-f]{9,}'),
    'a partial': re.compile(r'functools\.partial\(<'),
    'a module of the build': re.compile(r'__main__\.(?!py\b)[A-Za-z]')}


class Page(HTMLParser):
    "Links, anchors, pictures and visible text of an HTML page"
    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.no_alt, self.prose, self.code = [], {'', 'top'}, [], [], []
        self.stack = []
        self.feed(path.read_text(encoding='utf-8'))

    def inside(self, tags, cls=''): return any(t in tags or (cls and cls in c) for t,c in self.stack)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {v for k in ('id', 'name') if (v := attrs.get(k))}
        self.links += [v for k in ('href', 'src') if (v := attrs.get(k))]
        if tag == 'img' and not attrs.get('alt') and self.inside({'main'}): self.no_alt.append((attrs.get('src') or '')[:60])
        if tag not in VOID: self.stack.append((tag, (attrs.get('class') or '').split()))

    def handle_endtag(self, tag):
        while self.stack and any(t == tag for t,_ in self.stack) and self.stack.pop()[0] != tag: pass

    def handle_data(self, data):
        if not self.inside({'main'}) or self.inside(QUIET, 'math'): return
        (self.code if self.inside(CODE) else self.prose).append(data)


def raw_markdown(page):
    "Kind and text of each piece of Markdown that a reader of `page` sees as it was written"
    lines = [line for o in page.prose for line in o.split('\n') if line.strip()]
    found = [(kind, m[0]) for o in lines for kind,find in {**RAW, **LEFT_OVER}.items() if (m := find.search(o))]
    return found + [(kind, m[0]) for o in page.code for kind,find in {**RAW_OUTPUT, **LEFT_OVER}.items() if (m := find.search(o))]


def broken_link(link, page, read, own):
    "Why the internal `link` on `page` leads nowhere; None if it leads somewhere, or out of the site"
    for prefix,folder in own.items():
        if not link.startswith(prefix): continue
        if not (folder/unquote(urlsplit(link[len(prefix):]).path)).exists(): return 'no such file in the repository'
    u = urlsplit(link)
    if u.scheme or u.netloc: return None
    path = unquote(u.path)
    to = Path(posixpath.normpath(page.parent/path)) if path else page
    if to.is_dir(): to = to/'index.html'
    if not to.exists(): return 'no such page'
    if u.fragment and to.suffix == '.html' and unquote(u.fragment) not in read[to].anchors: return 'no such anchor'


def read_site(docs):
    "The pages of the site in `docs`"
    return {o: Page(o) for o in sorted(docs.rglob('*.html')) if 'site_libs' not in o.relative_to(docs).parts}


def broken_links(docs, own=None, read=None):
    "One line for each internal link and anchor of the site in `docs` that leads nowhere; `own` maps addresses of ours to folders here"
    docs = Path(docs).resolve()
    read = read or read_site(docs)
    found = set()
    for path,page in read.items():
        reasons = {link: broken_link(link, path, read, own or {}) for link in page.links}
        found |= {(path.relative_to(docs).as_posix(), link, why) for link,why in reasons.items() if why}
    return [f'{page}: {link} ({why})' for page,link,why in sorted(found)]


def faults(docs, own=None):
    "One line for everything that is wrong with the site in `docs`"
    docs = Path(docs).resolve()
    read = read_site(docs)
    found = broken_links(docs, own, read)
    for path,page in read.items():
        name = path.relative_to(docs).as_posix()
        found += [f'{name}: picture without an alternative text: {o}' for o in page.no_alt]
        found += [f'{name}: {kind} shows as it was written: {text}' for kind,text in raw_markdown(page)]
    return found
