"What is built from the sources, and which module may import which"
import ast, importlib, importlib.metadata, os, shutil, subprocess, sys, sysconfig, tarfile, zipfile
from configparser import ConfigParser
from graphlib import TopologicalSorter
from pathlib import Path

import pytest, yaml
from fastcore.nbio import read_nb
from nbdev.config import get_config

from dlcourse.house import floor_of, forbidden, imports, modules_of, room_of, uses_of

try: import tomllib
except ImportError: import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
LIB = ROOT/'dlcourse'


@pytest.fixture(scope='module')
def settings():
    config = ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    return config['DEFAULT']


def test_pyproject_repeats_settings(settings):
    project = tomllib.loads((ROOT/'pyproject.toml').read_text(encoding='utf-8'))['project']
    urls = dict(Repository=settings['git_url'], Documentation=settings['doc_url'])
    static = {k: v for k,v in project.items() if k != 'dynamic'}
    assert static == dict(name=settings['lib_name'], description=settings['description'],
                          **{'requires-python': f">={settings['min_python']}"}, urls=urls)


def test_nbdev_reads_the_same(settings):
    cfg = get_config(ROOT)
    assert (cfg.lib_name, cfg.user, cfg.repo, cfg.branch) == tuple(settings[o] for o in ('lib_name', 'user', 'repo', 'branch'))
    assert f'{cfg.doc_host}{cfg.doc_baseurl}' == settings['doc_url']


def test_version(settings):
    import dlcourse
    assert dlcourse.__version__ == importlib.metadata.version('dlcourse') == settings['version']


@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    "The source archive, and the wheel built from it, made in a copy of the sources that git would have"
    tmp = tmp_path_factory.mktemp('dist')
    skip = shutil.ignore_patterns('.*', '_proc', '_docs', 'build', 'dist', '*.egg-info', '__pycache__', 'nbs', 'benchmarks', '*.quick.json')
    shutil.copytree(ROOT, tmp/'src', ignore=skip, symlinks=True)
    (tmp/'src'/'results'/'experiments'/'mba-1.quick.json').write_text('{}') # A quick record isn't published
    command = [sys.executable, '-m', 'build', '--no-isolation', '--outdir', tmp/'dist', tmp/'src']
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr
    return dict(sdist=next((tmp/'dist').glob('*.tar.gz')), wheel=next((tmp/'dist').glob('*.whl')), log=out.stdout + out.stderr)


def package_files():
    "Every file of the package that belongs in a release"
    modules = [o for o in LIB.rglob('*') if o.suffix in ('.py', '.typ') and '__pycache__' not in o.parts]
    images = list((LIB/'data'/'files').iterdir())
    records = [o for o in (LIB/'course'/'files').glob('*.json') if not o.name.endswith('.quick.json')]
    return {o.relative_to(ROOT).as_posix() for o in modules + images + records}


def test_sdist_has_what_a_build_needs(dist):
    with tarfile.open(dist['sdist']) as f: names = {o.partition('/')[2] for o in f.getnames()}
    assert {'settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE'} | package_files() <= names


def test_wheel_has_the_package_and_its_data(dist):
    with zipfile.ZipFile(dist['wheel']) as f: names = {o for o in f.namelist() if '.dist-info/' not in o}
    assert names == package_files()
    assert any(o.startswith('dlcourse/data/files/') for o in names)


def test_build_warns_of_nothing(dist):
    for word in ('deprecat', 'Package would be ignored', 'SetuptoolsWarning'): assert word.lower() not in dist['log'].lower()


def test_wheel_installs(dist, tmp_path):
    pip = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--no-compile', '--target', tmp_path, dist['wheel']]
    subprocess.run(pip, check=True, capture_output=True)
    show = 'import dlcourse; print(dlcourse.__file__, dlcourse.__version__)'
    env = dict(os.environ, PYTHONPATH=str(tmp_path))
    out = subprocess.run([sys.executable, '-c', show], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert out.stdout.split() == [str(tmp_path/'dlcourse'/'__init__.py'), importlib.metadata.version('dlcourse')], out.stderr


@pytest.fixture(scope='module')
def elsewhere(dist, tmp_path_factory):
    "An environment with the wheel and the packages it needs, and a function that runs Python there in an empty folder"
    root = tmp_path_factory.mktemp('elsewhere')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', root/'venv'], check=True)
    python = next(o for o in (root/'venv'/'bin'/'python', root/'venv'/'Scripts'/'python.exe') if o.exists())
    site = Path(subprocess.check_output([python, '-c', "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True).strip())
    pip = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--no-compile', '--target', site, dist['wheel']]
    subprocess.run(pip, check=True, capture_output=True)
    (site/'needed.pth').write_text('\n'.join(o for o in sys.path if o.endswith('-packages')))
    (root/'empty').mkdir()
    env = {k: v for k,v in os.environ.items() if not k.startswith(('DLCOURSE', 'PYTHON'))}
    def run(*args):
        out = subprocess.run([python, *map(str, args)], env=dict(env, MPLBACKEND='agg'), cwd=root/'empty', capture_output=True,
                             encoding='utf-8')
        assert out.returncode == 0, out.stdout + out.stderr
        return out.stdout
    return run, root/'empty', site/'dlcourse'


def code_of(notebook):
    "The code cells of a chapter as one program, without the cells that are for Colab only"
    cells = [o.source for o in read_nb(ROOT/'nbs'/notebook).cells if o.cell_type == 'code' and '%pip' not in o.source]
    return '\n'.join('' if 'light_figures' in o else o for o in cells)


def test_a_chapter_runs_without_a_clone(elsewhere):
    "In an empty folder, with only the installed package: code, figures and verdicts of the records, and the command that lists them"
    run, folder, package = elsewhere
    before = sorted(o for o in package.rglob('*') if '__pycache__' not in o.parts)
    show = ("import dlcourse; from dlcourse.course.experiment import recorded; from dlcourse.course.records import obtained_table\n"
            "print(dlcourse.__file__); print(obtained_table(recorded('mba-8'), ['test_mse']).to_string()); print('=====')\n")
    command = "\nprint('====='); from dlcourse.cli import main; main(['reproduce'])"
    figures, _, listed = run('-c', show + code_of('course/mba/03_architectures.ipynb') + command).split('=====\n')
    file, *lines = figures.splitlines()
    assert Path(file) == package/'__init__.py' and len(lines) == 9 and 'not measured' not in '\n'.join(lines)
    lines = listed.splitlines()
    assert 'measured' in next(o for o in lines if o.startswith('mba-8')) and not any('not measured' in o for o in lines)
    assert sorted(o for o in package.rglob('*') if '__pycache__' not in o.parts) == before, 'nothing is written into the package'
    assert not list(folder.iterdir()), 'reading records writes nothing'


def test_help_of_the_command():
    command = Path(sysconfig.get_path('scripts'))/'dlcourse'
    out = subprocess.run([command, '--help'], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    for word in ('data', 'train', 'evaluate', 'predict'): assert word in out.stdout


def test_models_and_sources_import_no_heavy_package():
    show = """import sys, dlcourse.models.zoo
print([m for m in ('torchvision', 'timm', 'sklearn', 'dlcourse.data') if m in sys.modules])
import dlcourse.data.sources
print([m for m in ('torchvision', 'sklearn', 'fastai.vision') if m in sys.modules])"""
    out = subprocess.run([sys.executable, '-c', show], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines() == ['[]', '[]']


def test_help_without_torch():
    show = """import sys
sys.argv = ['dlcourse', '--help']
from dlcourse.cli import main
try: main()
except SystemExit: pass
heavy = {'torch', 'fastai', 'torchvision', 'numpy', 'pandas', 'matplotlib'} & sys.modules.keys()
assert not heavy, heavy"""
    out = subprocess.run([sys.executable, '-c', show], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr


MODULES = modules_of(LIB)
USES = uses_of(MODULES)
each_module = pytest.mark.parametrize('name', MODULES)


@each_module
def test_imports_go_down(name):
    "A module imports only from lower floors, or from its own room; `floor_of` raises where a room has no place in the house"
    assert floor_of(room_of(name)) >= 0
    assert not forbidden(room_of(name), USES[name]), f'{name} may import from lower floors only'


@pytest.mark.parametrize('line', ['from ..models.cnn import cnn', 'import dlcourse.models.cnn', 'def f(): from dlcourse.models import cnn'])
def test_import_rule_can_fail(line):
    found = {'dlcourse.models.cnn', 'dlcourse.core'} & set(imports(f'{line}\nfrom ..core import choose', 'dlcourse.data.sources'))
    assert found == {'dlcourse.models.cnn', 'dlcourse.core'}
    assert forbidden('data', found) == {'dlcourse.models.cnn'}


def test_no_circles():
    "`static_order` raises where modules import each other"
    assert {*TopologicalSorter(USES).static_order()} == {*MODULES}


@each_module
def test_no_star_imports_of_ours(name):
    assert not [o for o in imports(MODULES[name].read_text(encoding='utf-8'), name) if o.startswith('dlcourse') and o.endswith('*')]


@pytest.fixture(scope='module')
def listed():
    "What `dlcourse.all` imports: modules of fastai, taken whole, and pairs of a module of ours and a name"
    lines = [o for o in ast.parse((LIB/'all.py').read_text(encoding='utf-8')).body if isinstance(o, ast.ImportFrom)]
    pairs = [(o.module, a.name) for o in lines for a in o.names]
    return [m for m,k in pairs if k == '*'], [(m, k) for m,k in pairs if k != '*']


def test_all_is_a_short_list(listed):
    whole, named = listed
    assert all(o.startswith('fastai.') for o in whole) and all(m.startswith('dlcourse.') for m,_ in named)
    assert 100 < len(named) <= 150 and len({k for _,k in named}) == len(named)


def test_all_is_in_the_order_of_the_rooms(listed):
    rooms = [floor_of(room_of(m)) for m,_ in listed[1]]
    assert rooms == sorted(rooms)


def test_all_hides_no_name_of_fastai(listed):
    "Names of ours mean the same whatever is imported first, and every name of fastai means what fastai means"
    whole, named = listed
    theirs = {}
    for m in whole: exec(f'from {m} import *', theirs)
    mine = {k: getattr(importlib.import_module(m), k) for m,k in named}
    assert len(theirs) > 500
    assert not [k for k in mine if k in theirs and theirs[k] is not mine[k]]
    everything = importlib.import_module('dlcourse.all')
    assert not [k for k in mine if getattr(everything, k) is not mine[k]]


def test_lines_of_tests_and_tools():
    "Lines have at most 140 columns outside the notebooks too"
    files = [o for folder in ('tests', 'tools', 'benchmarks') for o in (ROOT/folder).rglob('*.py')] + [ROOT/'setup.py', LIB/'all.py']
    assert len(files) > 10
    def widest(path): return max(map(len, path.read_text(encoding='utf-8').splitlines()), default=0)
    long = [o.relative_to(ROOT).as_posix() for o in files if widest(o) > 140]
    assert not long


def test_release_workflow():
    "A tag builds, checks, tries the wheel and publishes without a token"
    flow = yaml.safe_load((ROOT/'.github'/'workflows'/'release.yml').read_text(encoding='utf-8'))
    assert flow[True] == dict(push=dict(tags=['v*'])) # `on` is a yes in YAML
    steps = '\n'.join(o.get('run', '') for o in flow['jobs']['build']['steps'])
    for o in ('python -m build', 'twine check --strict dist/*', 'install dist/*.whl', 'dlcourse train cnn'): assert o in steps
    publish = flow['jobs']['publish']
    assert publish['needs'] == 'build' and publish['permissions'] == {'id-token': 'write'}
    assert any('pypi-publish' in o.get('uses', '') for o in publish['steps'])


def test_changelog_has_the_version(settings):
    text = (ROOT/'CHANGELOG.md').read_text(encoding='utf-8')
    assert '## Unreleased' in text and f"## {settings['version']}" in text
