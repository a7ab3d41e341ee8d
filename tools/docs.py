"""Build the docs site into _docs, with Quarto where it is on PATH and with smalldocs otherwise, and check it

    python tools/docs.py            build and check
    python tools/docs.py --serve    build, check and look at it"""
import os, re, shutil, sys, tempfile, time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fastcore.nbio import nb_frontmatter, read_nb
from fastcore.script import call_parse
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.quarto_render import render_quarto
from nbdev.serve import proc_nbs

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT/'tools'), str(ROOT)]
from dlcourse.house import FLOORS, floor_of
from docs_check import Page, faults
from docs_entries import Links, symbols
from docs_search import add_search
from docs_stage import colab_url, pages, stage


def render_smalldocs(project):
    "Render `project` with smalldocs; what smalldocs cannot do is printed"
    try: from smalldocs.site import build
    except ImportError: sys.exit('docs need Quarto (https://quarto.org) on PATH, or Python 3.11 and: pip install -e ".[dev]"')
    for o in build(project, quiet=True).warnings:
        if not re.search('commonmark|format-links|output-file|html.grid', o): print('smalldocs:', o)


def titles_of(nbs):
    "Title of each notebook by its path"
    return {o.as_posix(): nb_frontmatter(read_nb(nbs/o)).get('title', o.stem) for o in pages(nbs) if o.suffix == '.ipynb'}


def room_floor(symbol):
    "Number of the floor on which `symbol` lies"
    return floor_of(symbol.module.split('.')[0])


def shown(found, cache):
    "Those of `found` for which nbdev has put an entry on their page"
    cells = {}
    for o in pages(cache):
        if o.suffix != '.ipynb': continue
        source = '\n'.join(c.source for c in read_nb(cache/o).cells)
        cells[o] = set(re.findall(r'^show_doc\(([\w.]+)\)', source, re.M))
    return [o for o in found if o.name in cells.get(o.page, ())]


def build(cfg, n_workers, force):
    "Build the site from the notebooks into `_docs`"
    refresh_quarto_yml()
    with_quarto = shutil.which('quarto') is not None
    cache = proc_nbs(n_workers=n_workers, force=force)
    found = shown(symbols(ROOT, cfg.nbs_path, cfg.lib_path), cache)
    with tempfile.TemporaryDirectory(prefix='docs-') as tmp:
        project, site = Path(tmp), Path(tmp)/cfg.doc_path.name
        stage(cache, project, cfg, not with_quarto, ROOT, found, Links(found, room_floor))
        if with_quarto: render_quarto(project, site, n_workers=n_workers)
        else: render_smalldocs(project)
        shutil.rmtree(cfg.doc_path, ignore_errors=True)
        shutil.move(site, cfg.doc_path)
    (cfg.doc_path/'.nojekyll').touch()
    shutil.copy2(cfg.nbs_path/'card.png', cfg.doc_path)
    localise(cfg.doc_path, cfg.doc_url)
    mend_pages(cfg.doc_path, cfg.doc_url)
    add_search(cfg.doc_path, found, titles_of(cfg.nbs_path))
    return 'Quarto' if with_quarto else 'smalldocs'


def nearest_anchor(fragment, anchors):
    "The anchor for `fragment`, or for the class of the method that it names; None where neither is shown"
    return next((o for o in (fragment, fragment.partition('.')[0]) if o in anchors), None)


def localise(docs, url):
    """Make links that lead to the published site relative, so that any copy of the site leads to itself

    A link to something that its page doesn't show is taken away, and its text stays."""
    find = re.compile(rf'<a\b([^>]*?)href="{re.escape(url.rstrip("/"))}(?:/|(?=[#"]))([^"#]*)#?([^"]*)"([^>]*)>(.*?)</a>', re.S)
    anchors = {o.relative_to(docs).as_posix(): Page(o).anchors for o in docs.rglob('*.html')}
    for o in docs.rglob('*.html'):
        up = '../' * (len(o.relative_to(docs).parts) - 1)
        def fix(m):
            before, path, fragment, after, text = m.groups()
            to = nearest_anchor(fragment, anchors.get(path, {fragment}))
            return text if to is None else f'<a{before}href="{up}{path or "./"}{"#" if to else ""}{to}"{after}>{text}</a>'
        o.write_text(find.sub(fix, o.read_text(encoding='utf-8')), encoding='utf-8')


def mend_pages(docs, url):
    """Mend what the renderers get wrong

    Drawings (SVG) have `aria-label` where pictures have `alt`; the site's card lies at its top, wherever the page lies."""
    for o in docs.rglob('*.html'):
        text = o.read_text(encoding='utf-8')
        new = text.replace('<svg alt="', '<svg role="img" aria-label="')
        new = re.sub(rf'content="{re.escape(url.rstrip("/"))}/[^"]*card\.png"', f'content="{url.rstrip("/")}/card.png"', new)
        if new != text: o.write_text(new, encoding='utf-8')


def serve_site(docs, port):
    "Serve the site until Ctrl-C"
    with ThreadingHTTPServer(('127.0.0.1', port), partial(SimpleHTTPRequestHandler, directory=str(docs))) as server:
        print(f'http://127.0.0.1:{server.server_port}/ (Ctrl-C stops)')
        try: server.serve_forever()
        except KeyboardInterrupt: print()


@call_parse
def main(
    check:bool=False, # Only check the site that is there
    serve:bool=False, # Then serve the site on this machine
    port:int=8000, # Port for serving; 0 takes a free one
    n_workers:int=2, # Notebooks processed at a time
    force:bool=False, # Process every notebook again, changed or not
):
    "Build the docs site into _docs and check it; exits with 1 and a list if a link, a picture's text or Markdown is amiss"
    os.chdir(ROOT)
    cfg, start = get_config(), time.time()
    renderer = None if check else build(cfg, n_workers, force)
    if renderer: print(f'{len(list(cfg.doc_path.rglob("*.html")))} pages built with {renderer} in {time.time()-start:.0f} s')
    own = {f'{cfg.git_url}/blob/{cfg.branch}/': ROOT, colab_url(cfg, Path()).rstrip('.'): cfg.nbs_path}
    found = faults(cfg.doc_path, own)
    print(*found, f'{len(found)} faults', sep='\n')
    if serve: serve_site(cfg.doc_path, port)
    sys.exit(bool(found))
