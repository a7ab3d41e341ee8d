"The builder of the docs site: its sidebar, its badges, and the links it finds broken"
import ast, json, os, re, sys
from pathlib import Path
from types import SimpleNamespace

import pytest, yaml
from fastcore.nbio import mk_cell, new_nb, read_nb, write_nb
from nbdev.config import get_config

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import docs, docs_check, docs_entries, docs_search, docs_stage

cfg = get_config(ROOT)
SYMBOLS = docs_entries.symbols(ROOT, cfg.nbs_path, cfg.lib_path)


def flat(contents): return [p for o in contents for p in (flat(o['contents']) if isinstance(o, dict) else [o])]
def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')


def test_sidebar_has_every_notebook_once():
    listed = flat(docs_stage.sidebar(cfg.nbs_path))
    there = {o.relative_to(cfg.nbs_path).as_posix() for o in cfg.nbs_path.rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts}
    assert len(listed) == len(set(listed)) and set(listed) == there


def test_sidebar_in_order_of_rooms(tmp_path):
    names = ['02_cli', 'index', 'insight/01_curves', 'data/02_b', 'data/01_a', 'course/10_z', 'course/02_y', 'new_room/01_n', '_proc/index',
             'getting_started', 'architecture', 'course/51_reproduction', 'course/50_experiment']
    for o in names: put(tmp_path/f'{o}.ipynb', '{}')
    got = docs_stage.sidebar(tmp_path)
    order = ('index', 'getting_started', 'course/02_y', 'course/10_z', 'data/01_a', 'data/02_b', 'insight/01_curves',
             'new_room/01_n', '02_cli', 'architecture', 'course/50_experiment', 'course/51_reproduction')
    assert flat(got) == [f'{o}.ipynb' for o in order]
    assert [o['section'] for o in got if isinstance(o, dict)] == [
        'Lessons', 'Data', 'Insight', 'New room', 'Core and commands', 'How it is built']


def test_plain_names():
    got = docs_stage.plain_sidebar(['index.ipynb', dict(section='Data', contents=['data/01_a.ipynb'])])
    assert got == ['index.ipynb', dict(section='Data', contents=['data/a.ipynb'])]


@pytest.mark.parametrize('page, badge', [
    ('course/01_first.ipynb', True), ('getting_started.ipynb', True), ('data/01_sources.ipynb', False)])
def test_badge_on_lessons(tmp_path, page, badge):
    nb = new_nb([mk_cell('---\ntitle: T\n---', 'raw'), mk_cell('See [b](../data/01_b.ipynb#x) and [c](https://a.org/01_c)', 'markdown')])
    (tmp_path/'src'/page).parent.mkdir(parents=True)
    write_nb(nb, tmp_path/'src'/page)
    docs_stage.stage_page(tmp_path/'src', Path(page), tmp_path/'to', cfg, rename=True)
    cells = read_nb(tmp_path/'to'/page.replace('01_', '')).cells
    url = f'https://colab.research.google.com/github/dlcourse/dlcourse/blob/main/nbs/{page}'
    assert [url in o.source for o in cells] == ([False, True, False] if badge else [False, False])
    shape = r'\[!\[\]\(\S+\)\{fig-alt="Open in Colab"\}\]\(\S+\)'
    if badge: assert re.fullmatch(shape, cells[1].source), 'with a caption Quarto makes a figure of it'
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
    fake = SimpleNamespace(nbs_path=nbs, doc_path=tmp_path/'_docs', git_url='https://our.org', branch='main')
    docs_stage.stage(cache, tmp_path/'to', fake, rename, ROOT)
    there = {o.relative_to(tmp_path/'to').as_posix() for o in (tmp_path/'to').rglob('*') if o.is_file()}
    assert there == {'index.ipynb', name, 'styles.css', 'data/pic.png', 'nbdev.yml', '_quarto.yml', 'functions.qmd'}
    site = yaml.safe_load((tmp_path/'to'/'_quarto.yml').read_text(encoding='utf-8'))
    assert site['website']['sidebar']['contents'] == ['index.ipynb', dict(section='Data', contents=[name])]
    assert dict(text='Functions A–Z', href='functions.qmd') in site['website']['navbar']['left']
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
    assert (tmp_path/'data'/'a.html').read_text(encoding='utf-8') == local + rest


def test_broken_links_are_found(tmp_path):
    put(tmp_path/'site'/'index.html', '<h1 id="here">x</h1><img src="gone.png"><a href="#here"></a><a href="#nowhere"></a>'
        '<a href="data/">d</a>'
        '<a href="data/a.html#part">a</a><a href="data/a.html#other">a</a><a href="data/missing.html">m</a>'
        '<a href="https://example.org/x">x</a>'
        '<a href="https://our.org/blob/setup.py#L3">s</a><a href="https://our.org/blob/none.py">n</a>')
    put(tmp_path/'site'/'data'/'index.html', '<a href="../index.html">up</a>')
    put(tmp_path/'site'/'data'/'a.html', '<h2 id="part">p</h2><a href="mailto:a@b.c">m</a>')
    got = docs_check.broken_links(tmp_path/'site', {'https://our.org/blob/': ROOT})
    assert got == ['index.html: #nowhere (no such anchor)', 'index.html: data/a.html#other (no such anchor)',
                   'index.html: data/missing.html (no such page)',
                   'index.html: gone.png (no such page)', 'index.html: https://our.org/blob/none.py (no such file in the repository)']


def test_quarto_files():
    "`nbs/_quarto.yml` leads to the one at the top, and `nbs/nbdev.yml` says what pyproject.toml says"
    assert os.readlink(cfg.nbs_path/'_quarto.yml') == '../_quarto.yml'
    text = (cfg.nbs_path/'nbdev.yml').read_text(encoding='utf-8')
    said = (f'title: "{cfg.title}"', f'site-url: "{cfg.doc_url}"', cfg.description, f'output-dir: {cfg.doc_path.name}', cfg.git_url)
    for o in said: assert o in text


SOURCE = """
def learner_for(
    arch:str='cnn', # Name of a network | or a `Module`
    *,
    opt=partial(Adam, lr=1e-3), # Optimiser
    seed=None,
    **kwargs,
)->Learner: # Ready to train
    "Build a `Learner`"

def _private(): pass

@delegates(learner_for, but=['opt'])
def cnn_learner(
    dls, # Data
    **kwargs,
): "Build one for `dls`"

class Pair:
    "Two things"
    def __init__(self, a, b=(1, 2)): self.a = a

@patch
def quiet(self:Learner): "Silence it"

@dataclass
class Row:
    "A row"
    name:str # How it is called
    n:int=3
"""


@pytest.fixture
def package(tmp_path):
    "Symbols of a package of one module"
    put(tmp_path/'lib'/'room'/'a.py', SOURCE)
    (tmp_path/'nbs'/'room').mkdir(parents=True)
    write_nb(new_nb([mk_cell('#| default_exp room.a')]), tmp_path/'nbs'/'room'/'01_a.ipynb')
    return {o.name: o for o in docs_entries.symbols(tmp_path, tmp_path/'nbs', tmp_path/'lib')}


def test_symbols_are_read_from_the_sources(package):
    assert [*package] == ['learner_for', 'cnn_learner', 'Pair', 'Learner.quiet', 'Row']
    o = package['learner_for']
    got = o.href, o.file, o.doc, o.returns
    assert got == ('room/a.html#learner_for', 'lib/room/a.py', 'Build a `Learner`', ('Learner', 'Ready to train'))
    assert [tuple(vars(p).values()) for p in o.parameters] == [
        ('arch', 'str', "'cnn'", 'Name of a network | or a `Module`'), ('*', '', '', ''),
        ('opt', '', 'partial(Adam, lr=0.001)', 'Optimiser'), ('seed', '', 'None', ''), ('**kwargs', '', '', '')]
    assert [p.name for p in package['cnn_learner'].parameters] == ['dls', 'arch', 'seed', '**kwargs']
    assert [(p.name, p.type) for p in package['Pair'].parameters] == [('a', ''), ('b', 'tuple')]
    assert [(p.name, p.default, p.meaning) for p in package['Row'].parameters] == [('name', '', 'How it is called'), ('n', '3', '')]


def test_entry_has_a_short_signature_and_a_table(package):
    text = docs_entries.entry(package['learner_for'], 'https://our.org/blob/main')
    line = next(i for i,o in enumerate(SOURCE.splitlines(), 1) if o.startswith('def learner_for'))
    assert text.startswith('### learner_for {#learner_for .entry}')
    assert f'[source](https://our.org/blob/main/lib/room/a.py#L{line})' in text
    assert '```python\nlearner_for(arch=…, *, opt=…, seed=…, **kwargs)\n```' in text
    rows = [o for o in text.splitlines() if o.startswith('|')]
    assert len(rows) == 7 and {o.count('|') for o in rows} == {5}, 'head, rule, four parameters, what is returned'
    assert 'Ready to train' in rows[-1] and '&#124;' in rows[2]


def test_every_entry_fits_its_column():
    assert len(SYMBOLS) > 300
    for o in SYMBOLS:
        text = docs_entries.entry(o, 'https://our.org')
        code = text[text.index('```python') + 9:]
        assert max(map(len, code[:code.index('```')].splitlines())) <= 90, o.name
        for word in ('__main__', 'NoneType', 'functools.partial(<', ' at 0x'): assert word not in text, o.name


def test_source_links_lead_to_the_definition():
    for o in SYMBOLS:
        line = (ROOT/o.file).read_text(encoding='utf-8').splitlines()[o.node.lineno - 1]
        assert re.match(rf'\s*(async )?(def|class) {o.name.split(".")[-1]}\b', line), o


PAGE, OTHER, TOP = Path('room/01_a.ipynb'), Path('room/02_b.ipynb'), Path('x.ipynb')


@pytest.mark.parametrize('text, page, linked', [
    ('use `learner_for()` and `gone`', TOP, 'use [`learner_for()`](room/01_a.ipynb#learner_for) and `gone`'),
    ('`learner_for`', OTHER, '[`learner_for`](../room/01_a.ipynb#learner_for)'),
    ('`learner_for`', PAGE, '[`learner_for`](#learner_for)'),
    ('[see `learner_for`](b.ipynb)', TOP, None), ('`learner_for`{.no-link}', TOP, '`learner_for`'),
    ('```\n`learner_for`\n```', TOP, None), ('``x `learner_for` ``', TOP, None),
    ('`affine_grid`, `Range`', TOP, None), ('`a.learner_for`', TOP, None)])
def test_names_in_backticks_get_links(package, text, page, linked):
    links = docs_entries.Links(package.values())
    assert links.link(text, page) == (text if linked is None else linked)


def test_words_of_other_things_get_no_link():
    "`Range` is a header of HTTP on the page of downloads, and `affine_grid` PyTorch's"
    links = docs_entries.Links(SYMBOLS, docs.room_floor)
    assert links.url('Range', Path('data/02_download.ipynb')) is None and links.url('affine_grid', Path('data/08_transforms.ipynb')) is None
    assert links.url('learner_for', Path('index.ipynb')).endswith('#learner_for')


def test_staged_page_has_entries_and_no_times(tmp_path, package):
    "A cell's `metadata.execution` takes the effect from `output: asis` in Quarto, so its entries vanish from the contents"
    shown = mk_cell('#| echo: false\n#| output: asis\nshow_doc(Pair)', metadata=dict(execution=dict(total=1)))
    run = mk_cell('Pair(1)', metadata=dict(execution=dict(total=1)))
    for folder in ('room', 'course/mac'):
        page = Path(folder)/'01_a.ipynb'
        (tmp_path/'src'/folder).mkdir(parents=True)
        write_nb(new_nb([shown, run]), tmp_path/'src'/page)
        docs_stage.stage_page(tmp_path/'src', page, tmp_path/'to', cfg, True, package.values())
        cells = read_nb(tmp_path/'to'/folder/'a.ipynb').cells
        assert not any('execution' in o.metadata for o in cells)
        text = '\n'.join(o.source for o in cells if o.cell_type == 'markdown')
        assert ('### Pair {#pair .entry}' in text) == (folder == 'room'), 'a chapter shows the code itself'
        assert '{#pair' in text and not any(docs_stage.shown_name(o) for o in cells)


def test_numbers_stand_to_the_right():
    got = docs_stage.aligned('<tr><th>mba-1</th><td>0.85</td><td>word</td><td>mac-3a</td><td>12 %</td></tr>')
    assert got.count('text-align: right') == 2 and got.count('white-space: nowrap') == 2 and '<td>word</td>' in got


def test_a_solution_is_folded_whole():
    "With its results and the text on them; a new question, a heading and other code end the fold"
    solution = '#| code-fold: true\n#| code-summary: "Solution"\n'
    cells = [('markdown', '**Exercise 1.** How many?'), ('code', solution + '40 + 2'), ('markdown', 'It is 42.'),
             ('markdown', '**Exercise 2.** Why?'), ('code', solution + 'first()'), ('code', solution + 'second()'),
             ('markdown', 'To go further: how?'), ('code', solution + 'third()'), ('code', 'shown()'), ('code', solution + 'last()'),
             ('markdown', 'So it is.')]
    nb = SimpleNamespace(cells=[mk_cell(text, kind) for kind, text in cells])
    docs_stage.fold_solutions(nb)
    marks = {'<details class="code-fold">\n<summary>Solution</summary>\n': '[', '</details>': ']'}
    assert [marks.get(o.source, o.source.split('.')[0]) for o in nb.cells] == [
        '**Exercise 1', '[', '40 + 2', 'It is 42', ']', '**Exercise 2', '[', 'first()', ']', '[', 'second()', ']', 'To go further: how?',
        '[', 'third()', ']', 'shown()', '[', 'last()', 'So it is', ']']


def test_index_of_all_functions(package):
    text = docs_entries.index_page(package.values())
    assert re.findall(r'^## (\w)', text, re.M) == ['C', 'L', 'P', 'R']
    for o in package.values(): assert f'(room/01_a.ipynb#{o.anchor})' in text


def test_search_has_an_entry_for_each_function(tmp_path, package):
    old = [dict(objectID='x.html', href='x.html', title='X', section='', text='learner_for'),
           dict(objectID='p', href='room/a.html#pair', title='A', section='Pair', text='')]
    put(tmp_path/'search.json', json.dumps(old))
    put(tmp_path/'site_libs'/'fuse'/'fuse.min.js', 'old')
    docs_search.add_search(tmp_path, package.values(), {'room/01_a.ipynb': 'The page'})
    got = json.loads((tmp_path/'search.json').read_text(encoding='utf-8'))
    href = 'room/a.html#learner_for'
    assert got[0] == dict(objectID=href, href=href, title='learner_for', section='The page', text='Build a Learner')
    assert len(got) == len(package) + 1 and got[-1] == old[0]
    assert 'window.Fuse' in (tmp_path/'site_libs'/'fuse'/'fuse.min.js').read_text(encoding='utf-8')


@pytest.mark.parametrize('name', ['dls_for', 'grad_cam', 'learner_for', 'datasets'])
def test_main_functions_have_one_definition(name): assert len([o for o in SYMBOLS if o.name == name]) == 1


def test_faults_are_found(tmp_path):
    page = """<main><p>a <code>x^2</code> `y` e^−0.05 **bold** [t](u.html)</p><p>{.no-link} x</p><pre>[views](../models/views.ipynb)</pre>
<img src="a.png" alt="A"><img src="b.png">
<p>&lt;f at 0x7f0011223344&gt;</p><span class="math">x^2</span></main><p>**outside**</p>"""
    put(tmp_path/'a.html', page)
    for o in ('a.png', 'b.png'): put(tmp_path/o, '')
    got = docs_check.faults(tmp_path)
    assert 'a.html: picture without an alternative text: b.png' in got
    kinds = [o.split(': ')[1].split(' shows')[0] for o in got if ' shows' in o]
    assert sorted(kinds) == sorted(['a link', 'code', 'bold', 'a power', 'an attribute', 'a link to a notebook', 'an address in memory'])


def test_pages_are_mended(tmp_path):
    put(tmp_path/'a'/'b.html', '<meta property="og:image" content="https://our.org/site/a/card.png"><svg alt="A house">')
    docs.mend_pages(tmp_path, 'https://our.org/site')
    text = (tmp_path/'a'/'b.html').read_text(encoding='utf-8')
    assert text == '<meta property="og:image" content="https://our.org/site/card.png"><svg role="img" aria-label="A house">'


def test_frame():
    "Both themes, folded rooms, a favicon, a card"
    site = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
    assert site['format']['html']['theme'] == dict(light='cosmo', dark='darkly')
    assert site['website']['sidebar']['collapse-level'] == 1
    for o in ('favicon', 'image'): assert (cfg.nbs_path/site['website'][o]).exists()


def luminance(color):
    def linear(c): return c/12.92 if c <= .04045 else ((c + .055)/1.055)**2.4
    r, g, b = (linear(int(color[i:i+2], 16)/255) for i in (1, 3, 5))
    return .2126*r + .7152*g + .0722*b


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + .05)/(low + .05)


def test_contrasts():
    "Text on the navigation bar and in the list of results"
    css = (cfg.nbs_path/'styles.css').read_text(encoding='utf-8')
    bar = re.search(r'\.navbar \{ background-color: (#\w{6})', css)[1]
    assert contrast(bar, '#ffffff') >= 4.5
    quiet = re.search(r'search-result-text, \.search-none\) \{ color: (#\w{6})', css)[1]
    assert contrast(quiet, '#e7f0f9') >= 4.5 and contrast(quiet, '#ffffff') >= 4.5


def test_every_item_leads_to_pages_that_are_there():
    "61 items on the home page; one that has an experiment names the chapter of that experiment"
    from dlcourse.course.experiment import experiments
    from dlcourse.course.items import items
    found = items()
    assert len(found) == 61
    for _,pages in found.values():
        for o in pages: assert (cfg.nbs_path/f'{o}.ipynb').exists(), o
    home = '\n'.join(str(out.get('data', '')) for c in read_nb(cfg.nbs_path/'index.ipynb').cells for out in c.get('outputs', []))
    for o in found: assert f'| {o} |' in home
    chapters = {o.module: o.page.with_suffix('').as_posix() for o in SYMBOLS}
    for id,exp in experiments().items():
        item = next((k for k in found if id == k or id.startswith(f'{k}-')), None)
        if item: assert chapters[exp.run.__module__.removeprefix('dlcourse.')] in found[item][1], id
