"The lowest floor: names, seeds, threads, files and locks"
import io, os, random, sys, unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.torch_core import set_seed

from dlcourse import models
from dlcourse import core
from dlcourse.core import CourseError, choose, home_path, import_all, kept_memory, kept_rng, lock_for, num_threads, optional
from dlcourse.core import part_of, refuse_launcher, save_figure, seed_all, sweep, whole_file
from dlcourse.names import file_name, html_text, legend_text, one_line, plot_text, terminal_text, to_disk


def drawn(): return random.random(), np.random.rand(), torch.rand(1).item()


@pytest.mark.parametrize('name', ['fashion_mnist', 'Fashion-MNIST', 'FASHION_mnist'])
def test_choose_ignores_case_and_dashes(name): assert choose(name, ['mnist', 'fashion_mnist']) == 'fashion_mnist'


@pytest.mark.parametrize('name, message', [('mnst', "unknown data set 'mnst'. Did you mean 'mnist'?"),
                                           (3, 'unknown data set 3. There are: mnist'),
                                           ('', "unknown data set ''. There are: mnist")])
def test_choose_refuses(name, message):
    with pytest.raises(CourseError) as e: choose(name, ['mnist'], 'data set')
    assert str(e.value).startswith(message)


def test_a_missing_extra_is_named():
    with pytest.raises(CourseError, match=r"pip install 'dlcourse\[docs\]'"): optional('no_such_module', 'docs')


@pytest.mark.parametrize('seed', [0, 5, 2**32 - 1])
def test_seeded_as_by_fastai(seed):
    set_seed(seed)
    theirs = drawn()
    seed_all(seed)
    assert drawn() == theirs


def test_seeds_and_kept_generators():
    seed_all(5)
    first = drawn()
    seed_all(5)
    with kept_rng(): drawn()
    assert drawn() == first


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), num_threads(1): raise KeyError
    assert torch.get_num_threads() == before


@pytest.fixture
def settings(monkeypatch):
    "What the C library was told, in order"
    told = []
    monkeypatch.setattr(core, '_set_memory', told.append)
    core._c_library.cache_clear()
    yield told
    core._c_library.cache_clear()


@pytest.mark.skipif(sys.platform != 'linux', reason='GNU has these settings')
def test_memory_is_kept_until_the_outermost_block_ends(settings):
    with pytest.raises(KeyboardInterrupt), kept_memory() as outer:
        with kept_memory() as inner: assert outer and inner
        assert settings == [core._kept]
        raise KeyboardInterrupt
    assert settings == [core._kept, core._usual]
    with kept_memory(): assert settings[2:] == [core._kept]


@pytest.mark.parametrize('name, value', [('MALLOC_TRIM_THRESHOLD_', '131072'), ('GLIBC_TUNABLES', 'glibc.malloc.mmap_max=9'),
                                         (None, 'darwin')])
def test_memory_that_is_set_from_outside_is_left_alone(settings, monkeypatch, name, value):
    monkeypatch.setenv(name, value) if name else monkeypatch.setattr(sys, 'platform', value)
    with kept_memory() as is_kept: assert not is_kept
    assert not settings


def test_a_file_is_whole_or_absent(tmp_path):
    with pytest.raises(KeyError), whole_file(tmp_path/'a.txt') as f: raise KeyError
    assert list(tmp_path.iterdir()) == []
    with whole_file(tmp_path/'new'/'a.txt') as f: f.write('whole')
    assert (tmp_path/'new'/'a.txt').read_text() == 'whole'
    with pytest.raises(CourseError, match='cannot write'), whole_file(tmp_path/'new'/'a.txt'/'b'): pass


def test_one_holder_of_a_lock(tmp_path):
    with lock_for(tmp_path):
        with pytest.raises(CourseError, match='taken'), lock_for(tmp_path/'.', 'taken'): pass
    with lock_for(tmp_path, 'taken'), lock_for(tmp_path/'new'/'a.json', 'taken'):
        assert sorted(o.name for o in tmp_path.rglob('*')) == ['.a.json.lock', '.lock', 'new']
    assert [o.name for o in tmp_path.rglob('*')] == ['new']


def test_a_place_that_cannot_be_locked(tmp_path):
    (tmp_path/'.lock').mkdir()
    with pytest.raises(CourseError, match='its lock .* is a folder: remove it'), lock_for(tmp_path): pass
    (tmp_path/'a').write_text('')
    with pytest.raises(CourseError, match='cannot lock'), lock_for(tmp_path/'a'/'b'): pass


def test_text_is_written_as_utf8_in_any_locale(tmp_path, monkeypatch):
    monkeypatch.setattr('locale.getpreferredencoding', lambda *_: 'ascii')
    monkeypatch.setattr('locale.getencoding', lambda: 'ascii')
    with whole_file(tmp_path/'a.txt') as f: f.write('2×2 \udcff')
    assert f.encoding == 'utf-8' and (tmp_path/'a.txt').read_bytes() == '2×2 \\udcff'.encode()


def test_a_launcher_is_refused(monkeypatch):
    for size in ('', '1'):
        monkeypatch.setenv('WORLD_SIZE', size)
        refuse_launcher('a run')
    monkeypatch.setenv('WORLD_SIZE', '4')
    with pytest.raises(CourseError, match='a run takes one process, and .* torchrun has started 4'): refuse_launcher('a run')


odd_names = ['$5', 'a$$b', '$10-$20', r'a\$b', r'\frac', '_none', '50%', '{x}', '<b>&"', "it's", 'two\nlines', 'a\tb', '\x1b[2J',
             '\x00', '\x7f', '\u202egpj', 'חתול', 'macro avg', b'caf\xe9'.decode(errors='surrogateescape'), '猫', ' ', '']


@pytest.mark.parametrize('name', odd_names)
def test_a_name_is_drawn_as_it_is(name):
    from matplotlib.figure import Figure
    ax = Figure(figsize=(1, 1)).add_subplot()
    ax.set_title(plot_text(name, f'→ {name}'))
    ax.plot([1, 2], label=legend_text(name) or '-')
    shown, math = ax.title._preprocess_math(ax.title.get_text())
    assert (shown, math) == (f'{one_line(name)}\n→ {one_line(name)}', False)
    assert len(ax.legend().texts) == 1
    ax.figure.savefig(io.BytesIO(), format='svg')


def test_names_for_tex():
    from matplotlib import rc_context
    with rc_context({'text.usetex': True}): assert plot_text('a_b$5%') == r'a\_b\$5\%'
    with rc_context({'text.parse_math': False}): assert plot_text('$5-$6') == '$5-$6'


@pytest.mark.parametrize('name', odd_names)
@pytest.mark.parametrize('encoding', ['utf-8', 'cp1252', 'ascii'])
def test_a_name_is_printed_in_any_encoding(name, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print(text := terminal_text(name, out), file=out, flush=True)
    assert all(c == '\n' or unicodedata.category(c) not in ('Cc', 'Cs') for c in text) and '\u202e' not in text


@pytest.mark.parametrize('name', odd_names)
def test_a_name_becomes_a_files_name(name, tmp_path):
    made = file_name(name)
    assert not set(made) & set('<>:"/\\|?*$%{}\n\t\0') and made == made.strip('. ')
    if made: (tmp_path/made).mkdir()
    assert '<' not in html_text(name) and '"' not in html_text(name)


def test_every_module_of_a_package_is_imported():
    import_all(models)
    assert {'dlcourse.models.cnn', 'dlcourse.models.whitened'} <= sys.modules.keys()


@pytest.mark.parametrize('name', ['a'*255, 'é'*127, '日'*84, 'two\nlines', b'a\xff'.decode(errors='surrogateescape')])
def test_a_name_that_fills_the_disks_limit_is_written_locked_and_swept(name, tmp_path):
    place = tmp_path/to_disk(name)
    (tmp_path/part_of(place).name.replace(str(os.getpid()), '9999999')).touch()
    with lock_for(place), whole_file(place) as f: f.write('whole')
    assert [o.name for o in tmp_path.iterdir()] == [place.name]
    with pytest.raises(CourseError, match='taken'), lock_for(place), lock_for(place, 'taken'): pass


def test_long_names_that_begin_alike_have_parts_of_their_own(): assert part_of('x/' + 'a'*254 + 'b') != part_of('x/' + 'a'*255)


@pytest.mark.parametrize('place', ['.', '/'])
def test_a_place_without_a_name_is_refused(place):
    with pytest.raises(CourseError, match='is no name for a new file or folder'), whole_file(place): pass


def test_what_cannot_be_a_lock_is_named(tmp_path):
    (tmp_path/'.lock').symlink_to('elsewhere')
    with pytest.raises(CourseError, match='its lock .* is a link: remove it'), lock_for(tmp_path): pass
    assert not (tmp_path/'elsewhere').exists()


@pytest.mark.parametrize('make, left', [(lambda o: o.write_text('mine'), 'this file is not'), (os.mkfifo, 'is no file: remove it')])
def test_what_lies_under_the_name_of_a_lock_is_not_removed(make, left, tmp_path):
    make(tmp_path/'.lock')
    with pytest.raises(CourseError, match=left), lock_for(tmp_path): pass
    assert (tmp_path/'.lock').exists()


def test_a_half_written_file_that_cannot_be_removed_is_left(tmp_path, monkeypatch):
    "It may be another user's"
    (tmp_path/'a.9999999.part').touch()
    def refuse(*args, **kwargs): raise PermissionError(1, 'Operation not permitted')
    with monkeypatch.context() as m:
        m.setattr(os, 'unlink', refuse)
        sweep(tmp_path)
    with whole_file(tmp_path/'a') as f: f.write('whole')
    assert [o.name for o in tmp_path.iterdir()] == ['a']


@pytest.mark.parametrize('path', ['~nobody at all', '~nobody at all/x'])
def test_a_home_folder_that_is_nowhere_is_named(path):
    with pytest.raises(CourseError, match='~nobody at all stands for the home folder'): home_path(path)


def test_a_name_too_long_for_a_disk_is_said():
    with pytest.raises(CourseError, match='a name has at most 255 bytes'): home_path('n'*300)


@pytest.mark.parametrize('name', ['a\nb', '\x1b[2J', '\u202egpj', '\u200b'])
def test_messages_are_one_line_without_commands_to_the_terminal(name):
    text = str(CourseError(f'{name} is missing'))
    assert '\n' not in text and text.isprintable() and text.endswith(' is missing')


@pytest.mark.parametrize('name', ['x', '%s %d', '$$', 'a.docx', '.png', 'a.'])
def test_a_picture_is_of_a_known_format_before_anything_is_written(name, tmp_path):
    from matplotlib.figure import Figure
    with pytest.raises(CourseError, match='name of a picture must end in .png'): save_figure(Figure(), tmp_path/'new'/name)
    assert list(tmp_path.iterdir()) == []


def test_an_optional_package_that_is_broken_is_named(tmp_path, monkeypatch):
    (tmp_path/'a_broken_one.py').write_text("raise ImportError('no library')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CourseError, match='a_broken_one, which is installed but cannot'): optional('a_broken_one', 'x')


def test_a_path_beyond_ascii_is_given_as_bytes_where_the_system_takes_ascii(monkeypatch):
    "As `open` would take it under LC_ALL=C without the UTF-8 mode"
    from dlcourse.values.kinds import a_path, as_on_disk
    def encode(o): return os.fspath(o).encode('ascii', 'surrogateescape')
    monkeypatch.setattr(os, 'fsencode', lambda o: os.fspath(o).encode('utf-8', 'surrogateescape'))
    assert as_on_disk('é') == 'é' and as_on_disk(3) == 3 and as_on_disk('\ud800') == '\ud800'
    monkeypatch.setattr(os, 'fsencode', encode)
    monkeypatch.setattr(os, 'fsdecode', lambda o: o.decode('ascii', 'surrogateescape'))
    for given in ('fotos-é', Path('日/é')):
        taken = a_path.take(given)
        assert type(taken) is type(given) and encode(taken) == str(given).encode() and a_path.take(taken) == taken


@pytest.mark.skipif(not Path('/proc/self').exists(), reason='this system has no /proc, in which nobody can make a file')
def test_a_lock_that_cannot_be_made_is_refused_at_once():
    with pytest.raises(CourseError, match='cannot lock /proc/self/zz'):
        with lock_for('/proc/self/zz'): pass
