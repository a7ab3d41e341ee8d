"The builder of the docs site: its sidebar, its badges, and the links it finds broken"
import importlib.util, os
from pathlib import Path
from types import SimpleNamespace

import pytest, yaml
from fastcore.nbio import mk_cell, new_nb, read_nb, write_nb
from nbdev.config import get_config

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location('docs', ROOT/'tools'/'docs.py')
docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs)
cfg = get_config(ROOT)


def flat(contents): return [p for o in contents for p in (flat(o['contents']) if isinstance(o, dict) else [o])]
def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_sidebar_has_every_notebook_once():
    listed = flat(docs.sidebar(cfg.nbs_path))
    there = {o.relative_to(cfg.nbs_path).as_posix() for o in cfg.nbs_path.rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts}
    assert len(listed) == len(set(listed)) and set(listed) == there


def test_sidebar_in_order_of_rooms(tmp_path):
    names = ['02_cli', 'index', 'insight/01_curves', 'data/02_b', 'data/01_a', 'course/10_z', 'course/02_y', 'new_room/01_n', '_proc/index', 'getting_started']
    for o in names: put(tmp_path/f'{o}.ipynb', '{}')
    got = docs.sidebar(tmp_path)
    assert flat(got) == [f'{o}.ipynb' for o in ('index', 'getting_started', 'course/02_y', 'course/10_z', 'data/01_a', 'data/02_b', 'insight/01_curves', 'new_room/01_n', '02_cli')]
    assert [o['section'] for o in got if isinstance(o, dict)] == ['Lessons', 'Data', 'Insight', 'New room', 'Core and commands']


def test_plain_names():
    assert docs.plain_sidebar(['index.ipynb', dict(section='Data', contents=['data/01_a.ipynb'])]) == ['index.ipynb', dict(section='Data', contents=['data/a.ipynb'])]


@pytest.mark.parametrize('page, badge', [('course/01_first.ipynb', True), ('getting_started.ipynb', True), ('data/01_sources.ipynb', False)])
def test_badge_on_lessons(tmp_path, page, badge):
    nb = new_nb([mk_cell('---\ntitle: T\n---', 'raw'), mk_cell('See [b](../data/01_b.ipynb#x) and [c](https://a.org/01_c)', 'markdown')])
    (tmp_path/'src'/page).parent.mkdir(parents=True)
    write_nb(nb, tmp_path/'src'/page)
    docs.stage_page(tmp_path/'src', Path(page), tmp_path/'to', cfg, rename=True)
    cells = read_nb(tmp_path/'to'/page.replace('01_', '')).cells
    url = f'https://colab.research.google.com/github/dlcourse/dlcourse/blob/main/nbs/{page}'
    assert [url in o.source for o in cells] == ([False, True, False] if badge else [False, False])
    assert cells[-1].source == 'See [b](../data/b.ipynb#x) and [c](https://a.org/01_c)'


@pytest.mark.parametrize('rename, name', [(True, 'data/a.ipynb'), (False, 'data/01_a.ipynb')])
def test_project_for_the_renderer(tmp_path, rename, name):
    "Quarto gets the pages under the notebooks' names and takes the numbers off itself; smalldocs gets them without"
    nbs, cache = tmp_path/'nbs', tmp_path/'_proc'
    for o in (nbs, cache):
        (o/'data').mkdir(parents=True)
        for p in ('index', 'data/01_a'): write_nb(new_nb([mk_cell('text', 'markdown')]), o/f'{p}.ipynb')
    put(nbs/'nbdev.yml', 'project: {output-dir: _docs}')
    for o in ('styles.css', 'data/pic.png', 'data/weights.pth', '_docs/old.png'): put(cache/o, '')
    docs.stage(cache, tmp_path/'to', SimpleNamespace(nbs_path=nbs, doc_path=tmp_path/'_docs'), rename)
    there = {o.relative_to(tmp_path/'to').as_posix() for o in (tmp_path/'to').rglob('*') if o.is_file()}
    assert there == {'index.ipynb', name, 'styles.css', 'data/pic.png', 'nbdev.yml', '_quarto.yml'}
    site = yaml.safe_load((tmp_path/'to'/'_quarto.yml').read_text())
    assert site['website']['sidebar']['contents'] == ['index.ipynb', dict(section='Data', contents=[name])]
    assert site['metadata-files'] == ['nbdev.yml'] and set(site['format']) == {'html', 'commonmark'}


@pytest.mark.parametrize('link, local', [
    ('core.html#b', '<a class="x" href="../core.html#b" id="i">t</a>'),
    ('core.html', '<a class="x" href="../core.html" id="i">t</a>'),
    ('core.html#b.method', '<a class="x" href="../core.html#b" id="i">t</a>'),
    ('core.html#_private', 't'),
    ('gone.html#b', '<a class="x" href="../gone.html#b" id="i">t</a>')])
def test_links_to_ourselves_become_relative(tmp_path, link, local):
    rest = '<link rel="canonical" href="https://our.org/site/data/a.html"> <a href="https://our.org/other">o</a>'
    put(tmp_path/'core.html', '<h3 id="b">b</h3>')
    put(tmp_path/'data'/'a.html', f'<a class="x" href="https://our.org/site/{link}" id="i">t</a>{rest}')
    docs.localise(tmp_path, 'https://our.org/site')
    assert (tmp_path/'data'/'a.html').read_text() == local + rest


def test_broken_links_are_found(tmp_path):
    put(tmp_path/'site'/'index.html', '<h1 id="here">x</h1><img src="gone.png"><a href="#here"></a><a href="#nowhere"></a><a href="data/">d</a>'
        '<a href="data/a.html#part">a</a><a href="data/a.html#other">a</a><a href="data/missing.html">m</a><a href="https://example.org/x">x</a>'
        '<a href="https://our.org/blob/setup.py#L3">s</a><a href="https://our.org/blob/none.py">n</a>')
    put(tmp_path/'site'/'data'/'index.html', '<a href="../index.html">up</a>')
    put(tmp_path/'site'/'data'/'a.html', '<h2 id="part">p</h2><a href="mailto:a@b.c">m</a>')
    got = docs.broken_links(tmp_path/'site', {'https://our.org/blob/': ROOT})
    assert got == ['index.html: #nowhere (no such anchor)', 'index.html: data/a.html#other (no such anchor)', 'index.html: data/missing.html (no such page)',
                   'index.html: gone.png (no such page)', 'index.html: https://our.org/blob/none.py (no such file in the repository)']


def test_quarto_files():
    "`nbs/_quarto.yml` leads to the one at the top, and `nbs/nbdev.yml` says what pyproject.toml says"
    assert os.readlink(cfg.nbs_path/'_quarto.yml') == '../_quarto.yml'
    text = (cfg.nbs_path/'nbdev.yml').read_text()
    for o in (f'title: "{cfg.title}"', f'site-url: "{cfg.doc_url}"', cfg.description, f'output-dir: {cfg.doc_path.name}', cfg.git_url): assert o in text
