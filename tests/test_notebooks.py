"Every notebook runs from top to bottom, and every notebook is fit to be read"
import ast, builtins, importlib, os, re, symtable, sys, tempfile
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import pytest
from fastcore.nbio import nb_frontmatter, read_nb
from matplotlib.figure import Figure
from nbdev.config import get_config
from PIL import Image

cfg = get_config(Path(__file__).parent)
sys.path.insert(0, str(cfg.config_path/'tools'))
import outputs
EVERY = sorted(o.relative_to(cfg.nbs_path) for o in cfg.nbs_path.rglob('*.ipynb'))
NBS = [o for o in EVERY if not any(p[0] in '._' for p in o.parts)]
CHAPTERS = [o for o in NBS if o.parts[0] == 'course' and (len(o.parts) > 2 or int(o.name[:2]) < 49)]
LESSONS = [*CHAPTERS, Path('getting_started.ipynb')]
EXPORTS = {'export', 'exports', 'exporti'}

def notebooks(which): return pytest.mark.parametrize('nb', which, ids=[o.as_posix() for o in which])


@lru_cache(None)
def read(nb):
    "The notebook as it is saved, for those who only look at it"
    return read_nb(cfg.nbs_path/nb)


def code(nb): return [o for o in read(nb).cells if o.cell_type == 'code']


def run(nb, to):
    "Run one notebook; returns how it went, and where its saved outputs differ from the new ones"
    out = outputs.run(cfg.nbs_path/nb, to, cfg, paint=False)
    return out, {} if out.returncode else outputs.differences(read_nb(cfg.nbs_path/nb), read_nb(to))


@pytest.fixture(scope='module')
def runs(request):
    "The notebooks under test, running two at a time on two cores"
    mine = [o for o in request.session.items if o.module is request.module and o.originalname == 'test_runs']
    with tempfile.TemporaryDirectory() as tmp, ThreadPoolExecutor(min(4, os.cpu_count())) as pool:
        yield {(nb := o.callspec.params['nb']): pool.submit(run, nb, Path(tmp)/f'{i}.ipynb') for i,o in enumerate(mine)}
        pool.shutdown(cancel_futures=True)


def needs_real(nb): return any('realdata' in o.directives for o in code(nb))
def marked(nb): return pytest.param(nb, id=nb.as_posix(), marks=[pytest.mark.realdata] if needs_real(nb) else [])


@pytest.mark.parametrize('nb', [marked(o) for o in NBS])
def test_runs(nb, runs):
    out, differences = runs[nb].result()
    assert out.returncode == 0, f'{nb} failed\n{out.stdout}\n{out.stderr}'
    assert not differences, f'saved outputs are older than the code: python tools/outputs.py nbs/{nb}'


def test_there_are_notebooks(): assert Path('index.ipynb') in NBS and Path('00_core.ipynb') in NBS


@notebooks(NBS)
def test_small(nb): assert (cfg.nbs_path/nb).stat().st_size < 1_000_000


@notebooks(NBS)
def test_title(nb):
    first = next(o for o in read(nb).cells if o.cell_type == 'markdown').source
    assert re.fullmatch(r'# [^\n]+\n+> [^\n]+\n?', first), 'the first text cell is "# Title", an empty line and "> one line"'
    assert 'description' in nb_frontmatter(read(nb))


@notebooks(LESSONS)
def test_lesson_shows_results(nb): assert any(o.outputs for o in code(nb)), 'run it with nbdev-test --save'


@notebooks(LESSONS)
def test_lesson_installs_itself_in_colab(nb):
    first = next(o for o in code(nb) if 'default_exp' not in o.directives)
    assert 'hide' in first.directives and "'google.colab' in sys.modules" in first.source and '%pip install -q dlcourse' in first.source


def texts(out):
    "The text of a saved output, pictures left out"
    return ''.join([out.get('text', '')] + [str(v) for k,v in out.get('data', {}).items() if k.startswith('text/')])


@notebooks(NBS)
def test_outputs_clean(nb):
    outs = [o for c in code(nb) for o in c.outputs]
    assert not [o for o in outs if o.output_type == 'error' or 'Traceback (most recent call last)' in texts(o)]
    assert not [o for o in outs if '\r' in texts(o)], 'progress bars: run tools/tidy.py'
    address = re.compile(r'\bat 0x[0-9a-f]{6,}|functools\.partial\(<')
    assert not [m[0] for o in outs if (m := address.search(texts(o)))], 'an output names an address in memory'
    local = re.compile(r'(?<![\w.:/<~-])/(?:root|home|Users|tmp|work|workspace|mnt|opt|usr|var|private|content)/[\w.]')
    assert not [m[0] for o in outs if (m := local.search(texts(o)))], 'an output names a folder of the machine it ran on'


@notebooks(NBS)
def test_cells_short(nb):
    lessons = [c for c in code(nb) if not EXPORTS & c.directives.keys()]
    lines = {c.id: len([o for o in c.source.splitlines() if o.strip() and not o.startswith('#|')]) for c in lessons}
    assert not {k: v for k,v in lines.items() if v > 15}


@notebooks(NBS)
def test_imports_apart(nb):
    "The docs build runs each cell that imports, in a fresh namespace"
    def kinds(cell): return {type(o) for o in cell.parsed_() or []}
    mixed = [c.id for c in code(nb) if {ast.Import, ast.ImportFrom} & kinds(c) and {ast.Expr, ast.Assign} & kinds(c)]
    assert not mixed, 'imports and other code share a cell'


@notebooks(NBS)
def test_links_between_notebooks(nb):
    "Quarto takes the numbers off the names itself, so a link has to name the file as it is"
    links = re.findall(r'\]\((?!\w+:|#)([^)#\s]+)', '\n'.join(o.source for o in read(nb).cells if o.cell_type == 'markdown'))
    assert not [o for o in links if not (cfg.nbs_path/nb).parent.joinpath(o).exists()]


# What must hold of the form of a chapter ------------------------------------

MODEL_CHAPTERS = [Path('course/tp1/01_cifar10.ipynb'), Path('course/mba/04_boston.ipynb'), Path('course/mac/05_perturbed.ipynb'),
                  Path('course/pcs/01_leak.ipynb'), Path('course/pcs/02_feature_space.ipynb'),
                  Path('course/pcs/11_surrogate.ipynb'), Path('course/pcs/15_critical_layers.ipynb'),
                  Path('course/pcs/18_batchnorm_only.ipynb')]
# Pages whose code a reader sees whole: a chapter that is finished gets a line here
VISIBLE = [Path(o) for o in '''
    course/01_data.ipynb
    course/02_networks.ipynb
    course/03_training.ipynb
    course/04_judging.ipynb
    course/mac/00_pair.ipynb
    course/mac/01_similar_size.ipynb
    course/mac/02_convergence.ipynb
    course/mac/03_stopping.ipynb
    course/mac/04_comparison.ipynb
    course/mac/06_imbalance.ipynb
    course/mac/07_views.ipynb
    course/mac/08_harder.ipynb
    course/mac/09_hyperparameters.ipynb
    course/mac/10_recipe.ipynb
    course/mac/05_perturbed.ipynb
    course/mac/11_looking_inside.ipynb
    course/mba/04_boston.ipynb
    course/tp1/01_cifar10.ipynb
    course/mba/01_losses.ipynb
    course/mba/02_optimisers.ipynb
    course/mba/03_architectures.ipynb
    course/mba/05_fashion800.ipynb
    course/tp1/02_eurosat.ipynb
    course/tp1/03_ninety_four.ipynb
    course/05_command_line.ipynb
    course/pcs/03_more_features.ipynb
    course/pcs/04_core_sets.ipynb
    course/pcs/07_graphs.ipynb
    course/pcs/13_similarity.ipynb
    course/pcs/14_layers.ipynb
    course/pcs/14a_plane.ipynb
    course/pcs/05_projections.ipynb
    course/pcs/01_leak.ipynb
    course/pcs/02_feature_space.ipynb
    course/pcs/21_landscape.ipynb
    course/pcs/22_blocks.ipynb
    course/pcs/19_all_conv.ipynb
    course/pcs/20_sizes.ipynb
    course/pcs/23_lesions.ipynb
    course/pcs/08_schedule.ipynb
    course/pcs/09_activation.ipynb
    course/pcs/10_loss.ipynb
    course/pcs/11_surrogate.ipynb
    course/pcs/15_critical_layers.ipynb
    course/pcs/18_batchnorm_only.ipynb
    course/pcs/06_random_labels.ipynb
    course/pcs/16_ensembles.ipynb
    course/pcs/12_neurons.ipynb
    course/pcs/17_critical_periods.ipynb
'''.split()]
# Model chapters that are finished
IN_FORM = [o for o in MODEL_CHAPTERS if o in VISIBLE and any(c.source.startswith('## Exercises') for c in read(o).cells)]
ONE_SHARE = .9 # of the cells that export, those with a single definition
HIDDEN = {'hide', 'export', 'exporti', 'default_exp'}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def is_visible(cell):
    d = cell.directives
    return not (HIDDEN & d.keys()) and d.get('echo:', d.get('echo')) != 'false' and d.get('include:', d.get('include')) != 'false'


def python_of(cell):
    "The source of a code cell without directives and magics"
    if cell.source.lstrip().startswith('%%'): return ''
    return '\n'.join(re.sub(r'^(\s*)[%!].*', r'\1pass', o) for o in cell.source.splitlines())


def scopes(table):
    yield table
    for o in table.get_children(): yield from scopes(o)


def names_in(source):
    "The names that `source` uses from outside, and those that it defines at its top"
    top = symtable.symtable(source, 'cell', 'exec')
    defined = {o.get_name() for o in top.get_symbols() if o.is_assigned() or o.is_imported() or o.is_namespace()}
    used = {o.get_name() for t in scopes(top) for o in t.get_symbols() if o.is_referenced() and (t is top or o.is_global())}
    return used - defined, defined


def starred(source):
    "The names that the star imports in `source` bring"
    found = set()
    for o in ast.walk(ast.parse(source)):
        if isinstance(o, ast.ImportFrom) and o.names[0].name == '*':
            module = importlib.import_module(o.module)
            found |= set(getattr(module, '__all__', None) or [k for k in vars(module) if k[0] != '_'])
    return found


def undefined_names(nb):
    "Names that the visible cells of `nb` use before a visible cell defines or imports them"
    known, missing = {*dir(builtins), 'display', 'get_ipython', '__file__', '__name__'}, {}
    for o in filter(is_visible, code(nb)):
        source = python_of(o)
        used, defined = names_in(source)
        known |= starred(source)
        if used - known: missing[o.id] = sorted(used - known)
        known |= defined
    return missing


def test_names_in():
    used, defined = names_in('import a\nx = f(y)\ndef g(u): return u + z + x\nfor i in y: print(i)')
    assert used == {'f', 'y', 'z', 'print'} and defined == {'a', 'x', 'g', 'i'}


def test_every_chapter_is_held(): assert {*VISIBLE} <= {*CHAPTERS} and {*MODEL_CHAPTERS} <= {*CHAPTERS} and len(CHAPTERS) >= 19


@notebooks(VISIBLE)
def test_visible_names_are_defined_on_the_page(nb): assert not undefined_names(nb)


@notebooks(VISIBLE)
def test_chapter_shows_its_code(nb): assert not [o.id for o in code(nb) if 'export' in o.directives], 'a chapter exports with `#| exports`'


def pictures(cell): return [o for o in cell.outputs if any(k.startswith('image/') for k in o.get('data', {}))]
def alt(cell): return next((v if isinstance(v, str) else ' '.join(v) for k,v in cell.directives.items() if k.rstrip(':') == 'fig-alt'), '')


@notebooks(NBS)
def test_pictures_have_a_text(nb):
    shown = [o for o in code(nb) if pictures(o) and o.directives.get('output:', o.directives.get('output')) != 'false']
    assert not [o.id for o in shown if len(alt(o).strip('\'" ')) < 15], 'a cell with a picture begins with #| fig-alt: "what is to be seen"'
    text = '\n'.join(o.source for o in read(nb).cells if o.cell_type == 'markdown')
    assert not re.findall(r'!\[\]\([^)]*\)(?!\{[^}]*fig-alt)', text)


@notebooks(IN_FORM)
def test_picture_on_the_first_screen(nb): assert any(pictures(o) for o in read(nb).cells[:10] if o.cell_type == 'code')


def exercises(nb):
    "For each exercise, whether a folded solution follows before the next one"
    cells = read(nb).cells
    start = next((i for i,o in enumerate(cells) if o.cell_type == 'markdown' and o.source.startswith('## Exercises')), len(cells))
    found = []
    for o in cells[start:]:
        if o.cell_type == 'markdown' and re.match(r'\*\*Exercise \d+\.\*\*', o.source): found.append(False)
        if o.cell_type == 'code' and found and re.match(r'#\| code-fold: true\n#\| code-summary: "Solution"\n', o.source): found[-1] = True
    return found


WITH_EXERCISES = sorted({*IN_FORM, *[o for o in VISIBLE if o.parts[1] in ('mac', 'mba', 'tp1')]})

@notebooks(WITH_EXERCISES)
def test_exercises_have_solutions(nb): assert len(exercises(nb)) >= 3 and all(exercises(nb))


def defined_in(cell): return [o.name for o in cell.parsed_() or [] if isinstance(o, DEFINITIONS)]


@notebooks([*IN_FORM, Path('insight/06_explain.ipynb')])
def test_few_definitions_before_one_is_used(nb):
    waiting = 0
    for o in code(nb):
        if EXPORTS & o.directives.keys(): waiting += len(defined_in(o))
        elif names_in(python_of(o))[0]: waiting = 0
        assert waiting <= 5, f'{o.id} is the sixth definition in a row'


def test_one_definition_a_cell():
    cells = [o for nb in NBS for o in code(nb) if EXPORTS & o.directives.keys() and defined_in(o)]
    assert sum(len(defined_in(o)) == 1 for o in cells) >= ONE_SHARE*len(cells)


@notebooks(NBS)
def test_lines_fit(nb):
    lines = [(o.id, line) for o in code(nb) for line in o.source.splitlines() if not line.startswith('#|')]
    assert not [(id, line) for id,line in lines if len(line) > 140]


@notebooks(NBS)
def test_what_varies_has_a_reason(nb):
    "A cell whose output is not compared says why"
    reasons = [' '.join(v) if isinstance(v, list) else v for o in code(nb) for k,v in o.directives.items() if k.rstrip(':') == 'varies']
    assert all(len(o) > 15 for o in reasons)


# The comparison of outputs --------------------------------------------------

@pytest.mark.parametrize('old, new, measured, same', [
    ('loss 0.4523, 00:05', 'loss 0.4711, 00:17', True, True), ('loss 0.4523', 'loss 0.4711', False, False),
    ('accuracy 0.85', 'accuracy 0.45', True, False),
    ('0.98765432', '0.98765499', False, True), ('113386', '113962', True, False), ('31 right', '29 right', True, True),
    ('31 right', '29 right', False, False),
    ('3.2 ms on 2026-11-25 with torch 2.15.0', '7.9 ms on 2027-01-01 with torch 2.16.1', False, True),
    ('a b', 'a c', True, False), ('a b', 'a b c', True, False),
    ("Series 'x'", "Series 'y'", True, False), ('commit 37afce8', 'commit b913171', False, True)])
def test_outputs_are_compared(old, new, measured, same):
    assert (outputs.difference(outputs.clean(old), outputs.clean(new), measured) is None) == same


@pytest.mark.parametrize('line, trains', [
    ('learn.fit(3)', True), ('F.cross_entropy(net(x), y).backward()', True), ('chain_learner(trial, dls, 1)', True),
    ('learner_for("mlp")', False)])
def test_numbers_are_measured_after_a_training(line, trains): assert bool(outputs.TRAINS.search(line)) == trains


def test_a_picture_that_is_not_painted_is_drawn():
    fig = Figure()
    assert outputs.unpainted(fig) is None, 'IPython shows no empty figure either'
    fig.subplots().set_title('$a^{$')
    with pytest.raises(ValueError, match='Expected'): outputs.unpainted(fig)
    fig.axes[0].set_title('$a$')
    for picture in (outputs.unpainted(fig), b64decode(outputs.unpainted(fig, base64=True))):
        assert Image.open(BytesIO(picture)).size == (1, 1)


def test_pictures_in_files_are_not_painted(tmp_path):
    fig = Figure()
    fig.subplots()
    with outputs.paintless('png'), open(tmp_path/'b.png', 'wb') as f:
        fig.savefig(tmp_path/'a.png')
        fig.savefig(f, format='png', dpi=20)
        fig.savefig(tmp_path/'c.svg')
    with outputs.paintless('svg'): fig.savefig(tmp_path/'e.svg')
    fig.savefig(tmp_path/'d.png')
    sizes = [Image.open(tmp_path/f'{o}.png').size for o in 'abd']
    assert sizes == [(1, 1), (1, 1), (640, 480)] and (tmp_path/'c.svg').stat().st_size > 1000 > (tmp_path/'e.svg').stat().st_size


def test_nothing_is_timed_again_where_no_time_is_compared():
    from torch.utils.benchmark import Timer
    counted, usual = [], Timer.blocked_autorange
    with outputs.timed_once(): found = Timer('counted.append(1)', globals=dict(counted=counted)).blocked_autorange()
    assert len(found.times) == 5 and len(set(found.times)) == 1 and len(counted) == 1
    assert Timer.blocked_autorange is usual


def test_pyplot_paints_nothing_between_cells(monkeypatch):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    painted = []
    monkeypatch.setattr(FigureCanvasAgg, 'draw', lambda self: painted.append(self))
    fig = Figure()
    canvas = FigureCanvasAgg(fig)
    with outputs.paintless('png'): canvas.draw_idle()
    assert not painted
    canvas.draw_idle()
    assert painted


def test_columns_of_times_are_left_out():
    def table(s): return f'<table><tr><th>arch</th><th>seconds</th><th>n</th></tr><tr><th>cnn</th><td>{s}</td><td>7</td></tr></table>'
    assert outputs.without_times(table(3)) == outputs.without_times(table(9)) == 'arch n\ncnn 7'
    text = 'trial  seconds  n\n    1     0.08  7\n\n seconds 3'
    assert outputs.without_time_columns(text) == 'trial  seconds  n\n    1           7\n\n seconds 3'
