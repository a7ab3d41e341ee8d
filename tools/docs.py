"""Build the docs site into _docs, with Quarto where it is on PATH and with smalldocs otherwise, and check every link in it.

    python tools/docs.py            build and check
    python tools/docs.py --serve    build, check and look at it"""
import os, posixpath, re, shutil, sys, tempfile, time
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import yaml
from fastcore.nbio import mk_cell, read_nb, write_nb
from fastcore.script import call_parse
from nbdev.config import get_config, nbpath2html
from nbdev.quarto import refresh_quarto_yml
from nbdev.quarto_render import render_quarto
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parent.parent
FIRST = ['index.ipynb', 'getting_started.ipynb', 'architecture.ipynb']
ROOMS = {'course': 'Lessons', 'course/mac': 'MAC: plain and convolutional', 'course/mba': 'MBA: losses, optimisers, architectures', 'course/tp1': 'TP1: CIFAR-10 and transfer',
         'course/pcs': 'PCS: exercises', 'datasets': 'Data sets', 'data': 'Data', 'models': 'Models', 'training': 'Training', 'insight': 'Insight',
         'report': 'Report', 'cli': 'Command line'}
PAGES, IMAGES = {'.ipynb', '.qmd', '.md'}, {'.png', '.jpg', '.jpeg', '.svg', '.gif', '.webp'}
BADGE = 'https://colab.research.google.com/assets/colab-badge.svg'


def pages(nbs):
    "The pages under `nbs` in the order of their file names, as paths relative to it"
    found = (o.relative_to(nbs) for o in nbs.rglob('*') if o.suffix in PAGES)
    return sorted(o for o in found if not any(p.startswith(('.', '_')) for p in o.parts))


def sidebar(nbs):
    "The sidebar's contents: the first pages, the rooms in the order of `ROOMS`, then folders that it does not name"
    found = [o.as_posix() for o in pages(Path(nbs))]
    top = [o for o in found if '/' not in o and o not in FIRST]
    def folder(page): return next((f for f in sorted(ROOMS, reverse=True) if page.startswith(f'{f}/')), page.split('/')[0])
    inside = [o for o in found if '/' in o]
    folders = [*ROOMS, *sorted({*map(folder, inside)} - {*ROOMS})]
    sections = {ROOMS.get(f, f.replace('_', ' ').capitalize()): [o for o in inside if folder(o) == f] for f in folders}
    sections['Core and commands'] = top
    return [o for o in FIRST if o in found] + [dict(section=k, contents=v) for k,v in sections.items() if v]


def is_lesson(page):
    "Is `page` one that a student opens in Colab?"
    return page.suffix == '.ipynb' and (page.parts[0] == 'course' or page.name == 'getting_started.ipynb')


def colab_url(cfg, page):
    "Where Colab opens the notebook `page`"
    return f'https://colab.research.google.com/github/{cfg.user}/{cfg.repo}/blob/{cfg.branch}/{cfg.nbs_path.name}/{page.as_posix()}'


def add_badge(nb, url):
    "Put a Colab badge under the title of `nb`"
    at = next((i+1 for i,o in enumerate(nb.cells) if o.cell_type == 'raw'), 0)
    nb.cells.insert(at, mk_cell(f'[![Open in Colab]({BADGE})]({url})', 'markdown'))


def plain_name(page):
    "The path of `page` without its number, the name under which Quarto writes it"
    return nbpath2html(page).with_suffix(page.suffix)


def plain_links(nb):
    "Let links to numbered notebooks in `nb` name the pages without their number"
    fix = partial(re.sub, r'(\]\((?!\w+:)[^)\s]*?)([^)\s/]+\.ipynb)', lambda m: m[1] + plain_name(Path(m[2])).name)
    for o in nb.cells:
        if o.cell_type == 'markdown': o.source = fix(o.source)


def drop_library_warnings(nb):
    "Take out what libraries warned of while nbdev ran the imports of `nb`"
    def keep(o): return not (o.get('name') == 'stderr' and 'site-packages' in o.text)
    for o in nb.cells:
        if o.cell_type == 'code': o.outputs = [out for out in o.outputs if keep(out)]


def stage_page(src, page, dest, cfg, rename):
    "Copy `page` from `src` into the project `dest`, with its badge; returns where it lies"
    to = dest/(plain_name(page) if rename else page)
    to.parent.mkdir(parents=True, exist_ok=True)
    if page.suffix != '.ipynb': return shutil.copy2(src/page, to)
    nb = read_nb(src/page)
    drop_library_warnings(nb)
    if is_lesson(page): add_badge(nb, colab_url(cfg, page))
    if rename: plain_links(nb)
    write_nb(nb, to)


def plain_sidebar(contents):
    "`contents` of a sidebar with the numbers taken off the names of its pages"
    if isinstance(contents, str): return plain_name(Path(contents)).as_posix()
    return [dict(o, contents=plain_sidebar(o['contents'])) if isinstance(o, dict) else plain_sidebar(o) for o in contents]


def stage(cache, dest, cfg, rename):
    "Lay out in `dest` the project that the renderer reads: processed pages, pictures, styles, and the sidebar in `_quarto.yml`"
    for o in pages(cache): stage_page(cache, o, dest, cfg, rename)
    for o in cache.rglob('*'):
        rel = o.relative_to(cache)
        if o.suffix in IMAGES|{'.css'} and rel.parts[0] != cfg.doc_path.name:
            (dest/rel).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(o, dest/rel)
    shutil.copy2(cfg.nbs_path/'nbdev.yml', dest)
    site = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
    contents = sidebar(cfg.nbs_path)
    site['website']['sidebar']['contents'] = plain_sidebar(contents) if rename else contents
    (dest/'_quarto.yml').write_text(yaml.safe_dump(site, sort_keys=False), encoding='utf-8')


def render_smalldocs(project):
    "Render `project` with smalldocs; what smalldocs cannot do is printed"
    try: from smalldocs.site import build
    except ImportError: sys.exit('docs need Quarto (https://quarto.org) on PATH, or Python 3.11 and: pip install -e ".[dev]"')
    for o in build(project, quiet=True).warnings:
        if not re.search('commonmark|format-links|output-file|html.grid', o): print('smalldocs:', o)


def build(cfg, n_workers, force):
    "Build the site from the notebooks into `_docs`"
    refresh_quarto_yml()
    with_quarto = shutil.which('quarto') is not None
    cache = proc_nbs(n_workers=n_workers, force=force)
    with tempfile.TemporaryDirectory(prefix='docs-') as tmp:
        project, site = Path(tmp), Path(tmp)/cfg.doc_path.name
        stage(cache, project, cfg, rename=not with_quarto)
        if with_quarto: render_quarto(project, site, n_workers=n_workers)
        else: render_smalldocs(project)
        shutil.rmtree(cfg.doc_path, ignore_errors=True)
        shutil.move(site, cfg.doc_path)
    (cfg.doc_path/'.nojekyll').touch()
    localise(cfg.doc_path, cfg.doc_url)
    return 'Quarto' if with_quarto else 'smalldocs'


class Page(HTMLParser):
    "The links and the anchors of one HTML page"
    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], {'', 'top'}
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {v for k in ('id', 'name') if (v := attrs.get(k))}
        self.links += [v for k in ('href', 'src') if (v := attrs.get(k))]


def nearest_anchor(fragment, anchors):
    "The anchor for `fragment`, or for the class of the method that it names; None where neither is shown"
    return next((o for o in (fragment, fragment.partition('.')[0]) if o in anchors), None)


def localise(docs, url):
    """Make the links that nbdev writes to the published site relative, so that any copy of the site leads to itself

    nbdev links every name in backticks, private functions and methods too, which have no entry: those lose their link."""
    find = re.compile(rf'<a\b([^>]*?)href="{re.escape(url.rstrip("/"))}(?:/|(?=[#"]))([^"#]*)#?([^"]*)"([^>]*)>(.*?)</a>', re.S)
    anchors = {o.relative_to(docs).as_posix(): Page(o).anchors for o in docs.rglob('*.html')}
    for o in docs.rglob('*.html'):
        up = '../' * (len(o.relative_to(docs).parts) - 1)
        def fix(m):
            before, path, fragment, after, text = m.groups()
            to = nearest_anchor(fragment, anchors.get(path, {fragment}))
            return text if to is None else f'<a{before}href="{up}{path or "./"}{"#" if to else ""}{to}"{after}>{text}</a>'
        o.write_text(find.sub(fix, o.read_text(encoding='utf-8')), encoding='utf-8')


def broken_link(link, page, read, own):
    "Why the internal `link` on `page` leads nowhere; None if it leads somewhere, or out of the site"
    for prefix,folder in own.items():
        if link.startswith(prefix) and not (folder/unquote(urlsplit(link[len(prefix):]).path)).exists(): return 'no such file in the repository'
    u = urlsplit(link)
    if u.scheme or u.netloc: return None
    path = unquote(u.path)
    to = Path(posixpath.normpath(page.parent/path)) if path else page
    if to.is_dir(): to = to/'index.html'
    if not to.exists(): return 'no such page'
    if u.fragment and to.suffix == '.html' and unquote(u.fragment) not in read[to].anchors: return 'no such anchor'


def broken_links(docs, own=None):
    "One line for each internal link and anchor of the site in `docs` that leads nowhere; `own` maps addresses of ours to folders here"
    docs = Path(docs).resolve()
    read = {o: Page(o) for o in sorted(docs.rglob('*.html')) if 'site_libs' not in o.relative_to(docs).parts}
    found = {(o.relative_to(docs).as_posix(), link, why) for o,p in read.items() for link in p.links if (why := broken_link(link, o, read, own or {}))}
    return [f'{page}: {link} ({why})' for page,link,why in sorted(found)]


def serve_site(docs, port):
    "Serve the site until Ctrl-C"
    with ThreadingHTTPServer(('127.0.0.1', port), partial(SimpleHTTPRequestHandler, directory=str(docs))) as server:
        print(f'http://127.0.0.1:{server.server_port}/ (Ctrl-C stops)')
        try: server.serve_forever()
        except KeyboardInterrupt: print()


@call_parse
def main(
    check:bool=False, # Only check the links of the site that is there
    serve:bool=False, # Then serve the site on this machine
    port:int=8000, # Port for serving; 0 takes a free one
    n_workers:int=2, # Notebooks processed at a time
    force:bool=False, # Process every notebook again, changed or not
):
    "Build the docs site into _docs and check its links; exits with 1 and a list if any is broken"
    os.chdir(ROOT)
    cfg, start = get_config(), time.time()
    renderer = None if check else build(cfg, n_workers, force)
    if renderer: print(f'{len(list(cfg.doc_path.rglob("*.html")))} pages built with {renderer} in {time.time()-start:.0f} s')
    own = {f'{cfg.git_url}/blob/{cfg.branch}/': ROOT, colab_url(cfg, Path()).rstrip('.'): cfg.nbs_path}
    broken = broken_links(cfg.doc_path, own)
    print(*broken, f'{len(broken)} broken links', sep='\n')
    if serve: serve_site(cfg.doc_path, port)
    sys.exit(bool(broken))
